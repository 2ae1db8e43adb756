"""Broken off at any moment, a run goes on where it was and ends in the same bytes; what differs is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stableanimator_cli.animate import checkpoint, fingerprint
from stableanimator_cli.animate.identity_gate import FaceSimilarity
from stableanimator_cli.animate.result import Animation
from stableanimator_cli.animate.run import run
from stableanimator_cli.diffusion import face_optimization, sampler
from stableanimator_cli.diffusion.sampler import sample_dpmpp_2m, sample_euler, sample_heun
from stableanimator_cli.diffusion.schedule import karras_sigmas, keyed_noise
from stableanimator_cli.engine.decoder import Decoder
from stableanimator_cli.errors import BadInput, CheckFailed, ConfigError, Interrupted, OutOfMemory
from stableanimator_cli.files import MARK, exclusive_lock
from stableanimator_cli.media import VideoWriter, write_image
from stableanimator_cli.motion.motion_file import save_motion
from tests.animate.clips import Heard, face_picture, skeleton_video
from tests.conftest import ROOT
from tests.waving import waving

STEPS = 4


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A picture that shows a face to the tests' detector, and a motion of five frames whose face box is known."""
    face_picture(tmp_path / "face.png")
    save_motion(tmp_path / "poses.npz", waving(5, (64, 64)))
    return tmp_path


@pytest.fixture
def animate(place: Path, seeing_model: Path, monkeypatch: pytest.MonkeyPatch):
    """Four steps with a state after each of them."""
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoint, "_WRITE_RATIO", 0)

    def go(**flags: Any) -> Animation:
        usual = {
            "reference": place / "face.png",
            "motion": place / "poses.npz",
            "output": place / "out.mp4",
            "model": str(seeing_model),
            "steps": STEPS,
            "window": 4,
            "refine_iters": 1,
            "device": "cpu",
        }
        how = {name: flags.pop(name) for name in ("reporter", "restart", "plan_only") if name in flags}
        return run(flags=usual | flags, **how)  # type: ignore[return-value]

    return go


def outcome(report: Animation) -> tuple[str, Any, Any, Any]:
    """The bytes of the video, and what the record says of faces and re-draws."""
    record = json.loads(report.record.read_text())
    digest = hashlib.sha256(report.video.read_bytes()).hexdigest()
    return digest, record["refined"], record["identity"], record["redrawn_windows"]


