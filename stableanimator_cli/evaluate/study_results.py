"""``--tally``: answers of a study, counted, with Wilson intervals, above the paper's Table 6."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stableanimator_cli.config.evaluate import EvaluateConfig
from stableanimator_cli.errors import BadInput, cut
from stableanimator_cli.evaluate.latex import to_latex
from stableanimator_cli.evaluate.report import TOOL, to_csv, write_text
from stableanimator_cli.evaluate.scores import Table
from stableanimator_cli.evaluate.study import FORMAT, KEY, QUESTIONS
from stableanimator_cli.evaluate.tables import PUBLISHED, TABLE6
from stableanimator_cli.files import json_text
from stableanimator_cli.metrics.bootstrap import wilson_interval
from stableanimator_cli.readers import read_json

JSON, CSV, LATEX = "tally.json", "tally.csv", "tally.tex"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """How often ours was preferred. ``counts``: baseline -> question -> (times preferred, answers)."""

    ours: str
    people: int
    counts: Mapping[str, Mapping[str, tuple[int, int]]]
    exit_code: int = 0
    failure: None = None

    def rows(self) -> Iterator[tuple[str, str, int, int, float, tuple[float, float]]]:
        """Per baseline and question: times, answers, share and its interval."""
        for baseline, questions in self.counts.items():
            for name, (times, total) in questions.items():
                yield baseline, name, times, total, times / total, wilson_interval(times, total)

    def to_json(self) -> dict[str, Any]:
        preferred: dict[str, dict[str, Any]] = {}
        for baseline, name, times, total, share, interval in self.rows():
            result = {"times": times, "of": total, "share": share, "interval": list(interval)}
            preferred.setdefault(baseline, {})[name] = result
        return {"ours": self.ours, "people": self.people, "preferred": preferred}

    def summary(self) -> str:
        cells = {
            baseline: ", ".join(f"{name} {times}/{total}" for name, (times, total) in questions.items())
            for baseline, questions in self.counts.items()
        }
        return "\n".join(f"{self.ours} over {baseline}: {text}" for baseline, text in cells.items())

    def shown(self) -> list[Table]:
        lines = [[f"{self.ours} over {baseline}"] for baseline in self.counts]
        for line, baseline in zip(lines, self.counts, strict=True):
            shares = {row[1]: row[4:] for row in self.rows() if row[0] == baseline}
            line += [
                f"{share:.1%} [{low:.1%}, {high:.1%}]" for share, (low, high) in map(shares.__getitem__, QUESTIONS)
            ]
        for baseline, published in TABLE6.items():
            lines.append([f"StableAnimator over {baseline} {PUBLISHED}", *(f"{value:.1f}%" for value in published)])
        title = f"Table 6: {self.people} people; 95 % intervals of answers; measured on other data († published)"
        return [(title, ["", *QUESTIONS], lines)]


def tally(config: EvaluateConfig) -> StudyResult:
    """Count the answers and, with ``--output``, write ``tally.json``, ``tally.csv`` and ``tally.tex`` into it."""
    result = _count(config)
    if config.output is not None:
        _write(result, config.output)
    return result


def files_of(output: Path) -> list[Path]:
    return [output / name for name in (JSON, CSV, LATEX)]


def _write(result: StudyResult, output: Path) -> None:
    write_text(output / JSON, json_text({"tool": TOOL, **result.to_json()}, indent=1))
    columns = ["system", "against", "question", "times", "of", "share", "low", "high", "tool"]
    lines = [
        [result.ours, baseline, name, str(times), str(total), *map(repr, (share, *interval)), TOOL]
        for baseline, name, times, total, share, interval in result.rows()
    ]
    write_text(output / CSV, to_csv(columns, lines))
    ((title, head, rows),) = result.shown()
    write_text(output / LATEX, f"% {TOOL}\n" + to_latex(head, rows, title))


def _count(config: EvaluateConfig) -> StudyResult:
    """Count all answers in ``config.inputs``: files, or folders of ``answers*.json``. ``study.json`` is beside them or
    in the folder above. Raises ``BadInput`` for other files, answers of another study, and a person twice."""
    files = list(dict.fromkeys(file for path in config.inputs for file in _files(path)))
    people = _latest({file: _read(file) for file in files})
    key: dict[str, Any] | None = None
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: {name: [0, 0] for name in QUESTIONS})
    seen: dict[str, Path] = {}
    for file, data in people.items():
        own_key = _find_key(file, config.inputs)
        key = key or own_key
        if data.get("study") != key["study"] or data.get("format") != FORMAT:
            raise BadInput(file, f"answers of study {cut(str(data.get('study')))}", f"of study {cut(key['study'])}")
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
                counts[baseline][name][0] += preferred
                counts[baseline][name][1] += 1
    if key is None or not counts:
        raise BadInput(config.inputs[0], "no answers", "answers*.json with one answer or more, as the page saves them")
    totals = {baseline: {name: (n[0], n[1]) for name, n in questions.items()} for baseline, questions in counts.items()}
    return StudyResult(ours=str(key["ours"]), people=len(people), counts=totals)


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
    data = read_json(file, "a file of answers")
    if not isinstance(data, dict) or not isinstance(data.get("answers"), list):
        raise BadInput(file, "no list of answers", "answers as the page saves them")
    return data


def _find_key(file: Path, inputs: tuple[Path, ...]) -> dict[str, Any]:
    folders = [file.parent, file.parent.parent, *(path for path in inputs if path.is_dir())]
    path = next((folder / KEY for folder in folders if (folder / KEY).is_file()), None)
    if path is None:
        raise BadInput(file, f"no {KEY} beside it", "the study's key, which says whose video is whose",
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
