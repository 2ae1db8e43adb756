"""Flags of the reference implementation: the error names ours, the page lists them, and ours exist."""

from __future__ import annotations

import re
import sys

import pytest

from stableanimator_cli import __main__ as entry
from stableanimator_cli.cli.reference_flags import VERBS, counterpart
from stableanimator_cli.cli.verbs import load_verb
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "from-the-reference.md").read_text(encoding="utf-8")
CASES = [(verb, flag, ours) for verb, flags in VERBS.items() for flag, ours in flags.items()]
KEYS = {"loss.dropout_prob", *(f"optimizer.{key}" for key in ("beta1", "beta2", "weight_decay", "epsilon"))}


def options_of(verb: str) -> set[str]:
    return {name for option in load_verb(verb).params for name in (*option.opts, option.metavar or "")}


@pytest.mark.parametrize(("verb", "flag", "ours"), CASES, ids=[f"{verb} {flag}" for verb, flag, _ in CASES])
def test_our_counterpart_exists_and_is_listed(verb: str, flag: str, ours: str) -> None:
    known = options_of(verb)
    assert flag not in known
    named = re.findall(r"--[a-z-]+|\b[A-Z]{5,}\b", ours)
    assert named or re.match(r"not needed here|no counterpart here|stages|loss\.|optimizer\.", ours)
    assert [name for name in named if name not in known and f"{name}..." not in known] == []
    assert set(re.findall(r"\b[a-z]+\.[a-z_0-9]+\b", ours)) <= KEYS
    section = PAGE[PAGE.index(f": `sa {verb}`\n") :]
    assert f"`{flag}`" in section.split("\n\n")[1]


def test_keys_of_config_files_exist() -> None:
    from stableanimator_cli.config.train import LossConfig, OptimizerConfig

    fields = {"loss": LossConfig.__dataclass_fields__, "optimizer": OptimizerConfig.__dataclass_fields__}
    assert all(key.split(".")[1] in fields[key.split(".")[0]] for key in KEYS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("animate a.png b.mp4 -o c.mp4 --tile_size 16", "no option --tile_size: --window here"),
        ("animate a.png b.mp4 -o c.mp4 --tile_size=16", "no option --tile_size: --window here"),
        ("animate --validation_image a.png", "no option --validation_image: REFERENCE here, the first argument"),
        ("train d -o r --learning_rate 1e-5", "no option --learning_rate: --lr here"),
        ("animate a b -o c --learning_rate 1", "no option --learning_rate: an option of `sa train`: --lr here"),
        ("preprocess v --ref_image_path a.png", "no option --ref_image_path: --reference here, with --align upstream"),
        ("animate a b -o c --zzz 1", "no such option: --zzz"),
    ],
)
def test_the_error_leads_to_our_flag(
    line: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sa", *line.split()])
    with pytest.raises(SystemExit) as left:
        entry.main()
    assert left.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"sa: {message}"
    assert lines[1].startswith(f"hint: `sa {line.split()[0]} --help`")


def test_other_words_and_other_verbs_have_no_counterpart() -> None:
    assert counterpart("models", "--tile_size") is None
    assert counterpart("animate", "--nonsense") is None
