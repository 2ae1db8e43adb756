"""What people type by mistake, and what they have lying about: each refusal is one line, a hint and the right exit
code, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stableanimator_cli import __main__ as entry
from stableanimator_cli.media import VideoWriter, open_clip, write_image
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.motion.skeleton import draw_frame
from tests.conftest import ROOT
from tests.media_samples import beep, heard, make_video, onset
from tests.waving import waving

FRAMES = 6


@dataclass(frozen=True)
class Said:
    """How a run ended. ``error`` is its last words on stderr: the line and the hint."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> list[str]:
        lines = self.err.splitlines()
        return lines[next((i for i, line in enumerate(lines) if line.startswith("sa: ")), len(lines)) :]


Sa = Callable[[str], Said]


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with good inputs and bad ones; copied for each test, and never run in."""
    place = tmp_path_factory.mktemp("things")
    person = np.full((80, 64, 3), 180, np.uint8)
    person[20:60, 20:44] = (200, 120, 90)
    write_image(place / "person.png", person)
    write_image(place / "dot.png", person[:1, :1])
    motion = waving(FRAMES, (96, 128))
    save_motion(place / "wave.npz", motion)
    drawn = [draw_frame(motion, index) for index in range(FRAMES)]
    with VideoWriter(place / "skeleton.mp4", (96, 128), Fraction(30000, 1001), tag={"sa.kind": "skeleton"}) as video:
        for picture in drawn:
            video.write(picture)
    make_video(place / "turned.mp4", [np.ascontiguousarray(np.rot90(p)) for p in drawn], rotation=-90)
    make_video(place / "ten-bit.mp4", drawn, pix_fmt="yuv420p10le", fps=Fraction(30000, 1001))
    make_video(place / "sound.mp4", drawn, fps=6, sound=beep(1.0, 0.5))
    make_video(place / "plain.mp4", [np.roll(np.kron(person, np.ones((2, 2, 1), np.uint8)), i, 1) for i in range(4)])
    whole = (place / "skeleton.mp4").read_bytes()
    (place / "cut.mp4").write_bytes(whole[: len(whole) * 9 // 10])
    (place / "text.mp4").write_text("This is no video.\n" * 20)
    (place / "text.png").write_text("This is no picture.\n")
    (place / "empty.mp4").touch()
    (place / "nothing-in-it").mkdir()
    (place / "frames").mkdir()
    for index, picture in enumerate(drawn):
        write_image(place / "frames" / f"frame_{index}.png", picture)
    body = [float(number) for row in motion.keypoints[0, 0, :18] for number in row]
    frame = {"canvas_width": 96, "canvas_height": 128, "people": [{"pose_keypoints_2d": body}]}
    (place / "openpose.json").write_text(json.dumps(frame))
    np.save(place / "face.npy", np.linspace(-1, 1, 512, dtype=np.float32))
    np.save(place / "face-short.npy", np.ones(128, np.float32))
    np.save(place / "face-nan.npy", np.full(512, np.nan, np.float32))
    (place / "face-pickle.npy").write_bytes(pickle.dumps(_Runs()))
    (place / "unknown-key.toml").write_text("[sampling]\nstepz = 3\n")
    (place / "flat.toml").write_text("steps = 3\n")
    (place / "broken.toml").write_text("steps = \n")
    shutil.copytree(tiny_model, place / "model")
    return place


@pytest.fixture
def sa(
    things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Sa]:
    """Run a command line in this process, in a folder with a link to each of ``things``."""
    place = tmp_path / "here"
    place.mkdir()
    for thing in things.iterdir():
        (place / thing.name).symlink_to(thing)
    monkeypatch.chdir(place)
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SA_MODEL", raising=False)
    monkeypatch.delenv("SA_DEBUG", raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(line: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["sa", *shlex.split(line)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            entry.main()
        words = capfd.readouterr()
        assert isinstance(left.value.code, int)
        return Said(left.value.code, words.out, words.err)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


class _Runs:
    """Unpickling it would leave a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("this-code-ran",)


def animate(reference: str = "person.png", motion: str = "wave.npz", more: str = "") -> str:
    return f"animate {reference} {motion} -o out.mp4 --model model --face-embedding face.npy --steps 1 {more}"


def held() -> set[str]:
    return set(os.listdir())


