"""``sa doctor``: each thing that breaks machines is found, named, and given the command that mends it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stableanimator_cli import catalogue, doctor
from stableanimator_cli.cli.verbs import app
from stableanimator_cli.doctor import Finding
from tests.conftest import ROOT, Run

Usage = namedtuple("Usage", "total used free")
GIB = 1 << 30


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say which distributions are installed, whether probes work, and whether there is a card."""

    def say(versions: dict[str, str], works: bool = True, words: str = "", card: bool = False) -> None:
        monkeypatch.setattr(doctor, "version_of", versions.get)
        monkeypatch.setattr(doctor, "_probe", lambda code: (works, words))
        monkeypatch.setattr(doctor, "_nvidia", lambda: card)

    return say


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SA_MODEL", raising=False)
    return tmp_path / "home"


def only(found: Iterable[Finding], state: str) -> Finding:
    """The one finding of that state; all but the good ones have something to type."""
    found = list(found)
    assert all((finding.mend is None) == (finding.state == "ok") for finding in found)
    (one,) = [finding for finding in found if finding.state == state]
    return one


def test_this_machine_is_examined_without_torch(sa: Run) -> None:
    done = sa("doctor", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["healthy"] else 8)
    assert {row["check"] for row in told["findings"]} >= {
        "packages",
        "torchvision",
        "opencv",
        "video",
        "models",
        "disk",
    }
    assert all((row["mend"] is None) == (row["state"] == "ok") for row in told["findings"])
    probe = "import sys, stableanimator_cli.doctor as d; list(d.models()); print('torch' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "False"


def test_what_is_broken_leaves_with_8_and_the_rest_is_still_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def crashes() -> list[Finding]:
        raise ZeroDivisionError("by\nnothing")

    def fine() -> list[Finding]:
        return [Finding(check="b", state="ok", found="good")]

    monkeypatch.setattr(doctor, "CHECKS", {"a": crashes, "b": fine})
    done = CliRunner().invoke(app, ["doctor", "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == told["exit_code"] == 8
    assert told["error"] == "check-failed"
    assert [row["state"] for row in told["findings"]] == ["broken", "ok"]
    assert told["findings"][0]["found"] == "the check itself failed: ZeroDivisionError: by nothing"
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 8
    assert "broken  a: the check itself" in done.stdout
    assert "        mend: " in done.stdout
    assert "1 of 2 findings would break a run" in done.stderr
    monkeypatch.setattr(doctor, "CHECKS", {"b": fine})
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("--frames", "7"), {"frames": 7, "device": "auto"}),
        (("--device", "cpu"), {"frames": 72, "device": "cpu"}),
        (("--card", "RTX 4090"), {"frames": 72, "card": "RTX 4090"}),
    ],
)
def test_an_option_of_a_video_alone_asks_for_the_usual_model(
    words: tuple[str, ...], asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    received: dict[str, object] = {}

    def examine_model(**options: object) -> doctor.Diagnosis:
        received.update(options)
        return doctor.Diagnosis(findings=())

    monkeypatch.setattr("stableanimator_cli.animate.capacity.examine_model", examine_model)
    assert CliRunner().invoke(app, ["doctor", *words]).exit_code == 0
    assert received.items() >= {"model": None, **asked}.items()


def test_a_package_that_is_missing_or_too_old_is_named(installed) -> None:
    names = dict(doctor._required())
    assert {"torch", "av", "rtmlib"} <= names.keys()
    good = {"torch": "2.13.0+cpu", "av": "18.1.0", "diffusers": "0.42.1"}
    everything = {name: wanted.split(",")[0].removeprefix(">=") for name, wanted in names.items()} | good
    installed(everything)
    assert [finding.state for finding in doctor.packages()] == ["ok"]
    installed({name: v for name, v in everything.items() if name != "av"})
    missing = only(doctor.packages(), "broken")
    assert missing.found == "av is not installed"
    assert missing.mend == "pip install 'av>=18.1,<19'"
    installed(everything | {"diffusers": "0.30.0"})
    assert only(doctor.packages(), "broken").found == "diffusers 0.30.0, expected >=0.42,<0.43"
    installed({k: v for k, v in everything.items() if k != "onnxruntime"} | {"onnxruntime-gpu": "1.32.0"})
    assert [finding.state for finding in doctor.packages()] == ["ok"]


def test_ranges_read_alike_from_a_checkout_and_from_built_metadata(monkeypatch) -> None:
    built = ["av<19,>=18.1", "torch>=2.13", "pytest>=8; extra == 'dev'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: built)
    assert list(doctor._required()) == [("av", ">=18.1,<19"), ("torch", ">=2.13")]


def test_a_torchvision_that_does_not_load_is_broken_and_one_that_does_is_not_needed(installed) -> None:
    installed({"torch": "2.13.0"})
    assert only(doctor.torchvision(), "ok").mend is None
    here = {"torchvision": "0.28.0", "torch": "2.13.0+cpu"}
    installed(here, works=False, words="RuntimeError: operator torchvision::nms does not exist")
    broken = only(doctor.torchvision(), "broken")
    assert "0.28.0 does not load beside torch 2.13.0+cpu" in broken.found
    assert "torchvision::nms" in broken.found
    assert broken.mend == "pip uninstall -y torchvision"
    installed(here)
    assert only(doctor.torchvision(), "note").mend == "pip uninstall -y torchvision"


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ({"opencv-python": "5.0.0.93", "opencv-contrib-python": "4.12.0.88"}, "more than one version"),
        ({"opencv-python": "5.0.0.93", "opencv-python-headless": "5.0.0.93"}, "headless build beside"),
    ],
)
def test_opencv_packages_that_overwrite_each_other(installed, here: dict[str, str], words: str) -> None:
    installed(here)
    broken = only(doctor.opencv(), "broken")
    assert words in broken.found
    assert str(broken.mend).startswith(f"pip uninstall -y {' '.join(here)} && pip install opencv-python==5.0.0.93")


