"""The recordings of the reference implementation hold, and the tool that compares them can fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import parity

REFERENCE = Path(__file__).parent / "golden" / "reference"


def spoilt(folder: Path, case: str, tensor: str, by: float) -> Path:
    """A copy of the recordings that ``case`` needs, with one number of one tensor moved by ``by``."""
    folder.mkdir()
    for name in ("configs.json", "state_shapes.json", f"{case}.json", f"{case}.safetensors"):
        if (REFERENCE / name).exists():
            shutil.copy(REFERENCE / name, folder / name)
    tensors = load_file(folder / f"{case}.safetensors")
    tensors[tensor].view(-1)[0] += by
    save_file(tensors, folder / f"{case}.safetensors")
    return folder


def test_a_rows_peak_is_that_of_its_own_card(monkeypatch):
    asked: list[object] = []
    monkeypatch.setattr(parity, "serve", lambda measure: asked.append(measure("parity/unet_io/float32")["peak"]))
    monkeypatch.setattr(parity, "CASES", {"unet_io": lambda *_: [parity.Error("x", 0.0, 1.0)]})
    for name, answer in (("is_available", True), ("device_count", 2), ("init", None)):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 5 if device else 0)
    parity.serve_rows(REFERENCE, "dev", "cuda:1")
    assert asked == [torch.device("cuda:1"), 5]


@pytest.mark.parametrize("case", parity.CASES)
def test_every_recording_is_met(case):
    errors = parity.run(REFERENCE, "dev", [case])[case]
    assert errors
    assert not [error for error in errors if not error.holds]


def test_all_cases_are_recorded_here():
    assert [name for name in parity.CASES if not any(REFERENCE.glob(f"{name}.*"))] == []


def test_the_tool_says_what_it_compared_and_leaves_with_nought(capsys):
    assert parity.main([str(REFERENCE), "--only", "pose_net_io", "id_adapter_io"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["pose_net_io", "id_adapter_io"]
    assert lines[-1] == "2 of 2 within tolerance"


@pytest.mark.parametrize("case", ["pose_net_io", "id_adapter_io", "face_encoder_io"])
def test_a_spoilt_recording_is_told_by_name_and_exit_code(tmp_path, capsys, case):
    folder = spoilt(tmp_path / "spoilt", case, "output", 2e-4)
    assert parity.main([str(folder)]) == 1
    said = capsys.readouterr().out
    assert "BEYOND" in said
    assert said.splitlines()[-1] == f"0 of 1 within tolerance; beyond: ['{case}']"


def test_a_spoilt_latent_of_a_pipeline_is_told(tmp_path, capsys):
    folder = spoilt(tmp_path / "spoilt", "basic_pipeline_ramp", "latents_after_each_step", 10.0)
    assert parity.main([str(folder)]) == 1
    beyond = [line for line in capsys.readouterr().out.splitlines() if line.endswith("BEYOND")]
    assert [line[23:].split("  ")[0] for line in beyond] == ["latents / spread"]


def test_weights_of_another_prefix_are_not_those_recorded():
    (error,) = parity.run(REFERENCE, "other", ["pose_net_io"])["pose_net_io"]
    assert not error.holds


def test_not_a_number_is_beyond_any_limit():
    assert not parity.Error("x", float("nan"), 1.0).holds


def test_a_recording_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2,\), recorded \(3,\)"):
        parity.distance(torch.zeros(2), torch.zeros(3))


def test_a_folder_without_any_case_fails(tmp_path, capsys):
    for name in ("configs.json", "state_shapes.json"):
        shutil.copy(REFERENCE / name, tmp_path / name)
    assert parity.main([str(tmp_path)]) == 1
    assert "0 of 0" in capsys.readouterr().out