REFUSED = [
    (animate(motion="wawe.npz"), 3, "wawe.npz: found no such file"),
    (animate(motion="empty.mp4"), 3, "empty.mp4: found an empty file (0 bytes)"),
    (animate(motion="cut.mp4"), 3, "cut.mp4, frame "),
    (animate(motion="text.mp4"), 3, "text.mp4: found data that is no video"),
    (animate(motion="plain.mp4"), 5, "plain.mp4: found a plain video, and model tiny has no person_detector"),
    (animate(motion="nothing-in-it"), 3, "nothing-in-it: found a folder without images"),
    (animate(motion="dot.png"), 3, "dot.png: found 1x1 pixels"),
    (animate(motion="face.npy"), 3, "face.npy: found data that is no video"),
    (animate("dot.png"), 3, "dot.png: found 1x1 pixels"),
    (animate("text.png"), 3, "text.png: found data that is no image"),
    (animate("persn.png"), 3, "persn.png: found no such file"),
    (animate("frames"), 3, "frames: found a folder"),
    (animate(more="--overlap 8 --window 8"), 2, "--overlap: found 8, expected 0 to 7"),
    (animate(more="--steps 0"), 2, "invalid value for '--steps': 0"),
    (animate(more="--seed 1.5"), 2, "invalid value for '--seed': '1.5' is not a whole number"),
    (animate(more="--min-csim 0,6"), 2, "invalid value for '--min-csim': '0,6' is not a number, with a decimal point"),
    (animate(more="--seed -1"), 2, "invalid value for '--seed': -1"),
    (animate(more="--size 100x100"), 2, "--size: found '100x100', expected sides that are multiples of 8"),
    (animate(more="--size large"), 2, "--size: found 'large'"),
    (animate(more="--frames 5:2"), 2, "--frames: found '5:2', expected A before B"),
    (animate(more="--frames 90:"), 3, f"wave.npz: found {FRAMES} frames"),
    (animate(more="--fps 0"), 2, "--fps: found '0'"),
    (animate(more="--guidance abc"), 2, "--guidance: found 'abc'"),
    (animate(more="--guidance nan"), 2, "--guidance: found 'nan:nan'"),
    (animate(more="--device cuda:99"), 2, "--device: found 'cuda:99'"),
    (animate(more="--device toaster"), 2, "--device: found 'toaster'"),
    (animate(more="--churn 3"), 2, "--churn: found 3.0"),
    (animate(more="--stepz 3"), 2, "no such option: --stepz"),
    (animate(more="one-more.png"), 2, "--output: found 'out.mp4', expected a folder for the videos"),
    (animate(more="--face-embedding face-short.npy"), 3, "face-short.npy: found shape (128,)"),
    (animate(more="--face-embedding face-nan.npy"), 3, "face-nan.npy: found 512 of 512 numbers that are not finite"),
    (animate(more="--face-embedding face-pickle.npy"), 3, "face-pickle.npy: it is not one float vector of 512 numbers"),
    (animate(more="--face-embedding none.npy"), 3, "none.npy: found no such file"),
    (animate(more="--model stabelanimator"), 5, "no model named 'stabelanimator'"),
    (animate(more="--model antelopev2"), 5, "model 'antelopev2' is for other work"),
    (animate(more="--model frames"), 5, "frames: found no model.toml"),
    (animate(more="--model ./nowhere"), 5, "nowhere: no such model folder"),
    (animate(more="-o nowhere/out.mp4"), 2, "--output: found 'nowhere/out.mp4', expected a file in a folder that"),
    (animate(more="-o frames"), 2, "--output: found 'frames', expected a file, not a folder"),
    (animate(more="-o ."), 2, "here', expected a file, not a folder"),
    (animate(more="-o out.avi"), 2, "--output: found 'out.avi'"),
    (animate(motion="skeleton.mp4", more="-o skeleton.mp4"), 3, "is the same as the input skeleton.mp4"),
    (animate(motion="openpose.json", more="-o openpose.mp4"), 3, "openpose.json: the output is the same as the input"),
    (animate(motion="frames", more="-o frames/out.mp4"), 3, "frames/out.mp4: the output is inside the input frames"),
    (animate(more="--config unknown-key.toml"), 2, "unknown-key.toml: sampling.stepz: found 'stepz'"),
    (animate(more="--config flat.toml"), 2, "flat.toml: steps: found 'steps'"),
    (animate(more="--config broken.toml"), 2, "broken.toml: it is not a config: no valid TOML (Invalid value"),
    (animate(more="--config none.toml"), 2, "none.toml: it cannot be read (no such file or directory)"),
    ("animate person.png wave.npz --model model", 2, "--output: found nothing, expected a value"),
    ("animate person.png wave.npz -o out.mp4", 5, "no --model given, and model 'stableanimator' lacks unet"),
    ("animate person.png wave.npz -o out.mp4 --model model", 5, "model 'tiny' has no face detector"),
    (animate(more="wave.mp4 --card T4"), 2, "--card: found 'T4', expected one animation"),
    (animate(more="wave.mp4 --plan"), 2, "--plan: found true, expected one animation"),
    ("dance", 2, "no such command 'dance'"),
]


