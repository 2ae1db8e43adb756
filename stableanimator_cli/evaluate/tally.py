"""``--tally``: answers of a study counted, with Wilson's intervals, under the paper's Table 6."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stableanimator_cli.config_evaluate import EvaluateConfig
from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate.scores import Table
from stableanimator_cli.evaluate.study import FORMAT, KEY, QUESTIONS
from stableanimator_cli.evaluate.tables import PUBLISHED, TABLE6
from stableanimator_cli.metrics.bootstrap import share
from stableanimator_cli.readers import read_json
from stableanimator_cli.readers_fields import Fields, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
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
                    name: {"times": times, "of": total, "share": times / total, "interval": list(share(times, total))}
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
                low, high = share(times, total)
                cells.append(f"{times / total:.1%} [{low:.1%}, {high:.1%}]")
            lines.append([f"{self.ours} over {rival}", *cells])
        for rival, shares in TABLE6.items():
            lines.append([f"StableAnimator over {rival} {PUBLISHED}", *(f"{value:.1f}%" for value in shares)])
        title = f"Table 6: {self.people} people; 95 % intervals of answers († published)"
        return [(title, ["", *QUESTIONS], lines)]


def tally(config: EvaluateConfig) -> Tally:
    """Count all answers that ``config.inputs`` name: files, or folders of ``answers*.json``; ``study.json`` lies beside
    them or in the folder above. ``BadInput`` for what is no answer, for another study's, and for a person twice."""
    files = [file for path in config.inputs for file in _files(path)]
    key: dict[str, Any] | None = None
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: {name: [0, 0] for name in QUESTIONS})
    seen: dict[str, Path] = {}
    for file in files:
        told = _read(file)
        own = _key(file, config.inputs)
        key = key or own
        if told.get("study") != key["study"] or told.get("format") != FORMAT:
            raise BadInput(file, f"answers of study {shown(told.get('study'))}", f"of study {key['study']}")
        same = json.dumps(told.get("answers"), sort_keys=True)
        if same in seen:
            raise BadInput(file, f"the same answers as in {seen[same].name}", "each person once")
        seen[same] = file
        for number, answer in enumerate(told["answers"]):
            rival, ours = _counted(file, number, answer, key)
            for name, preferred in ours.items():
                counts[rival][name][0] += preferred
                counts[rival][name][1] += 1
    if key is None or not counts:
        raise BadInput(config.inputs[0], "no answers", "answers*.json with one answer or more, as the page saves them")
    whole = {rival: {name: (pair[0], pair[1]) for name, pair in asked.items()} for rival, asked in counts.items()}
    return Tally(ours=str(key["ours"]), people=len(files), counts=whole)


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
    what = "answers as the page saves them"
    told = read_json(file, what)
    if not isinstance(told, dict) or not isinstance(told.get("answers"), list):
        raise BadInput(file, "no list of answers", what)
    return told


def _key(file: Path, inputs: tuple[Path, ...]) -> dict[str, Any]:
    places = [file.parent / KEY, file.parent.parent / KEY, *(path / KEY for path in inputs if path.is_dir())]
    for place in places:
        if place.is_file():
            return _checked_key(place)
    raise BadInput(file, f"no {KEY} beside it", "the study's key, which says whose video is whose",
                   hint=f"copy {KEY} from the folder of the study")  # fmt: skip


def _checked_key(place: Path) -> dict[str, Any]:
    key = Fields.of(read_json(place, "a study's key"), place, "a study's key")
    key.text("study")
    key.text("ours")
    key.values("systems", str)
    key.rows("cases")
    return dict(key.table)


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
            file, f"answer {number} between {shown(sides[0])} and {shown(sides[1])}", "ours (0) against another"
        )
    rival = next(side for side in sides if side != 0)
    preferred = answer["preferred"]
    if set(preferred) != set(QUESTIONS) or not all(type(one) is int and one in sides for one in preferred.values()):
        raise BadInput(file, f"answer {number} of {', '.join(map(str, preferred)) or 'nothing'}", expected)
    return str(systems[rival]), {name: preferred[name] == 0 for name in QUESTIONS}
