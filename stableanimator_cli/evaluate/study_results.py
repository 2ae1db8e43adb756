"""``--tally``: answers of a study, counted, with intervals clustered by person, above the paper's Table 6."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stableanimator_cli.config.evaluate import EvaluateConfig
from stableanimator_cli.errors import BadInput, cut
from stableanimator_cli.evaluate.latex import Block, Cell, LatexTable
from stableanimator_cli.evaluate.report import TOOL, to_csv, write_text
from stableanimator_cli.evaluate.scores import Table
from stableanimator_cli.evaluate.study import FORMAT, KEY, QUESTIONS
from stableanimator_cli.evaluate.tables import PUBLISHED, TABLE6
from stableanimator_cli.files import json_text, require_file
from stableanimator_cli.metrics.bootstrap import clustered_interval, wilson_interval
from stableanimator_cli.metrics.result import Better
from stableanimator_cli.readers import read_json

JSON, CSV, LATEX, TEXT = "tally.json", "tally.csv", "tally.tex", "tally.txt"
SHORT = {"motion": "M-A", "appearance": "A-A", "background": "B-A", "identity": "I-A"}
"""The questions as the columns of the paper's Table 6."""
PER_PERSON = "Wilson at the effective number of answers, clustered by person"
PER_ANSWER = "Wilson over answers: fewer than five people"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Answers to one question about one baseline: ``times`` ours was preferred, of ``total``. ``interval`` is clustered
    by person, None below five people; ``of_answers`` counts every answer as independent."""

    baseline: str
    question: str
    times: int
    total: int
    people: int
    interval: tuple[float, float] | None

    @property
    def share(self) -> float:
        return self.times / self.total

    @property
    def of_answers(self) -> tuple[float, float]:
        return wilson_interval(self.times, self.total)

    @property
    def shown(self) -> tuple[float, float]:
        return self.of_answers if self.interval is None else self.interval

    def to_json(self) -> dict[str, Any]:
        return {
            "times": self.times,
            "of": self.total,
            "share": self.share,
            "interval": list(self.of_answers),
            "people": self.people,
            "interval_by_person": None if self.interval is None else list(self.interval),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """Preferences for ours: rows by baseline, in the order of Table 6 and then of the study, and by question."""

    ours: str
    people: int
    rows: tuple[Preference, ...]
    exit_code: int = 0
    failure: None = None

    @property
    def baselines(self) -> list[str]:
        return list(dict.fromkeys(row.baseline for row in self.rows))

    def of(self, baseline: str) -> dict[str, Preference]:
        """Rows of a baseline by question."""
        return {row.question: row for row in self.rows if row.baseline == baseline}

    def to_json(self) -> dict[str, Any]:
        preferred: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            preferred.setdefault(row.baseline, {})[row.question] = row.to_json()
        published = {name: dict(zip(QUESTIONS, values, strict=True)) for name, values in TABLE6.items()}
        methods = {"interval": "Wilson over answers", "interval_by_person": PER_PERSON}
        return {
            "ours": self.ours, "people": self.people, "preferred": preferred, "interval_methods": methods,
            "published_per_cent": published,
        }  # fmt: skip

    def summary(self) -> str:
        cells = {
            baseline: ", ".join(f"{name} {row.times}/{row.total}" for name, row in self.of(baseline).items())
            for baseline in self.baselines
        }
        return "\n".join(f"{self.ours} over {baseline}: {text}" for baseline, text in cells.items())

    @property
    def title(self) -> str:
        kinds = {True: "clustered by person", False: "of answers", None: "clustered by person, of answers below five"}
        by = kinds[self._is_clustered]
        return f"Table 6: {self.people} people; 95 % intervals {by}; measured on other data ({PUBLISHED} published)"

    @property
    def _is_clustered(self) -> bool | None:
        """Whether the intervals are clustered by person. None: of some baselines, which five people compared."""
        kinds = {row.interval is not None for row in self.rows}
        return kinds.pop() if len(kinds) == 1 else None

    def shown(self) -> list[Table]:
        lines = []
        for baseline in self.baselines:
            cells = [f"{row.share:.1%} [{row.shown[0]:.1%}, {row.shown[1]:.1%}]" for row in self._cells(baseline)]
            lines.append([f"{self.ours} over {baseline}", *cells])
        for baseline, published in TABLE6.items():
            lines.append([f"StableAnimator over {baseline} {PUBLISHED}", *(f"{value:.1f}%" for value in published)])
        return [(self.title, ["", *QUESTIONS], lines)]

    def to_latex(self) -> str:
        """Table 6: the published rows and ours, in per cent."""
        published = tuple(
            (f"{name} {PUBLISHED}", tuple(Cell(values=(value,), digits=1) for value in values))
            for name, values in TABLE6.items()
        )
        measured = []
        for baseline in self.baselines:
            cells = [
                Cell(values=(100 * row.share,), digits=1, interval=(100 * row.shown[0], 100 * row.shown[1]))
                for row in self._cells(baseline)
            ]
            measured.append((baseline, tuple(cells)))
        people = f"{self.people} {'person' if self.people == 1 else 'people'}"
        blocks = (
            Block(rows=published, heading=f"StableAnimator, published {PUBLISHED}"),
            Block(rows=tuple(measured), heading=f"{self.ours}, measured on other data: {people}"),
        )
        columns: tuple[tuple[str, Better], ...] = (
            ("preferred to", "neither"), *((f"{SHORT[name]} (%)", "neither") for name in QUESTIONS)
        )  # fmt: skip
        methods = {True: PER_PERSON, False: PER_ANSWER, None: f"{PER_PERSON}; {PER_ANSWER}"}
        method = methods[self._is_clustered]
        names = ", ".join(f"{short}: {name}" for name, short in SHORT.items())
        return LatexTable(
            caption="As Table 6 of StableAnimator: how often people preferred ours to each system.",
            columns=columns, blocks=blocks, notes=(f"{names}.", f"95 % intervals: {method}."),
        ).render()  # fmt: skip

    def _cells(self, baseline: str) -> list[Preference]:
        rows = self.of(baseline)
        return [rows[name] for name in QUESTIONS]


def tally(config: EvaluateConfig) -> StudyResult:
    """Count the answers and, with ``--output``, write ``tally.json``, ``.csv``, ``.tex`` and ``.txt`` into it."""
    result = _count(config)
    if config.output is not None:
        _write(result, config.output)
    return result


def files_of(output: Path) -> list[Path]:
    return [output / name for name in (JSON, CSV, LATEX, TEXT)]


def _write(result: StudyResult, output: Path) -> None:
    write_text(output / JSON, json_text({"tool": TOOL, **result.to_json()}, indent=1))
    columns = ["system", "against", "question", "times", "of", "share", "low", "high", "tool", "source"]
    lines = [
        [result.ours, row.baseline, row.question, str(row.times), str(row.total), repr(row.share),
         *map(repr, row.shown), TOOL, "measured"]
        for row in result.rows
    ]  # fmt: skip
    lines += [
        ["StableAnimator", baseline, name, "", "", f"{value / 100:.3f}", "", "", TOOL, "Table 6, published"]
        for baseline, values in TABLE6.items()
        for name, value in zip(QUESTIONS, values, strict=True)
    ]
    write_text(output / CSV, to_csv(columns, lines))
    write_text(output / LATEX, f"% {TOOL}\n" + result.to_latex())
    ((title, head, rows),) = result.shown()
    write_text(output / TEXT, "\n".join([title, "", *_aligned([head, *rows]), "", TOOL]) + "\n")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _count(config: EvaluateConfig) -> StudyResult:
    """Count all answers in ``config.inputs``: files, or folders of ``answers*.json``. ``study.json`` is beside them or
    in the folder above. Raises ``BadInput`` for other files, answers of another study, and a person twice."""
    files = list(dict.fromkeys(file for path in config.inputs for file in _files(path)))
    people = _latest({file: _read(file) for file in files})
    key: dict[str, Any] | None = None
    answers_by: dict[str, dict[str, dict[Path, list[bool]]]] = {}  # baseline -> question -> person
    seen: dict[str, Path] = {}
    for file, data in people.items():
        own_key = _find_key(file, config.inputs)
        key = key or own_key
        if data.get("format") != FORMAT:
            raise BadInput(
                file, f"answers of format {cut(str(data.get('format')))}", f"format {FORMAT}",
                hint="count them with the version of sa that wrote the page",
            )  # fmt: skip
        if data.get("study") != key["study"]:
            raise BadInput(
                file, f"answers of study {cut(str(data.get('study')))}", f"of study {cut(key['study'])}",
                hint=f"move it out of the folder, or count it beside the {KEY} of its own study",
            )  # fmt: skip
        answers = json.dumps(data["answers"], sort_keys=True)
        if data["answers"] and answers in seen and not data.get("session"):
            raise BadInput(file, f"the same answers as in {seen[answers].name}", "each person once")
        seen[answers] = file
        answered: set[tuple[int, int]] = set()
        for number, answer in enumerate(data["answers"]):
            baseline, ours = _check_answer(file, number, answer, key)
            comparison = answer["case"], answer["left"] + answer["right"]
            if comparison in answered:
                raise BadInput.because(file, f"answer {number} repeats a comparison", hint="save the answers again")
            answered.add(comparison)
            for name, preferred in ours.items():
                answers_by.setdefault(baseline, {}).setdefault(name, {}).setdefault(file, []).append(preferred)
    if key is None or not answers_by:
        raise BadInput(config.inputs[0], "no answers", "answers*.json with one answer or more, as the page saves them")
    rows = [
        _preference(baseline, name, list(answers_by[baseline][name].values()))
        for baseline in sorted(answers_by, key=lambda name: _place(name, key["systems"]))
        for name in QUESTIONS
    ]
    answered_by = sum(bool(data["answers"]) for data in people.values())
    return StudyResult(ours=str(key["ours"]), people=answered_by, rows=tuple(rows))


def _place(baseline: str, systems: Sequence[str]) -> tuple[int, int]:
    """Systems of Table 6 in its order, then the others in that of the study."""
    published = [name.lower() for name in TABLE6]
    known = published.index(baseline.lower()) if baseline.lower() in published else len(published)
    return known, systems.index(baseline)


def _preference(baseline: str, question: str, people: Sequence[Sequence[bool]]) -> Preference:
    hits, totals = [sum(one) for one in people], [len(one) for one in people]
    return Preference(
        baseline=baseline, question=question, times=sum(hits), total=sum(totals), people=len(people),
        interval=clustered_interval(hits, totals),
    )  # fmt: skip


def _latest(files: Mapping[Path, dict[str, Any]]) -> dict[Path, dict[str, Any]]:
    """Of several files of one session, saved before its end and at it, the one with the most answers."""
    latest: dict[str, Path] = {}
    selected = dict(files)
    for file, data in files.items():
        session = data.get("session")
        if not isinstance(session, str) or not session:
            continue
        other = latest.get(session, file)
        shorter, longer = sorted((other, file), key=lambda path: len(files[path]["answers"]))
        if files[longer]["answers"][: len(files[shorter]["answers"])] != files[shorter]["answers"]:
            raise BadInput.because(
                file, f"it has other answers of the same person than {other.name}", hint="remove one of the two"
            )
        if shorter != longer:
            del selected[shorter]
        latest[session] = longer
    return selected


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield require_file(path, "a file of answers, or a folder of them")
        return
    files = sorted(path.glob("answers*.json"))
    if not files:
        raise BadInput(
            path, "no answers*.json", "files that the page of a study saved", hint="copy them into the folder"
        )
    yield from files


def _read(file: Path) -> dict[str, Any]:
    hint = "name an answers*.json that the page of the study saved"
    data = read_json(file, "a file of answers", hint=hint)
    if not isinstance(data, dict) or not isinstance(data.get("answers"), list):
        raise BadInput(file, "no list of answers", "answers as the page saves them", hint=hint)
    return data


def _find_key(file: Path, inputs: tuple[Path, ...]) -> dict[str, Any]:
    folders = [file.parent, file.parent.parent, *(path for path in inputs if path.is_dir())]
    path = next((folder / KEY for folder in folders if (folder / KEY).is_file()), None)
    if path is None:
        raise BadInput(file, f"no {KEY} beside it", "the study's key, which records the system of each video",
                       hint=f"copy {KEY} from the folder of the study")  # fmt: skip
    key = read_json(path, "the key of a study")
    systems = key.get("systems") if isinstance(key, dict) else None
    if (
        not isinstance(systems, list)
        or len(systems) < 2
        or not all(isinstance(name, str) for name in [*systems, key.get("study"), key.get("ours")])
        or not isinstance(key.get("cases"), list)
    ):
        raise BadInput(path, "no key of a study", "study, ours, systems and cases as `sa evaluate --study` writes them")
    return key


def _check_answer(file: Path, number: int, answer: Any, key: Mapping[str, Any]) -> tuple[str, dict[str, bool]]:
    """The baseline that was compared with ours, and per question whether ours was preferred."""
    expected = "case, left, right and preferred, as the page writes them"
    if not isinstance(answer, dict) or not isinstance(answer.get("preferred"), dict):
        raise BadInput(file, f"answer {number} without preferences", expected)
    sides: list[Any] = [answer.get("left"), answer.get("right")]
    case, preferred = answer.get("case"), answer["preferred"]
    if not all(type(side) is int and 0 <= side < len(key["systems"]) for side in sides) or sides.count(0) != 1:
        raise BadInput(
            file, f"answer {number} between {cut(str(sides[0]))} and {cut(str(sides[1]))}", "ours (0) against another"
        )
    if type(case) is not int or not 0 <= case < len(key["cases"]):
        raise BadInput(
            file, f"answer {number} about case {cut(str(case))}", f"a case from 0 to {len(key['cases']) - 1}"
        )
    if set(preferred) != set(QUESTIONS) or any(type(v) is not int or v not in sides for v in preferred.values()):
        raise BadInput(file, f"answer {number} of {cut(str(preferred))}", expected)
    return str(key["systems"][sum(sides)]), {name: preferred[name] == 0 for name in QUESTIONS}