def break_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: int) -> None:
    """Call number ``after`` (from 0) of a function breaks off as Ctrl-C does, once."""
    whole, calls = getattr(owner, name), 0

    def broken(*given: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise KeyboardInterrupt
        return whole(*given, **more)

    monkeypatch.setattr(owner, name, broken)


SETTINGS = {
    "euler with faces": {"refine_face": "crop"},
    "multistep": {"sampler": "dpmpp_2m", "schedule": "ays", "refine_face": "full"},
    "heun and churn": {"sampler": "heun", "churn": 10.0, "refine_face": "full"},
    "plain": {"refine_face": "off"},
    "windows that move": {"refine_face": "off", "blend": "shifted", "window": 3},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_broken_off_in_sampling_it_goes_on_to_the_same_bytes(place, animate, monkeypatch, name):
    flags = SETTINGS[name]
    expected = outcome(animate(output=place / "whole.mp4", **flags))
    seen: list[int] = []
    save = checkpoint.CheckpointManager.save

    def break_after(self: checkpoint.CheckpointManager, saved: checkpoint.Checkpoint) -> None:
        save(self, saved)
        seen.append(saved.state.step)
        if len(seen) in (1, 3):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.CheckpointManager, "save", break_after)
    for _ in range(2):
        with pytest.raises(Interrupted, match=r"out\.mp4: interrupted"):
            animate(**flags)
        assert not (place / "out.mp4").exists()
        assert (place / ".out.mp4.state").exists()
    reporter = Heard()
    report = animate(reporter=reporter, **flags)
    assert any("resuming after 3 of 4 steps" in note for note in reporter.notes)
    assert seen == [1, 2, 3, 4]  # no step was taken twice
    assert outcome(report) == expected
    assert sorted(file.name for file in place.glob("*out*")) == ["out.json", "out.mp4"]
    record, other = (json.loads((place / name).read_text()) for name in ("whole.json", "out.json"))
    assert (record["resumed"], other["resumed"]) == (0, 2)
    assert other["calls"]["unet"] == record["calls"]["unet"]


def test_faces_that_were_looked_for_are_remembered(place, animate, monkeypatch):
    """A skeleton video does not say where faces are: they are found in the first estimate and used in all steps."""
    red = np.zeros((5, 64, 64, 3), np.uint8)
    red[:, 20:50, 20:44] = (255, 0, 0)
    pictures = iter(red.repeat(9, axis=0))
    monkeypatch.setattr(
        "stableanimator_cli.engine.face_optimization.to_uint8", lambda chunk: [next(pictures) for _ in chunk]
    )
    motion = skeleton_video(place / "poses.mp4", 5)
    expected = outcome(animate(output=place / "whole.mp4", motion=motion, refine_face="crop", refine_steps="0:"))
    assert [row["faces"] for row in expected[1]] == [5] * STEPS
    break_in(monkeypatch, face_optimization.FaceOptimization, "_optimize", 2)
    with pytest.raises(Interrupted):
        animate(motion=motion, refine_face="crop", refine_steps="0:")
    pictures = iter(np.zeros((0, 1)))  # to look again would fail
    assert outcome(animate(motion=motion, refine_face="crop", refine_steps="0:")) == expected


@pytest.mark.parametrize("moment", ["decoding", "writing", "recording"])
def test_broken_off_after_sampling_nothing_is_sampled_again(place, animate, monkeypatch, moment):
    expected = outcome(animate(output=place / "whole.mp4", refine_face="off"))
    with monkeypatch.context() as patch:
        owner, name = {
            "decoding": (Decoder, "pixels"),
            "writing": (VideoWriter, "write"),
            "recording": (fingerprint, "versions"),
        }[moment]
        break_in(patch, owner, name, {"decoding": 1, "writing": 3, "recording": 1}[moment])
        with pytest.raises(Interrupted):
            animate(refine_face="off")
    assert (place / "out.mp4").exists() == (moment == "recording")
    monkeypatch.setattr("stableanimator_cli.animate.pipeline.sample", lambda *_, **__: 1 / 0)
    assert outcome(animate(refine_face="off")) == expected
    assert not (place / ".out.mp4.state").exists()


@pytest.mark.parametrize("kept", [2, STEPS + 1, 2 * STEPS + 2])
def test_broken_off_in_any_drawing_of_the_gate(place, animate, monkeypatch, kept):
    """The measured similarity is scripted: the second drawing is the best, the third is worse, all fail."""
    curves = iter([])

    def measured(*_: object) -> FaceSimilarity:
        return FaceSimilarity(similarity=np.full(5, next(curves)))

    monkeypatch.setattr("stableanimator_cli.animate.pipeline._measure_identity", measured)
    flags = {"min_csim": 0.9, "redraw": 2, "refine_face": "off"}

    def drawn(output: str, values: list[float]) -> tuple[Any, ...]:
        nonlocal curves
        curves = iter(values)
        with pytest.raises(CheckFailed, match=r"similarity to the reference is 0\.500"):
            animate(output=place / output, **flags)
        record = json.loads((place / output).with_suffix(".json").read_text())
        assert record["identity"]["mean"] == 0.5
        return hashlib.sha256((place / output).read_bytes()).hexdigest(), record["redrawn_windows"]

    values = [0.1, 0.5, 0.2]
    expected = drawn("whole.mp4", values)
    assert len(expected[1]) == 2
    count, save = 0, checkpoint.CheckpointManager.save

    def break_after(self: checkpoint.CheckpointManager, saved: checkpoint.Checkpoint) -> None:
        nonlocal count
        save(self, saved)
        count += 1
        if count == kept:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.CheckpointManager, "save", break_after)
    curves = iter(values)
    with pytest.raises(Interrupted):
        animate(**flags)
    measured_before = (kept - 1) // STEPS
    assert drawn("out.mp4", values[measured_before:]) == expected


