"""ONNX sessions: files that cannot be models, devices, and what is said about them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import pytest

from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.errors import ModelDamaged, ModelMissing, OutOfMemory
from stableanimator_cli.progress import NullReporter
from tests import onnx_samples


def test_a_file_opens_and_runs(tmp_path: Path) -> None:
    opened = onnx.session(onnx_samples.arcface(tmp_path / "a.onnx"), "cpu", threads=1)
    (out,) = onnx.run(opened, np.ones((2, 3, 112, 112), np.float32))
    assert out.shape == (2, 512)
    assert opened.get_session_options().intra_op_num_threads == 1
    assert onnx.describe(opened, "cpu") == "CPU"
    assert onnx.batch_axis(opened) is None
    assert onnx.batch_axis(onnx.session(onnx_samples.yolox(tmp_path / "y.onnx"), "cpu")) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "found nothing in it"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "found a git-lfs pointer, expected the weights",
        ),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"\x80\x02}q\x00.", "does not open as an ONNX model"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelDamaged, match=says) as caught:
        onnx.session(path, "cpu")
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    if "git-lfs" in says:
        assert (
            caught.value.hint == "run `git lfs pull` in its folder, or copy it again from where its folder comes from"
        )


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x80\x02}q\x00."])
def test_a_damaged_file_is_fetched_again_only_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """The hint named no model, and a download does not write into other folders."""
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    for folder, hint in (
        ("home/models/dwpose", "download it again: `sa models pull dwpose`"),
        ("mine", "copy it again from where its folder comes from"),
    ):
        path = tmp_path / folder / "yolox_l.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        with pytest.raises(ModelDamaged) as caught:
            onnx.session(path, "cpu")
        assert caught.value.hint == hint


def test_a_cut_off_file_is_damaged(tmp_path: Path) -> None:
    path = onnx_samples.arcface(tmp_path / "a.onnx")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelDamaged, match=r"a\.onnx: does not open"):
        onnx.session(path, "cpu")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="no such file"):
        onnx.session(tmp_path / "none.onnx")
    with pytest.raises(ModelDamaged, match="found a folder"):
        onnx.session(tmp_path)


def test_providers_follow_the_device() -> None:
    gpu = [onnx.CPU, onnx.CUDA]
    cuda = {"cudnn_conv_algo_search": "HEURISTIC"}
    assert onnx.providers_for("auto", gpu) == [(onnx.CUDA, cuda | {"device_id": 0}), onnx.CPU]
    assert onnx.providers_for("cuda:3", gpu) == [(onnx.CUDA, cuda | {"device_id": 3}), onnx.CPU]
    assert onnx.providers_for("cpu", gpu) == [onnx.CPU]
    assert onnx.providers_for("cuda", [onnx.CPU]) == [onnx.CPU]
    assert onnx.providers_for("mps", [onnx.COREML, onnx.CPU]) == [onnx.COREML, onnx.CPU]
    assert onnx.providers_for("auto", ["AzureExecutionProvider", onnx.CPU]) == [onnx.CPU]


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "mps:1", "cuda:-1"])
def test_unknown_devices_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match="device"):
        onnx.providers_for(device)


def test_no_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="threads"):
        onnx.session_options(0)


def test_a_fallback_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opened:
        def get_providers(self) -> list[str]:
            return [onnx.CPU]

    opened = cast(ort.InferenceSession, Opened())
    monkeypatch.setattr(ort, "get_available_providers", lambda: [onnx.CPU])
    assert "install onnxruntime-gpu" in onnx.describe(opened, "cuda:1")
    assert "cuda:1 was requested" in onnx.describe(opened, "cuda:1")
    monkeypatch.setattr(ort, "get_available_providers", lambda: [onnx.CUDA, onnx.CPU])
    assert "libraries did not load" in onnx.describe(opened, "cuda")
    assert onnx.describe(opened, "auto") == "CPU (CUDA was chosen, but its libraries did not load)"
    assert onnx.describe(opened, "cpu") == "CPU"


def test_a_full_device_is_said() -> None:
    class Opened:
        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="data")]

        def run(self, _: None, feeds: dict[str, np.ndarray]) -> None:
            raise RuntimeError("Failed to allocate memory for requested buffer" if len(feeds["data"]) > 1 else "other")

    opened = cast(ort.InferenceSession, Opened())
    with pytest.raises(OutOfMemory, match="a batch of 4"):
        onnx.run(opened, np.ones(4))
    with pytest.raises(RuntimeError, match="other"):
        onnx.run(opened, np.ones(1))


@pytest.mark.parametrize("text", ["CUDA failure 2: out of memory", "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"])
def test_a_card_without_room_for_the_weights_does_not_make_the_file_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def start(self: ort.InferenceSession, *_: Any, **__: Any) -> None:
        raise RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {text}")

    folder = onnx_samples.faces(tmp_path / "faces")
    monkeypatch.setattr(ort.InferenceSession, "__init__", start)
    with pytest.raises(OutOfMemory, match="no memory for the ONNX network"):
        onnx.session(next(folder.glob("*.onnx")), "cpu")
    with pytest.raises(OutOfMemory, match="faces"):
        FaceReader(folder, "bgr", "cpu")


def test_a_provider_that_is_given_up_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime prints the error to standard output, which is data."""
    create, started = ort.InferenceSession._create_inference_session, []

    def fail_once(self: ort.InferenceSession, *given: Any) -> None:
        started.append(given)
        self._fallback_providers = [onnx.CPU]
        if len(started) == 1:
            raise RuntimeError("CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version")
        create(self, *given)

    monkeypatch.setattr(ort.InferenceSession, "_create_inference_session", fail_once)
    opened = onnx.session(onnx_samples.arcface(tmp_path / "face.onnx"), "cpu")
    assert opened.get_providers() == [onnx.CPU]
    assert len(started) == 2
    assert capsys.readouterr().out == ""


