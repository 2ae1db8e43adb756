"""``sa bench card``: rows, failures of each of them, resuming, budget, page, and the entry for the table of cards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stableanimator_cli.bench import card, card_worker, row_process
from stableanimator_cli.bench.card import CardRun, run_card
from stableanimator_cli.bench.card_rows import VARIANTS, CardRow, card_rows, select_rows
from stableanimator_cli.bench.git import code_version
from stableanimator_cli.cards import find_card
from stableanimator_cli.cli.verbs import load_verb
from stableanimator_cli.config.bench import BenchConfig
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.files import locked_output
from stableanimator_cli.progress import NullReporter
from tests.conftest import ROOT

BENCH: Any = load_verb("bench")
STAND_IN = Path(__file__).with_name("card_stand_in.py")
RECORDINGS = ROOT / "tests" / "golden" / "reference"
ALL = card_rows(RECORDINGS, small=False, against=True)
CONFIG = BenchConfig(names=("card",), small=True, device="cpu")
FAILURES = {
    "out-of-memory": "OutOfMemoryError: CUDA out of memory",
    "crash": "its process ended (SIGSEGV): Segmentation fault in a kernel",
    "garbage": "no reply but 'NCCL INFO'",
}


class Card:
    """A run of ``rows`` on the stand-in. ``asked`` are the rows that it was asked for so far."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.log, self.output, self._patch = folder / "log", folder / "card.json", patch

    def run(self, rows: list[CardRow], bad: str = "", how: str = "", config: BenchConfig = CONFIG, **given: Any) -> Any:
        words = [sys.executable, "-IS", str(STAND_IN), str(self.log), bad, how]
        self._patch.setattr(
            card, "process_words", lambda run: dict.fromkeys(("ours", "parity", "reference"), (words, None))
        )
        planned = CardRun(
            config=config, device="cpu", rows=tuple(rows), recordings=None, output=self.output,
            page=self.output.with_suffix(".md"),
        )  # fmt: skip
        return run_card(planned, "sa bench card", NullReporter(), **given)

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines()

    @property
    def rows(self) -> dict[str, Any]:
        return {row["row"]: row for row in json.loads(self.output.read_text())["rows"]}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(tmp_path, monkeypatch)


def test_the_rows_cover_recordings_variants_and_kinds():
    names = [row.name for row in ALL]
    assert len(set(names)) == len(names)
    recorded = {file.stem for file in RECORDINGS.iterdir()} - {"configs", "state_shapes", "skeleton_draw_pose"}
    assert {f"parity/{name}/float32" for name in recorded} <= set(names)
    assert {f"parity/unet_io/{variant}" for variant in VARIANTS} <= set(names)
    for name in (
        "roofline/bfloat16", "unet/512x512", "unet/576x1024", "render/16x576x1024", "render/16x512x512",
        "render/64x512x512", "face/full", "face/crop", "train/paper", "train/puppet", "detectors", "ranks",
        "reference/render/16x576x1024",
    ):  # fmt: skip
        assert name in names
    groups = {name.partition("/")[0] for name in names}
    assert all(hasattr(card_worker.CardWorker, f"_{group}") for group in groups - {"parity", "reference"})


@pytest.mark.parametrize("first", [0, 1])
def test_each_row_can_fail_and_the_next_one_runs(stand_in: Card, first: int):
    bad = [row.name for row in ALL[first::2]]
    report = stand_in.run(ALL, ",".join(bad), ",".join(FAILURES))
    assert list(stand_in.rows) == [row.name for row in ALL]
    cells = {row["row"]: row for table in report.all_tables() for row in table.rows if "row" in row}
    page = stand_in.output.with_suffix(".md").read_text()
    for row in ALL:
        found = stand_in.rows[row.name]
        if row.name not in bad:
            assert found["status"] == "ok"
            continue
        why = list(FAILURES.values())[bad.index(row.name) % len(FAILURES)]
        assert (found["status"], found["reason"]) == ("failed", why)
        assert cells[row.name] == {"row": row.name, "works": "failed", "why not": why}
        assert f"| {row.name} | failed |" in page


def test_a_row_that_hangs_ends_at_its_limit(stand_in: Card):
    rows = [CardRow("face/full", "ours", 0.5), CardRow("face/crop", "ours", 10)]
    stand_in.run(rows, "face/full", "hang")
    assert stand_in.rows["face/full"]["reason"] == "no result in 0 s"
    assert stand_in.rows["face/crop"]["status"] == "ok"


