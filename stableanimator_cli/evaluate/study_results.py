"""``--tally``: answers of a study counted, with Wilson's intervals, under the paper's Table 6."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stableanimator_cli.config.evaluate import EvaluateConfig
from stableanimator_cli.errors import BadInput, cut
from stableanimator_cli.evaluate.report import TOOL, to_csv, to_latex, write_text
from stableanimator_cli.evaluate.scores import Table
from stableanimator_cli.evaluate.study import FORMAT, KEY, QUESTIONS
from stableanimator_cli.evaluate.tables import PUBLISHED, TABLE6
from stableanimator_cli.files import json_text
from stableanimator_cli.metrics.bootstrap import wilson_interval
from stableanimator_cli.readers import read_json

JSON, CSV, LATEX = "tally.json", "tally.csv", "tally.tex"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """How often ours was preferred: ``counts`` rival -> question -> (times, of how many)."""

    ours: str
    people: int
    counts: Mapping[str, Mapping[str, tuple[int, int]]]
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "ours": self.ours,
            "people": self.people,
            "preferred": {
                rival: {
                    name: {
                        "times": times,
                        "of": total,
                        "share": times / total,
                        "interval": list(wilson_interval(times, total)),
                    }
                    for name, (times, total) in asked.items()
                }
                for rival, asked in self.counts.items()
            },
        }

    def summary(self) -> str:
        parts = []
        for rival, asked in self.counts.items():
            cells = ", ".join(f"{name} {times}/{total}" for name, (times, total) in asked.items())
            parts.append(f"{self.ours} over {rival}: {cells}")
        return "\n".join(parts)

    def shown(self) -> list[Table]:
        lines = []
        for rival, asked in self.counts.items():
            cells = []
            for name in QUESTIONS:
                times, total = asked[name]
                low, high = wilson_interval(times, total)
                cells.append(f"{times / total:.1%} [{low:.1%}, {high:.1%}]")
            lines.append([f"{self.ours} over {rival}", *cells])
        for rival, shares in TABLE6.items():
            lines.append([f"StableAnimator over {rival} {PUBLISHED}", *(f"{value:.1f}%" for value in shares)])
        title = f"Table 6: {self.people} people; 95 % intervals of answers; measured on other data († published)"
        return [(title, ["", *QUESTIONS], lines)]


def tally(config: EvaluateConfig) -> StudyResult:
    """Count the answers and, with ``--output``, write ``tally.json``, ``tally.csv`` and ``tally.tex`` into it."""
    counted = _tally(config)
    if config.output is not None:
        write_tally(counted, config.output)
    return counted


def files_of(output: Path) -> list[Path]:
    return [output / name for name in (JSON, CSV, LATEX)]


def write_tally(counted: StudyResult, output: Path) -> None:
    write_text(output / JSON, json_text({"tool": TOOL, **counted.to_json()}, indent=1))
    columns = ["system", "against", "question", "times", "of", "share", "low", "high", "tool"]
    lines = [
        [
            counted.ours,
            rival,
            name,
            str(times),
            str(total),
            *map(repr, (times / total, *wilson_interval(times, total))),
            TOOL,
        ]
        for rival, asked in counted.counts.items()
        for name, (times, total) in asked.items()
    ]
    write_text(output / CSV, to_csv(columns, lines))
    ((title, head, rows),) = counted.shown()
    write_text(output / LATEX, f"% {TOOL}\n" + to_latex(head, rows, title))


def _tally(config: EvaluateConfig) -> StudyResult:
    """Count all answers that ``config.inputs`` name: files, or folders of ``answers*.json``; ``study.json`` lies beside
    them or in the folder above. ``BadInput`` for what is no answer, for another study's, and for a person twice."""
    files = list(dict.fromkeys(file for path in config.inputs for file in _files(path)))
    read = _latest({file: _read(file) for file in files})
    key: dict[str, Any] | None = None
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: {name: [0, 0] for name in QUESTIONS})
    seen: dict[str, Path] = {}
    for file, told in read.items():
        own = _key(file, config.inputs)
        key = key or own
        if told.get("study") != key["study"] or told.get("format") != FORMAT:
            raise BadInput(file, f"answers of study {cut(str(told.get('study')))}", f"of study {cut(key['study'])}")
        same = json.dumps(told["answers"], sort_keys=True)
        if told["answers"] and same in seen and not told.get("session"):
            raise BadInput(file, f"the same answers as in {seen[same].name}", "each person once")
        seen[same] = file
        answered: set[tuple[int, int]] = set()
        for number, answer in enumerate(told["answers"]):
            rival, ours = _counted(file, number, answer, key)
            if (answer["case"], answer["left"] + answer["right"]) in answered:
                raise BadInput.because(file, f"answer {number} repeats a comparison", hint="save the answers again")
            answered.add((answer["case"], answer["left"] + answer["right"]))
            for name, preferred in ours.items():
                counts[rival][name][0] += preferred
                counts[rival][name][1] += 1
    if key is None or not counts:
        raise BadInput(config.inputs[0], "no answers", "answers*.json with one answer or more, as the page saves them")
    whole = {rival: {name: (pair[0], pair[1]) for name, pair in asked.items()} for rival, asked in counts.items()}
    return StudyResult(ours=str(key["ours"]), people=len(read), counts=whole)