def test_telemetry_is_off_before_onnxruntime_loads() -> None:
    code = (
        "import os, sys, stableanimator_cli.detect as d\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])\n"
    )
    env = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


class Said(NullReporter):
    def __init__(self) -> None:
        self.warned: list[str] = []

    def warning(self, text: str) -> None:
        self.warned.append(text)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_libraries_load_before_sessions_and_a_fall_to_the_cpu_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Face networks as well, which insightface opens. An ONNX Runtime for cards whose libraries are missing."""
    folder = onnx_samples.faces(tmp_path / "faces")
    events: list[str] = []
    started = ort.InferenceSession.__init__

    def start(self: ort.InferenceSession, *given: Any, **named: Any) -> None:
        events.append("session")
        started(self, *given, **named)

    monkeypatch.setattr(ort.InferenceSession, "__init__", start)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [onnx.CUDA, onnx.CPU])
    monkeypatch.setattr(onnx, "_load_libraries", lambda: events.append("libraries"))
    monkeypatch.setattr(onnx, "_fallbacks", [])
    reader = FaceReader(folder, "bgr", "cuda", threads=1)
    assert events[0] == "libraries"
    assert events.count("session") >= 2
    assert reader.describe() == "CPU (cuda was requested, but its libraries did not load)"
    said = Said()
    onnx.warn_of_fallbacks(said)
    assert len(said.warned) == 2
    assert all("runs on the CPU: the libraries of ONNX Runtime's CUDA provider did not load" in w for w in said.warned)
    onnx.warn_of_fallbacks(said)
    assert len(said.warned) == 2  # once each
    monkeypatch.setattr(reader._recogniser, "session", Elsewhere())
    assert reader.describe() == (
        "detector on CPU (cuda was requested, but its libraries did not load), recogniser on CUDA"
    )


class Elsewhere:
    def get_providers(self) -> list[str]:
        return [onnx.CUDA, onnx.CPU]