def test_a_library_of_the_system_that_opencv_misses_is_named(installed) -> None:
    words = "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"
    installed({"opencv-python": "5.0.0.93"}, works=False, words=words)
    assert only(doctor.opencv(), "broken").mend == "apt-get install -y libgl1"
    installed({"opencv-python": "5.0.0.93"}, works=False, words=words.replace("libGL.so.1", "libgthread-2.0.so.0"))
    assert only(doctor.opencv(), "broken").mend == "apt-get install -y libglib2.0-0"
    installed({"opencv-python": "5.0.0.93"}, words="5.0.0")
    assert "cv2 5.0.0 loads" in only(doctor.opencv(), "ok").found


def test_two_builds_of_onnxruntime_and_one_that_leaves_the_card_alone(installed) -> None:
    both = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"}
    installed(both, card=True)
    mend = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime"
    assert only(doctor.onnxruntime(), "broken").mend == mend + "-gpu"
    installed(both)
    assert only(doctor.onnxruntime(), "broken").mend == mend
    installed({"onnxruntime": "1.32.0"}, words="CPUExecutionProvider", card=True)
    assert "detected on the CPU" in only(doctor.onnxruntime(), "note").found
    installed({"onnxruntime-gpu": "1.32.0"}, words="CUDAExecutionProvider CPUExecutionProvider", card=True)
    only(doctor.onnxruntime(), "ok")
    installed({"onnxruntime": "1.32.0"}, works=False, words="killed by signal 4")
    assert "killed by signal 4" in only(doctor.onnxruntime(), "broken").found


def test_a_pyav_without_x264(installed) -> None:
    installed({"av": "18.1.0"}, words="libx264 libx264rgb")
    assert "without libx264, libx264rgb" in only(doctor.video(), "broken").found
    installed({"av": "18.1.0"})
    only(doctor.video(), "ok")


def test_a_card_that_torch_does_not_use(installed) -> None:
    installed({"torch": "2.13.0"})
    only(doctor.gpu(), "ok")
    installed({"torch": "2.13.0+cpu"}, card=True)
    assert only(doctor.gpu(), "broken").mend == "pip uninstall -y torch && pip install torch"
    installed({"torch": "2.13.0"}, card=True, words="")
    assert only(doctor.gpu(), "broken").mend == "nvidia-smi"
    installed({"torch": "2.13.0"}, card=True, words="NVIDIA H200 (139 GiB)")
    assert "H200" in only(doctor.gpu(), "ok").found


