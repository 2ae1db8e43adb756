"""``sa animate --plan`` reports the memory of a run and what ``--max-memory`` changed; the run does the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stableanimator_cli.animate.result import Animation, AnimationPlan
from stableanimator_cli.animate.run import run
from stableanimator_cli.errors import OutOfMemory
from stableanimator_cli.motion.motion_file import save_motion
from tests.animate.clips import Heard, plain_picture
from tests.tiny import waving


@pytest.fixture
def flags(tmp_path: Path, tiny_model: Path) -> dict[str, object]:
    plain_picture(tmp_path / "person.png")
    save_motion(tmp_path / "poses.npz", waving(8))
    return {
        "reference": tmp_path / "person.png",
        "motion": tmp_path / "poses.npz",
        "output": tmp_path / "out.mp4",
        "model": str(tiny_model),
        "size": "128x128",
        "decode_chunk": 8,
        "allow_no_face": True,
        "steps": 1,
        "device": "cpu",
    }


def test_a_plan_says_its_memory_and_a_limit_below_it_changes_the_run(flags, tmp_path):
    plan = run(flags=flags, plan_only=True)
    assert isinstance(plan, AnimationPlan)
    memory = plan.to_json()["memory"]
    assert memory["total"] == memory["allocated"] + memory["faces"] + memory["reserve"]
    assert memory["allocated"] == max(sum(stage.values()) for stage in memory["stages"].values())
    assert plan.to_json()["chosen"] == []
    assert "predicted" in plan.summary()

    flags["fit"] = f"{memory['total'] / 2**20 - 1:.2f}MiB"
    less = run(flags=flags, plan_only=True)
    assert isinstance(less, AnimationPlan)
    data = less.to_json()
    assert data["memory"]["total"] < memory["total"]
    assert [choice["what"] for choice in data["chosen"]] == ["--decode-chunk 4"]
    assert "--max-memory      --decode-chunk 4 (approximate" in less.summary()

    heard = Heard()
    report = run(flags=flags, reporter=heard)
    assert isinstance(report, Animation)
    assert any("to fit: --decode-chunk 4 (approximate" in note for note in heard.notes)
    assert report.calls["vae_decode"] == data["calls"]["vae_decode"] == 2
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["config"]["decode"]["chunk"] == 4
    assert "fit" not in record["config"]["device"]  # repeated as it was, on whatever machine


def test_what_cannot_fit_is_refused_before_anything_is_done(flags, tmp_path):
    for plan_only in (True, False):
        with pytest.raises(
            OutOfMemory, match=r"--max-memory 0\.1GB \(0\.09 GiB\) is too small; the minimum is"
        ) as caught:
            run(flags=flags | {"fit": "100MB"}, plan_only=plan_only)
        assert caught.value.exit_code == 6
        assert "smaller --size" in str(caught.value.hint)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["person.png", "poses.npz"]


def test_weights_of_one_byte_render_and_are_recorded(flags, tmp_path):
    run(flags=flags | {"quantize": "int8", "ff_pieces": 4, "guidance_interval": "1:100"})
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["device"] == "cpu, float32, int8 weights"
    assert record["config"]["device"] | {"quantization": "int8", "ff_chunks": 4} == record["config"]["device"]
    assert record["config"]["sampling"]["guidance_interval"] == "1:100"


def test_an_interval_without_a_step_is_a_warning(flags):
    """Two steps of the usual levels are 700 and 0.002: the interval would hold some of more steps."""
    said = "nothing is guided: --guidance-interval 0.3:5 holds no noise level of 2 step(s)"
    for more, warned in (({"steps": 2}, True), ({"steps": 5}, False), ({"steps": 2, "guidance": 1.0}, False)):
        heard = Heard()
        plan = run(flags=flags | {"guidance_interval": "0.3:5"} | more, plan_only=True, reporter=heard)
        assert (said in heard.warnings) is warned, more
        calls = plan.to_json()["calls"]
        assert (calls["unet"] == calls["windows"]) is (warned or "guidance" in more)