def _latest(read: Mapping[Path, dict[str, Any]]) -> dict[Path, dict[str, Any]]:
    """Of several files of one person's session, saved before the end and at it, the one with the most answers."""
    best: dict[str, Path] = {}
    for file, told in read.items():
        session = told.get("session")
        if not isinstance(session, str) or not session:
            continue
        other = best.get(session)
        if other is None:
            best[session] = file
            continue
        shorter, longer = sorted((other, file), key=lambda one: len(read[one]["answers"]))
        if read[longer]["answers"][: len(read[shorter]["answers"])] != read[shorter]["answers"]:
            raise BadInput.because(
                file, f"it has other answers of the same person than {other.name}", hint="remove one of the two"
            )
        best[session] = longer
    kept = set(best.values())
    return {
        file: told
        for file, told in read.items()
        if file in kept or not isinstance(told.get("session"), str) or not told["session"]
    }


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    files = sorted(path.glob("answers*.json")) if path.is_dir() else []
    if not files:
        raise BadInput(
            path, "no answers*.json", "files that the page of a study saved", hint="copy them into the folder"
        )
    yield from files


def _read(file: Path) -> dict[str, Any]:
    told = read_json(file, "a file of answers")
    if not isinstance(told, dict) or not isinstance(told.get("answers"), list):
        raise BadInput(file, "no list of answers", "answers as the page saves them")
    return told


def _key(file: Path, inputs: tuple[Path, ...]) -> dict[str, Any]:
    places = [file.parent / KEY, file.parent.parent / KEY, *(path / KEY for path in inputs if path.is_dir())]
    for place in places:
        if place.is_file():
            return _checked_key(place)
    raise BadInput(file, f"no {KEY} beside it", "the study's key, which says whose video is whose",
                   hint=f"copy {KEY} from the folder of the study")  # fmt: skip


def _checked_key(place: Path) -> dict[str, Any]:
    key = read_json(place, "the key of a study")
    names = key.get("systems") if isinstance(key, dict) else None
    if (
        not isinstance(names, list)
        or len(names) < 2
        or not all(isinstance(name, str) for name in [*names, key.get("study"), key.get("ours")])
        or not isinstance(key.get("cases"), list)
    ):
        raise BadInput(
            place, "no key of a study", "study, ours, systems and cases as `sa evaluate --study` writes them"
        )
    return key


def _counted(file: Path, number: int, answer: Any, key: Mapping[str, Any]) -> tuple[str, dict[str, bool]]:
    """Whose video stood against ours, and in which questions ours was preferred."""
    systems = key["systems"]
    expected = "case, left, right and preferred, as the page writes them"
    if not isinstance(answer, dict) or not isinstance(answer.get("preferred"), dict):
        raise BadInput(file, f"answer {number} without preferences", expected)
    sides = [answer.get("left"), answer.get("right")]
    known = all(type(side) is int and 0 <= side < len(systems) for side in sides)
    if not known or sides.count(0) != 1:
        raise BadInput(
            file, f"answer {number} between {cut(str(sides[0]))} and {cut(str(sides[1]))}", "ours (0) against another"
        )
    case = answer.get("case")
    if type(case) is not int or not 0 <= case < len(key["cases"]):
        raise BadInput(
            file, f"answer {number} about case {cut(str(case))}", f"a case from 0 to {len(key['cases']) - 1}"
        )
    rival = next(side for side in sides if side != 0)
    preferred = answer["preferred"]
    if set(preferred) != set(QUESTIONS) or any(type(v) is not int or v not in sides for v in preferred.values()):
        raise BadInput(file, f"answer {number} of {cut(str(preferred))}", expected)
    return str(systems[rival]), {name: preferred[name] == 0 for name in QUESTIONS}