def broken_off(animate, monkeypatch: pytest.MonkeyPatch, **flags: Any) -> None:
    with monkeypatch.context() as patch:
        break_in(patch, Decoder, "pixels", 0)
        with pytest.raises(Interrupted):
            animate(refine_face="off", **flags)


def test_other_settings_are_refused_with_the_difference(place, animate, monkeypatch):
    broken_off(animate, monkeypatch)
    kept = (place / ".out.mp4.state").read_bytes()
    with pytest.raises(ConfigError) as caught:
        animate(refine_face="off", seed=7, guidance=2.0)
    assert caught.value.exit_code == 2
    assert "unfinished run" in caught.value.message
    assert "sampling.guidance 3.0 (now 2.0); sampling.seed 0 (now 7)" in caught.value.message
    assert "after 4 steps" in caught.value.message
    assert "--restart" in str(caught.value.hint)
    assert (place / ".out.mp4.state").read_bytes() == kept
    anew = outcome(animate(refine_face="off", seed=7, restart=True))
    assert anew == outcome(animate(refine_face="off", seed=7, output=place / "other.mp4"))
    assert not (place / ".out.mp4.state").exists()


@pytest.mark.parametrize("what", ["reference", "motion", "weights"])
def test_other_inputs_and_weights_are_refused(place, animate, monkeypatch, seeing_model, tmp_path_factory, what):
    import shutil

    model = shutil.copytree(seeing_model, tmp_path_factory.mktemp("model") / "seeing")
    broken_off(animate, monkeypatch, model=str(model))
    if what == "reference":
        write_image(place / "face.png", np.full((96, 96, 3), 61, np.uint8))
    elif what == "motion":
        save_motion(place / "poses.npz", waving(6, (64, 64)))
    else:
        file = model / "unet.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    named = {"weights": r"weights of unet \(sha256\)"}.get(what, rf"{what} \(sha256\)")
    with pytest.raises(ConfigError, match=named + r" [0-9a-f]{12} \(now [0-9a-f]{12}\)"):
        animate(refine_face="off", model=str(model))


def test_what_changes_no_latent_may_change(place, animate, monkeypatch):
    """A run that did not fit while decoding goes on with smaller chunks, from another folder of the same inputs."""
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "pixels", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(OutOfMemory):
            animate(refine_face="off")
    (place / "face.png").rename(place / "same.png")
    flags = {"refine_face": "off", "reference": place / "same.png", "decode_chunk": 2}
    with monkeypatch.context() as patch:
        patch.setattr("stableanimator_cli.animate.pipeline.sample", lambda *_, **__: 1 / 0)
        report = animate(offload="model", preview=True, **flags)
    assert outcome(report)[0] == outcome(animate(output=place / "whole.mp4", **flags))[0]


def test_a_damaged_state_is_said_and_the_run_starts_anew(place, animate):
    expected = outcome(animate(refine_face="off", output=place / "whole.mp4"))
    (place / ".out.mp4.state").write_bytes(b"no state")
    with pytest.raises(BadInput, match=r"\.out\.mp4\.state: it exists and was not written by sa"):
        animate(refine_face="off")
    (place / ".out.mp4.state").write_bytes(b"a damaged state of " + MARK.encode())
    reporter = Heard()
    assert outcome(animate(refine_face="off", reporter=reporter)) == expected
    assert any("not readable as the checkpoint of a run" in warning for warning in reporter.warnings)


def test_a_state_that_cannot_be_written_does_not_end_the_run(place, animate, monkeypatch):
    (place / ".out.mp4.state").mkdir()
    reporter = Heard()
    assert animate(refine_face="off", reporter=reporter).frames == 5
    assert sum("this run cannot be resumed" in warning for warning in reporter.warnings) == 1


