"""An option that changes nothing beside the others is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.animate import run
from stableanimator_cli.animate.no_effect import options_without_effect
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.media import write_image
from stableanimator_cli.motion.motion_file import save_motion
from tests.animate.clips import Heard
from tests.waving import waving

FILES = {"reference": Path("a.png"), "motion": Path("b.npz"), "output": Path("c.mp4"), "model": "puppet"}


def messages(*, recogniser: bool = True, file: Path | None = None, **flags: Any) -> list[str]:
    config, model = run.resolve_config({**FILES, **flags}, file)
    assert isinstance(config, AnimateConfig)
    if not recogniser:
        model = replace(model, files={role: path for role, path in model.files.items() if role != "face"})
    return options_without_effect(config, model, {**FILES, **flags})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"preset": "fast", "refine_iters": 3, "refine_lr": 0.2},
         "--refine-iters, --refine-lr: no effect, as faces are not optimised (preset fast): add --refine-face crop"),
        ({"preset": "fast", "refine_face": "off", "refine_steps": "0:2"},
         "--refine-steps: no effect, as faces are not optimised (--refine-face off): add --refine-face crop"),
        ({"preset": "standard", "refine_iters": 0, "refine_target": 0.5},
         "--refine-target: no effect, as faces are not optimised (no iter"),
        ({"preset": "standard", "recogniser": False, "refine_lr": 0.2},
         "--refine-lr: no effect, as faces are not optimised: puppet has no"),
        ({"guidance": 1, "guidance_interval": "1:5"}, "--guidance-interval: no effect, as a guidance of 1 or less"),
        ({"preview": True, "preview_every": 2}, "--preview-every: no effect, as there is no live preview: add --prev"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_named_with_the_reason(flags: dict[str, Any], message: str) -> None:
    [found] = messages(**flags)
    assert found.startswith(message)


def test_a_setting_of_a_config_file_is_not_named_as_a_flag(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('preset = "standard"\n[refine]\nface = "off"\n', encoding="utf-8")
    [found] = messages(file=file, refine_lr=0.2)
    assert found.startswith("--refine-lr: no effect, as faces are not optimised (by a config file or the model's card)")


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"preset": "fast"},
        {"preset": "fast", "refine_face": "crop", "refine_iters": 3},
        {"preset": "released", "refine_iters": 3},
        {"preview": "live", "preview_every": 2, "guidance": "1:3", "guidance_interval": "1:5"},
        {"preset": "standard", "refine_iters": 0},
    ],
)
def test_options_that_are_used_are_not_named(flags: dict[str, Any]) -> None:
    assert messages(**flags) == []


@pytest.mark.parametrize(("other", "exists"), [("out.gif", True), ("out.gif", False), ("out.mp4", True)])
def test_a_run_that_replaces_the_record_of_another_output_says_so(tmp_path: Path, other: str, exists: bool) -> None:
    (tmp_path / "out.json").write_text(json.dumps({"output": {"path": str(tmp_path / other)}}))
    if exists:
        (tmp_path / other).write_bytes(b"")
    config, _ = run.resolve_config({**FILES, "output": tmp_path / "out.mp4"}, None)
    expected = "out.json, the record of out.gif, is replaced: out.gif can no longer be replayed"
    assert list(run._record_of_other(config)) == ([expected] if (other, exists) == ("out.gif", True) else [])


def test_a_plan_warns_of_them(tmp_path: Path) -> None:
    write_image(tmp_path / "face.png", np.zeros((64, 64, 3), np.uint8))
    save_motion(tmp_path / "poses.npz", waving(2))
    flags = {"reference": tmp_path / "face.png", "motion": tmp_path / "poses.npz", "output": tmp_path / "out.mp4"}
    flags |= {"model": "puppet", "size": "64x64", "allow_no_face": True, "preset": "fast", "refine_iters": 2}
    heard = Heard()
    run.run(flags=flags, plan_only=True, reporter=heard)
    assert any("--refine-iters: no effect, as faces are not optimised (preset fast)" in line for line in heard.warnings)