def test_a_card_that_this_build_of_torch_has_no_kernels_for(installed, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch finds an old card and describes it, and the first kernel fails."""
    probe = doctor._probe
    installed({"torch": "2.13.0"}, card=True)
    absent = (
        "import types, torch\n"
        "def ones(*_, **__):\n"
        "    raise RuntimeError('CUDA error: no kernel image is available\\nFor debugging consider')\n"
        "torch.ones, torch.cuda.is_available, torch.cuda.device_count = ones, lambda: True, lambda: 1\n"
        "about = types.SimpleNamespace(name='GTX 1080 Ti', total_memory=11 << 30)\n"
        "torch.cuda.get_device_properties = lambda i: about\n"
    )
    monkeypatch.setattr(doctor, "_probe", lambda code: probe(absent + code))
    finding = only(doctor.gpu(), "broken")
    assert finding.found.endswith("cannot use: CUDA error: no kernel image is available")
    assert "pytorch.org" in (finding.mend or "")


def test_what_a_download_would_leave_is_deleted_first(home: Path) -> None:
    empty = home / "models/vjepa-vith16/vith16.pth.tar"
    empty.parent.mkdir(parents=True)
    empty.touch()
    found = [finding for finding in doctor.models() if str(empty) in finding.found]
    assert [finding.mend for finding in found] == [f"rm {empty} && sa models pull vjepa-vith16"]


def test_models_that_are_cut_empty_nested_or_gone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(state: str) -> list[Finding]:
        return [finding for finding in doctor.models() if finding.state == state]

    assert rows("broken") == []
    assert "not downloaded" in rows("note")[0].found
    assert rows("note")[0].mend == "sa models pull stableanimator"

    entry = catalogue.entry("antelopev2")
    names = [row.path for row in entry.files if not row.optional]
    store = catalogue.model_cache_dir("antelopev2")
    (store / "antelopev2").mkdir(parents=True)
    assert any(f"{store} is an empty folder" in finding.found for finding in rows("note"))

    first = store / "antelopev2" / names[0]
    first.parent.mkdir(parents=True, exist_ok=True)
    first.write_bytes(b"x" * 2000)
    told = [finding.found for finding in rows("broken")]
    assert any(f"lacks {len(names) - 1} of {len(names)} files" in line for line in told)
    assert any("found 2000 bytes, expected" in line for line in told) == (entry.files[0].bytes is not None)
    assert all(finding.mend == "sa models pull antelopev2" for finding in rows("broken"))
    (nested,) = [finding for finding in rows("note") if "one level too deep" in finding.found]
    assert nested.mend == f"mv {store}/antelopev2/* {store}/ && rmdir {store}/antelopev2"

    (home / "models" / "mine").symlink_to(home / "gone")
    assert any("a link to a missing file" in finding.found for finding in rows("note"))
    monkeypatch.setenv("SA_MODEL", "pupet")
    assert [f.mend for f in rows("broken") if "SA_MODEL is 'pupet'" in f.found] == ["unset SA_MODEL"]


def test_too_little_room(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: Usage(0, 0, GIB // 2))
    found = list(doctor.disk())
    assert [finding.state for finding in found] == ["broken"] * 3
    assert found[0].mend == "export SA_HOME=/a/folder/with/room"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: Usage(0, 0, GIB * 3 // 2))
    assert "stableanimator takes at least 7.9 GiB" in only(doctor.disk(), "note").found
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: Usage(0, 0, 500 * GIB))
    assert [finding.state for finding in doctor.disk()] == ["ok"]


def test_little_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: Usage(0, 0, 64 << 20))
    assert "0.06 GiB free" in only(doctor.shared_memory(), "note").found
    monkeypatch.setattr(doctor, "SHM", tmp_path / "none")
    assert "--shm-size" in str(only(doctor.shared_memory(), "note").mend)


def test_a_probe_survives_what_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._probe("print(1); print(2)") == (True, "2")
    assert doctor._probe("raise ValueError('no')") == (False, "ValueError: no")
    assert doctor._probe("import os; os.abort()") == (False, "killed by signal 6")
    monkeypatch.setattr(doctor, "_PROBE_SECONDS", 0.3)
    assert doctor._probe("import time; time.sleep(30)") == (False, "no answer in 0.3 s")