def test_a_process_that_starts_longer_than_time_is_left_leaves_its_row_for_the_next_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    with row_process.RowProcess(slow) as process:
        started = time.monotonic()
        reply = process.request("unet/512x512", 30, 0.3)
        assert time.monotonic() - started < 20
        assert reply == {"status": "not run", "reason": row_process.NO_TIME}
    monkeypatch.setattr(row_process, "START", 0.3)
    with row_process.RowProcess(slow) as process:
        assert process.request("unet/512x512", 30, 40)["status"] == "failed"
    broken = [sys.executable, "-c", "raise SystemExit(3)"]
    with row_process.RowProcess(broken) as process:
        reply = process.request("unet/512x512", 30, 0.2)
        assert reply["status"] in ("failed", "not run")
        assert process.request("unet/512x512", 30, 20)["reason"] == "its process ended (exit code 3)"


def test_a_killed_run_resumes_without_repeating(stand_in: Card, tmp_path: Path):
    program = f"""
import pytest
from pathlib import Path
from tests.bench.test_card import ALL, Card
Card(Path({str(tmp_path)!r}), pytest.MonkeyPatch()).run(ALL[:6], {ALL[3].name!r}, "kill")
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert killed.returncode == -9
    names = [row.name for row in ALL[:6]]
    assert list(stand_in.rows) == names[:3]
    stand_in.run(ALL[:6])
    assert stand_in.asked == [*names[:4], *names[3:]]
    assert list(stand_in.rows) == names
    stand_in.run(ALL[:6], restart=True)
    assert stand_in.asked[7:] == names


def test_one_row_is_repeated_and_the_page_keeps_the_others(stand_in: Card):
    stand_in.run(ALL[:3], ALL[1].name, next(iter(FAILURES)))
    stand_in.run(ALL[1:2], config=replace(CONFIG, rows=(ALL[1].name,)), restart=True)
    assert stand_in.asked[3:] == [ALL[1].name]
    assert {row["status"] for row in stand_in.rows.values()} == {"ok"}
    page = stand_in.output.with_suffix(".md").read_text()
    assert all(row.name in page for row in ALL[:3])


def test_rows_without_time_are_named_and_run_later(stand_in: Card):
    clock = iter(float(seconds) for seconds in (0, 0, 1, 700, 701, 701, 702))
    stand_in.run(ALL[:3], clock=lambda: next(clock))
    assert [row["status"] for row in stand_in.rows.values()] == ["ok", "not run", "not run"]
    assert "no time left" in stand_in.rows[ALL[2].name]["reason"]
    stand_in.run(ALL[:3])
    assert stand_in.asked == [row.name for row in ALL[:3]]
    assert {row["status"] for row in stand_in.rows.values()} == {"ok"}


def test_what_cannot_be_resumed_is_refused(stand_in: Card):
    with locked_output(stand_in.output, "sa bench card"), pytest.raises(BadInput, match="written by another `sa bench"):
        stand_in.run(ALL[:1])
    stand_in.run(ALL[:1])
    data = json.loads(stand_in.output.read_text())
    for key, value, problem in (
        ("environment", data["environment"] | {"commit": "def"}, "rows with another commit, expected the same"),
        ("settings", {"device": "cuda:1", "small": False}, "rows of other settings"),
        ("format", 7, "another file, expected results"),
    ):
        stand_in.output.write_text(json.dumps(data | {key: value}))
        with pytest.raises(BadInput, match=problem) as told:
            stand_in.run(ALL[:1])
        assert "-o" in str(told.value.hint)
    stand_in.output.write_text("{")
    with pytest.raises(BadInput):
        stand_in.run(ALL[:1])
    assert stand_in.output.read_text() == "{"


def test_rows_of_two_clones_do_not_mix(stand_in: Card, tmp_path: Path):
    """Ours may be measured first and a clone's added; another clone is refused, and so are files of before with rows
    of a clone that they do not name."""
    clones = [tmp_path / name for name in ("one", "two")]
    for number, clone in enumerate(clones):
        clone.mkdir()
        (clone / "unet.py").write_text(f"version = {number}\n")
    first, second = (replace(CONFIG, against=clone) for clone in clones)
    theirs = next(row for row in ALL if row.worker == "reference")
    stand_in.run(ALL[:1])
    stand_in.run([ALL[0], theirs], config=first)
    known = json.loads(stand_in.output.read_text())["settings"]["against"]
    assert known == code_version(clones[0]) != code_version(clones[1])
    stand_in.run(ALL[:2])
    assert json.loads(stand_in.output.read_text())["settings"]["against"] == known
    with pytest.raises(BadInput, match=f"rows of the clone {known}, expected those of files") as told:
        stand_in.run([ALL[0], theirs], config=second)
    assert "--restart" in str(told.value.hint)
    data = json.loads(stand_in.output.read_text())
    del data["settings"]["against"]
    stand_in.output.write_text(json.dumps(data))
    with pytest.raises(BadInput, match="rows of the clone of an older version"):
        stand_in.run([theirs], config=first)
    stand_in.run([theirs], config=second, restart=True)
    assert json.loads(stand_in.output.read_text())["settings"]["against"] == code_version(clones[1])


def test_the_version_of_a_clone_is_its_commit(tmp_path: Path):
    for words in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-mx"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    assert len(code_version(tmp_path)) == 12
    (tmp_path / "a.py").write_text("")
    subprocess.run(["git", "-C", str(tmp_path), "add", "a.py"], check=True)
    assert code_version(tmp_path).endswith("-dirty")


def test_a_process_that_does_not_start_ends_the_run(stand_in: Card, monkeypatch: pytest.MonkeyPatch):
    words = [sys.executable, "-c", "raise SystemExit('no driver')"]
    monkeypatch.setattr(card, "process_words", lambda run: {"ours": (words, None)})
    planned = CardRun(
        config=CONFIG, device="cpu", rows=tuple(ALL[:1]), recordings=None, output=stand_in.output,
        page=stand_in.output.with_suffix(".md"),
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"no row can run: its process ended \(exit code 1\): no driver"):
        run_card(planned, "sa bench card", NullReporter())
    assert not stand_in.output.exists()


def test_a_checkout_is_needed_for_recordings(stand_in: Card, monkeypatch: pytest.MonkeyPatch):
    rows = select_rows(ALL, ["parity/unet_io/float32", "detectors"])
    run = stand_in.run
    words = [sys.executable, "-IS", str(STAND_IN), str(stand_in.log)]
    run(rows[:1])  # sets the words of all processes, replaced next
    monkeypatch.setattr(card, "process_words", lambda run: {"ours": (words, None)})
    planned = CardRun(
        config=CONFIG, device="cpu", rows=tuple(rows), recordings=None, output=stand_in.output,
        page=stand_in.output.with_suffix(".md"),
    )  # fmt: skip
    run_card(planned, "sa bench card", NullReporter(), restart=True)
    assert stand_in.rows[rows[0].name]["reason"] == "needs a checkout: the wheel has no recordings"


def test_the_entry_of_a_card_is_what_plan_reads(
    stand_in: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    table = tmp_path / "home" / "cards.toml"
    rows = select_rows(ALL, ["roofline", "render/16x576x1024"])
    for _ in range(2):  # the second replaces the first
        stand_in.run(rows, config=replace(CONFIG, accept=True), restart=True)
    assert table.read_text().count("[[card]]") == 1
    assert table.read_text().strip() in stand_in.output.with_suffix(".md").read_text()
    found = find_card("test 9000", table)
    assert (found.bf16, found.fp16, found.bandwidth, found.memory) == (500, 500, 2000, 80)
    assert found.share == pytest.approx(0.5)  # 2,500 TFLOP in 10 s
    assert "measured by sa bench card on 2026-11-29" in found.source
    assert find_card("RTX 4090", table).share == 0.28
    BENCH_DOCTOR: Any = load_verb("doctor")
    BENCH_DOCTOR.main(["--model", "puppet", "--size", "64x64", "--card", "Test 9000", "--json"], standalone_mode=False)
    duration = json.loads(capsys.readouterr().out)["duration"]
    assert duration["seconds"] == pytest.approx(duration["flops"] / 250e12, abs=0.06)
    table.write_text("[[card]]\nname = 3\n")
    with pytest.raises(BadInput, match=r"cards\.toml: found other tables"):
        find_card("L4", table)


def test_errors_of_a_row_are_its_reason(monkeypatch: pytest.MonkeyPatch):
    worker = card_worker.CardWorker(device=torch.device("cpu"), small=True)
    for group in ("roofline", "unet", "render", "face", "train", "detectors", "ranks", "variant"):

        def fail(self: Any, row: str) -> dict[str, Any]:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

        monkeypatch.setattr(card_worker.CardWorker, f"_{group}", fail)
        answer = row_process.guarded(worker.measure_row, f"{group}/x")
        assert answer == {"status": "failed", "reason": "OutOfMemoryError: CUDA out of memory. Tried to allocate"}
    monkeypatch.undo()
    answer = row_process.guarded(worker.measure_row, "variant/cuda-graphs")
    assert answer["status"] in ("not applicable", "ok")
    assert row_process.guarded(worker.measure_row, "nonsense")["status"] == "failed"


@pytest.mark.parametrize(
    ("words", "error", "problem"),
    [
        (("--small", "--rows", "unets"), ConfigError, "--rows: found 'unets', expected a row, or a group: roofline"),
        (("--device", "cuda:7", "--small"), ConfigError, "--device"),
        (("--device", "cpu"), ConfigError, "--device: found 'cpu', expected a CUDA card"),
        (("unet", "--small"), ConfigError, "card alone"),
        (("--small", "--against", "nowhere"), BadInput, "a clone of the reference implementation"),
        (("--small", "-o", "."), BadInput, "expected a name for a file"),
        (("--small", "--size", "64x64"), ConfigError, "--size: found '64x64', expected no such option with card"),
        (("--small", "--dtype", "bfloat16"), ConfigError, "--dtype: found 'bfloat16', expected no such option"),
        (("--small", "-o", "card.md"), ConfigError, "expected another file than the page"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    words: tuple[str, ...], error: type[Exception], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    device = () if "--device" in words else ("--device", "cpu")
    output = () if "-o" in words else ("-o", "card.json")
    with pytest.raises(Exception, match=problem) as told:
        BENCH.main(["card", *words, *device, *output, "--progress", "none"], standalone_mode=False)
    assert isinstance(told.value, error)
    assert not list(tmp_path.iterdir())


def test_options_of_card_alone(tmp_path: Path):
    for words in (["unet", "--plan"], ["unet", "--restart"], ["unet", "--small"], ["unet", "--rows", "unet"]):
        with pytest.raises(ConfigError, match=words[1]):
            BENCH.main([*words, "--device", "cpu"], standalone_mode=False)


def test_the_plan_lists_rows_and_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["card", "--small", "--device", "cpu", "-o", str(tmp_path / "c.json"), "--plan", "--rows", "unet", "--json"]
    BENCH.main(words, standalone_mode=False)
    assert [row["row"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["unet/64x64", "unet/64x128"]
    assert not list(tmp_path.iterdir())


def test_all_rows_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["card", "--small", "--device", "cpu", "-o", str(tmp_path / "cpu.json"), "--budget", "60", "--json", "-q"]
    BENCH.main(words, standalone_mode=False)
    report = json.loads(capsys.readouterr().out)
    data = json.loads((tmp_path / "cpu.json").read_text())
    rows = {row["row"]: row for row in data["rows"]}
    expected = [row.name for row in card_rows(RECORDINGS, small=True, against=False)]
    assert list(rows) == expected
    page = (tmp_path / "cpu.md").read_text()
    assert all(f"| {name} |" in page for name in expected)
    assert "sa bench card --budget 60.0 --small --device cpu" in page
    assert str(tmp_path) not in page
    assert report["benches"]["card"][0]["title"] == "Machine"
    status = {name: row["status"] for name, row in rows.items() if row["status"] != "ok"}
    assert "failed" not in status.values(), rows
    assert status.keys() >= {
        f"{group}/{way}" for group in ("variant", "parity/unet_io") for way in ("cuda-graphs", "compiled")
    }
    for name, row in rows.items():
        if name.startswith("parity/") and name.endswith("float32"):
            assert row["error"] <= row["limit"]
        if row["status"] == "ok" and name.startswith(("unet", "render", "variant", "train/paper")):
            assert row["seconds"] > 0
            assert row["peak"] == pytest.approx(row["predicted"], rel=0.25), name
    assert rows["variant/channels-last"]["error"] < 1e-4 < rows["variant/int8"]["error"] < 0.2
    assert rows["ranks"]["error"] == 0
