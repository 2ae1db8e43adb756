"""Cards that are not here: the table, the names that users type, and what is estimated from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stableanimator_cli.animate.capacity import examine_model
from stableanimator_cli.cards import SHARE, cards, find_card, read_cards
from stableanimator_cli.cli.verbs import app
from stableanimator_cli.errors import BadInput, ConfigError


def test_every_row_is_plausible_and_named_once():
    assert len({card.name for card in cards()}) == len(cards()) > 15
    for card in cards():
        assert 0 < card.fp32 < card.fp16 <= 2500
        assert card.bf16 in (None, card.fp16)
        assert 100 < card.bandwidth < 10_000
        assert 4 <= card.memory <= 300
        assert card.source.startswith("NVIDIA")


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 3060", "RTX 3060"),
        ("rtx-a6000", "RTX A6000"),
        ("a100-80gb", "A100 80GB"),
        ("Tesla T4", "T4"),
        ("L4", "L4"),
        ("h100 pcie", "H100 PCIe"),
    ],
)
def test_a_card_is_found_by_what_people_type(typed, name):
    assert find_card(typed).name == name


def test_names_of_no_card_or_of_several_are_refused():
    with pytest.raises(ConfigError, match=r"one of A100 40GB, A100 80GB$"):
        find_card("a100")
    with pytest.raises(ConfigError, match=r"one of A100 40GB.*RTX 5090") as raised:
        find_card("RTX 4091")
    assert "RTX 409" in (raised.value.hint or "")
    for nothing in ("", "NVIDIA", "---"):
        with pytest.raises(ConfigError):
            find_card(nothing)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bandwidth", "0"),
        ("bandwidth", '"2 TB/s"'),
        ("bandwidth", "nan"),
        ("bandwidth", "true"),
        ("memory", "80.5"),
        ("fp32", "-1"),
        ("bf16", "0"),
        ("share", "inf"),
        ("source", "3"),
    ],
)
def test_a_table_with_a_value_that_cannot_be_is_refused(tmp_path: Path, key: str, value: str):
    entry = {"name": '"Own"', "fp16": "100", "fp32": "50", "bandwidth": "2000", "memory": "80", "source": '"me"'}
    table = tmp_path / "cards.toml"
    for rows, good in ((entry, True), (entry | {key: value}, False)):
        table.write_text("[[card]]\n" + "".join(f"{name} = {text}\n" for name, text in rows.items()))
        if good:
            assert [card.name for card in read_cards(table)] == ["Own"]
        else:
            with pytest.raises(BadInput, match=r"cards\.toml: (found other tables|.*not finite)"):
                read_cards(table)


def test_time_and_memory_are_those_of_the_card(monkeypatch):
    known = {name: examine_model(model="puppet", size="64x64", frames=8, card=name) for name in ("T4", "RTX 4090")}
    t4, ada = (known[name].data for name in ("T4", "RTX 4090"))
    assert (t4["device"], ada["device"]) == ("T4, float16", "RTX 4090, bfloat16")
    assert (t4["available"], ada["available"]) == (16 << 30, 24 << 30)
    assert t4["duration"]["flops"] == ada["duration"]["flops"]
    assert t4["duration"]["source"] == "NVIDIA T4 data sheet"
    assert t4["duration"]["measured"] is None
    assert t4["duration"]["seconds"] == pytest.approx(t4["duration"]["flops"] / (SHARE * 65e12), abs=0.06)
    assert "at 28% of 165 TFLOP/s (NVIDIA Ada GPU architecture white paper)" in known["RTX 4090"].summary()
    monkeypatch.setattr("stableanimator_cli.cards.Card.bytes", 1 << 28)
    assert examine_model(model="puppet", size="64x64", frames=8, card="T4").exit_code == 8


def test_the_command_line_plans_for_a_card(tmp_path: Path):
    run = CliRunner().invoke(app, ["doctor", "--model", "puppet", "--size", "64x64", "--card", "4090", "--json"])
    assert run.exit_code == 0
    assert json.loads(run.stdout)["device"] == "RTX 4090, bfloat16"
    device = ["doctor", "--model", "puppet", "--card", "4090", "--device", "cpu"]
    assert "no --device with --card" in str(CliRunner().invoke(app, device).exception)
    alone = ["animate", "a.png", "b.npz", "-o", str(tmp_path / "o.mp4"), "--card", "4090"]
    assert "--plan beside it" in str(CliRunner().invoke(app, alone).exception)