@pytest.mark.parametrize(("line", "code", "words"), REFUSED, ids=[f"{c}: {w}" for _, c, w in REFUSED])
def test_a_mistake_is_a_line_a_hint_and_a_code(sa: Sa, line: str, code: int, words: str) -> None:
    before = held()
    said = sa(line)
    assert said.code == code, said.err
    assert said.out == ""
    assert words in said.error[0]
    assert len(said.error) <= 4
    assert all(rest.startswith(("hint: ", "      ")[index > 0]) for index, rest in enumerate(said.error[1:]))
    assert "Traceback" not in said.err
    assert held() == before


@pytest.mark.parametrize(("line", "hint"), [
    (animate(motion="wawe.npz"), "did you mean wave.npz?"),
    (animate(more="--model stabelanimator"), "did you mean stableanimator?"),
    (animate(more="--config unknown-key.toml"), "did you mean steps?"),
    (animate(more="--config flat.toml"), "it belongs in a table: sampling.steps"),
    (animate(more="--size 100x100"), "try 96x96"),
    (animate(motion="cut.mp4"), "use the frames 0:"),
    ("animate person.png wave.npz -o out.mp4", "--model puppet"),
    ("dance", "`sa --help` shows what it takes"),
])  # fmt: skip
def test_a_hint_says_what_to_do(sa: Sa, line: str, hint: str) -> None:
    assert hint in "\n".join(sa(line).error[1:])


@pytest.mark.parametrize("mistake", ["--steps 0", "--fps 0", "--stepz 3"])
def test_under_json_a_mistake_is_one_object(sa: Sa, mistake: str) -> None:
    said = sa(animate(more=f"{mistake} --json"))
    told = json.loads(said.out)
    assert told["exit_code"] == said.code == 2
    assert told["error"] in ("bad-usage", "bad-config")
    assert said.err == ""