def test_a_plan_leaves_the_state_alone_and_a_missing_input_is_said_as_ever(place, animate, monkeypatch):
    broken_off(animate, monkeypatch)
    kept = (place / ".out.mp4.state").read_bytes()
    animate(plan_only=True, seed=9)
    with pytest.raises(BadInput, match=r"nobody\.png: found no such file"):
        animate(reference=place / "nobody.png")
    assert (place / ".out.mp4.state").read_bytes() == kept


def test_little_work_leaves_no_state(place, animate, monkeypatch):
    monkeypatch.setattr(checkpoint, "INTERVAL", 60.0)
    with monkeypatch.context() as patch:
        break_in(patch, Decoder, "pixels", 0)
        with pytest.raises(KeyboardInterrupt):
            animate(refine_face="off")
    assert not (place / ".out.mp4.state").exists()


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_a_sampler_goes_on_at_any_step(name):
    """Numbers equal to the last bit, for a denoiser that depends on the level and with noise put back."""
    sigmas, x = karras_sigmas(6), keyed_noise(3, "x", range(2), (4, 3, 3)) * 700

    def denoise(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        return latents * 0.3 / (1 + sigma) + 0.1

    def through(latents: torch.Tensor, first: int = 0, observe: Any = None, previous: Any = None) -> torch.Tensor:
        if name == "euler":
            return sample_euler(denoise, latents, sigmas, callback=observe, first_step=first)
        if name == "dpmpp_2m":
            return sample_dpmpp_2m(denoise, latents, sigmas, callback=observe, first_step=first, previous=previous)
        noise = {"noise": lambda step: keyed_noise(3, f"churn/{step}", range(2), (4, 3, 3))}
        churn = sampler.Churn(amount=5.0)
        return sample_heun(denoise, latents, sigmas, churn=churn, callback=observe, first_step=first, **noise)

    states: list[tuple[torch.Tensor, torch.Tensor]] = []
    whole = through(x, observe=lambda latents, denoised, step: states.append((latents, denoised)))
    assert len(states) == 6
    for step, (latents, denoised) in enumerate(states):
        assert torch.equal(through(latents, step + 1, previous=denoised), whole)


def test_a_run_that_was_killed_before_its_first_checkpoint_leaves_no_temporary_file(place, animate):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, living = int(ended.stdout), os.getppid()
    names = [f".{name}.{dead}.part" for name in ("out.mp4", ".out.mp4.state", "out.preview.mp4", "out.json")]
    stays = [f".out.mp4.{living}.part", f".other.mp4.{dead}.part", f".out.mp4.{dead}.notes"]
    for name in (*names, *stays):
        (place / name).write_text("half")
    animate(steps=1, refine_face="off")
    assert sorted(path.name for path in place.iterdir() if path.name.startswith(".")) == sorted(stays)


def test_killed_at_random_moments_it_ends_in_the_same_bytes(seeing_model):
    """SIGKILL to processes of their own: no handler runs, and what they were writing is left behind."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.animate.kills", "3", "5", str(seeing_model)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] == 3
    assert told["equal"] == told["runs"] >= 1
    assert told["left"] == []


def test_two_at_one_output_are_one_too_many(place, animate):
    lock = place / ".out.mp4.lock"
    with exclusive_lock(lock), pytest.raises(BadInput, match=r"out\.mp4: it is being written by another `sa animate`"):
        animate()
    assert not (place / "out.mp4").exists()
    lock.touch()  # as a killed run leaves it
    animate()
    assert sorted(file.name for file in place.glob("*out*")) == ["out.json", "out.mp4"]
    assert not lock.exists()


def test_latents_that_are_not_finite_end_the_run_and_are_not_kept(animate, place, monkeypatch):
    """Resumed from them, the same command failed for ever."""
    whole = torch.isfinite
    monkeypatch.setattr(torch, "isfinite", lambda latents: torch.zeros_like(whole(latents)))
    with pytest.raises(CheckFailed, match="not finite") as caught:
        animate(refine_face="off")
    assert "float16" not in str(caught.value.hint)  # the run was in float32
    assert not (place / ".out.mp4.state").exists()
    monkeypatch.setattr(torch, "isfinite", whole)
    assert animate(refine_face="off").video.exists()
