"""Blends are compared by intervals of paired differences over clips, and against a control."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stableanimator_cli.bench.results import update_page
from stableanimator_cli.catalogue import open_model
from stableanimator_cli.diffusion.guidance import alternate, windowed_denoiser
from stableanimator_cli.diffusion.sampler import sample_euler
from stableanimator_cli.diffusion.schedule import initial_scale, karras_sigmas, scalings
from stableanimator_cli.diffusion.windows import plan_windows
from tools.bench import blending


def clips(seams: float, added: float, psnr: float = 0.0, limbs: float = 0.0) -> list[blending.Clip]:
    """Clips that differ much more than blends do; shifted windows have no seam score."""
    rng = np.random.default_rng(0)
    out: list[blending.Clip] = []
    for _ in range(8):
        hard = rng.uniform(1, 3)
        upstream = {
            "windows": 11,
            "seams": 1.0,
            "there": hard,
            "added": 5 * hard,
            "psnr": 20 + hard,
            "limbs": 0.03,
        }
        ours = upstream | {
            "there": hard - seams + rng.normal(0, 0.01),
            "added": 5 * hard - added + rng.normal(0, 0.01),
            "psnr": 20 + hard + psnr,
            "limbs": 0.03 + limbs,
        }
        out.append({"upstream": upstream, "smooth": ours, "shifted": ours | {"seams": None}})
    return out


def test_a_gain_smaller_than_the_spread_of_clips_is_detected():
    checked = blending.check_requirements(clips(0.1, 0.2))
    assert [(requirement.blend, requirement.figure) for requirement in checked] == [
        (blend, figure) for blend in ("smooth", "shifted") for figure in ("there", "added", "psnr", "limbs")
    ]
    assert all(requirement.holds for requirement in checked)
    seams = checked[0].difference
    assert -0.12 < seams.low <= seams.value <= seams.high < -0.08


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"seams": 0.0}, "there"),
        ({"added": -0.1}, "added"),
        ({"psnr": -0.02}, "psnr"),
        ({"limbs": 0.001}, "limbs"),
    ],
)
def test_each_requirement_can_fail(change: dict[str, float], missed: str):
    checked = blending.check_requirements(clips(**{"seams": 0.1, "added": 0.2, **change}))
    assert {requirement.figure for requirement in checked if not requirement.holds} == {missed}
    tolerated = blending.check_requirements(clips(0.1, 0.2, psnr=-0.005, limbs=0.0002))
    assert all(requirement.holds for requirement in tolerated)  # certain losses, but invisible


def test_a_clip_without_a_figure_is_left_out():
    found = clips(0.1, 0.2)
    found[0]["smooth"]["limbs"] = None
    rows = blending.tables(found, blending.BlendingRun())[1].rows
    assert [row["clips lower"].partition(" of ")[2] for row in rows if row["blend"] == "smooth"] == ["8", "8", "8", "7"]


def test_a_border_is_distinguished_from_movement():
    """A constant offset from frame 4 on, over a moving video."""
    control = torch.rand((8, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    offset = control.clone()
    offset[4:] += 0.01
    moved = blending.changes(control).sum()
    assert blending.added_change(offset, control) == pytest.approx(0.01 / moved, rel=1e-3)
    assert blending.added_change(control, control) == 0


def test_seams_of_disagreeing_windows_are_smallest_if_shifted():
    """Each window expects a brightness that depends on its position: the posterior mean of a Gaussian of unit variance
    around it, in 25 steps of Euler. All frames start equal, so windows cause every change."""
    sigmas, total = karras_sigmas(25), 64

    def brightness(window) -> float:
        return float(np.sin(7.3 * window.frames[1]))

    def predict(latents, c_noise, window, conditional):
        """v of that mean."""
        sigma = float(np.exp(4 * c_noise))
        scale = scalings(sigma)
        noisy = latents / scale.c_in
        denoised = (noisy + sigma**2 * brightness(window)) / (1 + sigma**2)
        return (denoised - scale.skip * noisy) / scale.out

    def change(blend) -> float:
        plan = plan_windows(total, length=16, overlap=4, blend=blend)
        denoisers = [
            windowed_denoiser(predict, plan.placement(turn), guidance=(1.0, 1.0)) for turn in range(plan.num_placements)
        ]
        x = torch.full((total, 1, 1, 1), 0.3 * initial_scale(float(sigmas[0])))
        frames = sample_euler(alternate(denoisers, iter(range(25))), x, sigmas)
        return float((frames[1:] - frames[:-1]).abs().max())

    upstream, smooth, shifted = (change(blend) for blend in ("upstream", "smooth", "shifted"))
    assert shifted < 0.6 * smooth < 0.6 * upstream


def test_clips_are_rendered_once_and_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blending, "SIZE", (128, 128))
    words = [str(tmp_path / "w"), "--clips", "1", "--frames", "12", "--steps", "1", "--page", str(tmp_path / "page.md")]
    assert blending.main(words) in (0, 8)  # one step of one clip says nothing about blends
    first = capsys.readouterr().out
    monkeypatch.setattr(blending, "compare_clip", lambda *_: pytest.fail("rendered again"))
    assert blending.main(words) in (0, 8)
    assert capsys.readouterr().out == first
    page = (tmp_path / "page.md").read_text()
    assert page.count("<!-- bench blending: generated -->") == 1
    assert "| added change, thousandths |" in page
    assert str(tmp_path) not in page
    assert blending.main([*words, "--seed", "1"]) == 3  # rows of other settings
    assert "rows of other settings (seed)" in capsys.readouterr().err


def test_the_control_overlaps_more_than_the_blends():
    model, trial = open_model("puppet"), blending.BlendingRun()
    assert len(trial.plan(model, None)) > 2 * len(trial.plan(model, "smooth"))
    assert trial.plan(model, "shifted").shifted


def test_no_clips_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        blending.main([str(tmp_path), "--clips", "0"])
    assert "expected 1 clip or more" in capsys.readouterr().err


def test_parts_of_a_page_are_put_between_their_own_markers(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# P\n\ntext\n")
    update_page(page, {"a": "one", "b": "two"})
    update_page(page, {"a": "three"})
    assert page.read_text() == (
        "# P\n\ntext\n\n<!-- bench a: generated -->\nthree\n<!-- bench a: end -->\n\n"
        "<!-- bench b: generated -->\ntwo\n<!-- bench b: end -->\n"
    )