def _edit(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return edited


def _rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def rewritten(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return rewritten


DAMAGED = [
    (_edit("unet.safetensors", lambda t: t.pop("conv_in.bias")), "1 missing tensor(s), first conv_in.bias"),
    (_edit("unet.safetensors", lambda t: t.update(more=torch.zeros(2))), "1 tensor(s) too many, first more"),
    (_edit("vae.safetensors", lambda t: t.update({"encoder.conv_in.bias": torch.zeros(7)})), "[7], expected [32]"),
    (_rewrite("unet.safetensors", lambda data: data[: len(data) // 2]), "unet.safetensors cannot be read as weights"),
    (_rewrite("vae.safetensors", lambda _: b"a page that says: not found"), "vae.safetensors cannot be read as wei"),
    (
        _rewrite("model.toml", lambda _: b"name = [\n"),
        "model.toml: it is not the description of a model: no valid TOML",
    ),
    (_rewrite("model.toml", lambda data: data.replace(b"licence =", b"license =")), "unknown key 'license'"),
    (_rewrite("model.toml", lambda data: data.replace(b"steps =", b"step =")), "[defaults]: unknown key 'step'"),
    (_rewrite("unet.json", lambda _: b'{"a":'), "config (JSON): broken JSON"),
    (_rewrite("unet.json", lambda _: b'{"a": 1}'), "the config of unet has no 'cross_attention_dim'"),
    (_rewrite("unet.json", lambda _: b'{"cross_attention_dim": 64, "a": 1}'), "describes no network that can be built"),
    (lambda folder: (folder / "vae.safetensors").unlink(), "model 'model' lacks vae (vae.safetensors)"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGED, ids=[words for _, words in DAMAGED])
def test_a_damaged_model_folder(sa: Sa, tiny_model: Path, damage: Callable[[Path], None], words: str) -> None:
    Path("model").unlink()
    shutil.copytree(tiny_model, "model")
    damage(Path("model"))
    before = held()
    said = sa(animate(more="--frames 0:1"))
    assert said.code == 5, said.err
    assert words in said.error[0]
    assert len(said.error) <= 4
    assert held() == before


def test_a_pickle_that_holds_code_is_refused_and_not_run(sa: Sa, upstream_model: Path) -> None:
    Path("model").unlink()
    shutil.copytree(upstream_model, "model")
    assert sa(animate(more="--size 64x64 --frames 0:1")).code == 0
    os.remove("out.mp4")
    torch.save({"final_proj.bias": _Runs()}, "model/Animation/pose_net.pth")
    said = sa(animate(more="--size 64x64 --frames 0:1"))
    assert said.code == 5
    assert "pose_net.pth holds Python objects besides tensors and was not opened" in said.error[0]
    assert not {"this-code-ran", "out.mp4"} & held()
    told = sa("models import model --convert")
    assert told.code == 5
    assert "this-code-ran" not in held()


@pytest.mark.parametrize(("motion", "rate", "frames"), [
    ("turned.mp4", "10", FRAMES),
    ("ten-bit.mp4", "30000/1001", FRAMES),
    ("skeleton.mp4", "30000/1001", FRAMES),
    ("frames", "30", FRAMES),
    ("openpose.json", "30", 1),
])  # fmt: skip
def test_motions_of_every_kind(sa: Sa, motion: str, rate: str, frames: int) -> None:
    said = sa(animate(motion=motion, more="--size 64x80 --preview --quiet --refine-face off"))
    assert (said.code, said.out, said.err) == (0, "out.mp4\n", "")
    clip = open_clip("out.mp4")
    assert (clip.size, clip.fps, clip.count) == ((64, 80), Fraction(rate), frames)
    # in the preview's middle the person stands upright: the head is above, the legs are two and below
    panel = next(iter(open_clip("out.preview.mp4").frames()))[1][:, 64:128].max(2) > 60
    assert panel[:20, 24:40].any()
    assert panel[20:, :32].any()
    assert panel[20:, 32:].any()


def test_sound_stays_in_time(sa: Sa) -> None:
    said = sa(animate(motion="sound.mp4", more="--frames 2:6"))
    assert said.code == 0, said.err
    _, times, levels = heard(Path("out.mp4"))
    assert onset(times, levels) == pytest.approx(0.5 - 2 / 6, abs=0.03)
    assert sa(animate(motion="sound.mp4", more="--frames 2:6 --audio none")).code == 0
    assert not open_clip("out.mp4").audio


def test_plan_and_progress_are_json(sa: Sa) -> None:
    said = sa(animate(more="--plan --json --window 4"))
    assert said.code == 0, said.err
    plan = json.loads(said.out)
    assert plan["frames"] == FRAMES
    assert sorted({frame for window in plan["windows"] for frame in window}) == list(range(FRAMES))
    assert "out.mp4" not in held()
    said = sa(animate(more="--json --progress json"))
    assert json.loads(said.out)["video"] == "out.mp4"
    objects = [json.loads(line) for line in said.err.splitlines()]  # messages are objects as well
    lines = [line for line in objects if "progress" in line]
    assert {line["progress"] for line in lines} == {"draw skeletons", "denoise", "decode"}
    assert all(line["done"] <= line["total"] for line in lines)


def test_a_plan_is_refused_where_its_run_would_be(sa: Sa) -> None:
    said = sa("animate person.png wave.npz -o out.mp4 --model model --plan")
    assert said.code == 5
    assert "model 'tiny' has no face detector" in said.error[0]
    assert sa("animate person.png plain.mp4 -o out.mp4 --model model --plan --allow-no-face").code == 5


def test_animate_without_arguments_prints_its_help(sa: Sa) -> None:
    said = sa("animate")
    assert "sa animate person.png poses.mp4 -o out.mp4" in said.out
    assert (said.code, said.err) == (2, "")


@pytest.fixture
def started(sa: Sa) -> Callable[..., subprocess.Popen[str]]:
    """Start a command line as a process of its own, in the folder of ``sa``."""

    def start(line: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "stableanimator_cli", *shlex.split(line)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # a shell ignores Ctrl-C for what it runs in the background, and children inherit that
            preexec_fn=more.pop("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)),
            **more,
        )

    return start


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_the_middle_leaves_nothing(
    started: Callable[..., subprocess.Popen[str]], by: signal.Signals
) -> None:
    before = held()
    with started(animate(more="--steps 900 --preview --progress json")) as child:
        assert child.stderr is not None
        while '"denoise"' not in (line := child.stderr.readline()):
            assert line, "it ended before it could be interrupted"
        child.send_signal(by)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert json.loads(err.splitlines()[-1])["error"] == "interrupted"
    assert held() == before


def test_a_full_disk_leaves_nothing(started: Callable[..., subprocess.Popen[str]]) -> None:
    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    before = held()
    with started(animate(), preexec_fn=little_room) as child:
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (3, "")
    assert "out.mp4" in err.splitlines()[-2]
    assert "found no room left to write" in err.splitlines()[-2]
    assert held() == before
