"""``--strips``: figures for a paper in ``figures/``, as PDF and PNG: strips of frames, and plots of the scores."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stableanimator_cli.errors import ConfigError
from stableanimator_cli.evaluate import latex, plots, strips
from stableanimator_cli.evaluate.ranking import select, worst_first
from stableanimator_cli.evaluate.scores import number
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.files import MARK, atomic_write, check_replaceable, translate_os_errors
from stableanimator_cli.metrics.result import METRICS, json_number
from stableanimator_cli.progress import Reporter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "figures"
KINDS = (".pdf", ".png")
PLOTS = {
    "csim-over-time": "Identity over time: mean CSIM with the reference at each frame (band: 95\u2009% t-interval over "
    "videos).",
    "csim-against-angle": "CSIM with the reference against the angle of the head in the driving motion: frames, and "
    "means over videos (band: 95\u2009% t-interval).",
    "metrics": "Values of the videos: quartiles, whiskers of 1.5 quartile distances, mean (diamond).",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FigurePlan:
    """Videos to show, with their ranks (1: the worst of ``total``) by ``metric`` of ``ours``; ``systems`` holds all
    videos by system, ours first."""

    systems: Mapping[str, Sequence[VideoScore]]
    metric: str | None
    shown: tuple[tuple[VideoScore, int], ...]
    total: int
    rule: str

    @property
    def ours(self) -> str:
        return next(iter(self.systems))

    def to_json(self) -> dict[str, Any]:
        strips = [
            {"video": v.name, "rank": rank, "value": json_number(v.values.get(str(self.metric), float("nan")))}
            for v, rank in self.shown
        ]
        return {"rule": self.rule, "metric": self.metric, "system": self.ours, "of": self.total, "strips": strips}

    def caption(self, video: VideoScore, rank: int, frames: Sequence[int]) -> str:
        shown = f"Video {video.name}, frames {', '.join(map(str, frames))}"
        if self.metric is None:
            return f"{shown}."
        value = number(video.values.get(self.metric, float("nan")))
        return (
            f"{shown}: rank {rank} of {self.total} from the worst by {METRICS[self.metric].title} of {self.ours} "
            f"({value}); chosen by the rule: {self.rule}."
        )


def check_installed() -> None:
    """Raise ``ConfigError`` unless matplotlib is installed. It is not imported."""
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "--strips", "no matplotlib", "the package that draws figures",
            hint="pip install 'stableanimator-cli[figures]', or pip install matplotlib",
        )  # fmt: skip


def check_folder(output: Path) -> None:
    """Raise ``BadInput`` for a file under the name of a figure that ``sa`` did not write."""
    names = ("strip-*", *PLOTS)
    check_replaceable(*(file for name in names for kind in KINDS for file in (output / FOLDER).glob(name + kind)))


def check_videos(rule: str | tuple[str, ...] | None, names: Collection[str]) -> None:
    """Raise ``ConfigError`` for ``--strip-videos`` that names none of the videos, before they are scored."""
    unknown = [name for name in rule if name not in names] if isinstance(rule, tuple) else []
    if unknown:
        shown = ", ".join(list(names)[:5]) + (" ..." if len(names) > 5 else "")
        raise ConfigError("--strip-videos", unknown[0], f"names of scored videos: {shown}")


def plan_figures(
    systems: Mapping[str, Sequence[VideoScore]], count: int, rule: str | tuple[str, ...] | None
) -> FigurePlan:
    """Choose the videos of the strips among those that every system has. A name that is not among them is left out:
    its video could not be scored (``check_videos``)."""
    ours, *others = systems.values()
    shared = set.intersection({video.name for video in ours}, *({video.name for video in other} for other in others))
    videos = [video for video in ours if video.name in shared]
    rule = rule or "spread"
    text = rule if isinstance(rule, str) else "by name"
    return FigurePlan(
        systems=systems,
        metric=worst_first(videos)[0],
        shown=tuple(select(videos, count, rule)),
        total=len(videos),
        rule={"spread": "evenly spaced ranks from the worst to the best"}.get(text, text),
    )


def write_figures(
    plan: FigurePlan, output: Path, metrics: Sequence[str], detect: strips.Detect | None, reporter: Reporter
) -> list[str]:
    """Draw all figures and return them as LaTeX for ``paper.tex``. Plots without data are left out."""
    import matplotlib

    written: list[str] = []
    with matplotlib.rc_context(plots.STYLE), reporter.progress(len(plan.shown) + 3, "draw", "figure") as bar:
        for name, caption, wide, figure in _figures(plan, metrics, detect):
            if figure is not None:
                _save(figure, output / FOLDER / name)
                written.append(latex.figure(f"{FOLDER}/{name}.pdf", caption, wide=wide))
            bar.update()
    return written


def _figures(
    plan: FigurePlan, metrics: Sequence[str], detect: strips.Detect | None
) -> Iterator[tuple[str, str, bool, Figure | None]]:
    for position, (video, rank) in enumerate(plan.shown, 1):
        by_system = {
            name: next(one for one in videos if one.name == video.name) for name, videos in plan.systems.items()
        }
        strip = strips.read_strip(by_system, detect)
        letters = re.sub(r"[^A-Za-z0-9]+", "-", video.name).strip("-")[:80]  # that \includegraphics reads
        name = f"strip-{position}-{letters}".removesuffix("-")
        yield name, plan.caption(video, rank, strip.frames), True, strips.draw_strip(strip)
    drawn = {
        "metrics": plots.metric_boxes(plan.systems, metrics),  # wide ones first: LaTeX keeps the order of figures
        "csim-over-time": plots.csim_over_time(plan.systems),
        "csim-against-angle": plots.csim_against_angle(plan.systems),
    }
    for name, figure in drawn.items():
        yield name, PLOTS[name], name == "metrics", figure


def _save(figure: Figure, path: Path) -> None:
    """Write PDF and PNG with the mark of ``sa`` and without a date: the same scores give the same bytes."""
    metadata = {".pdf": {"Creator": MARK, "Producer": MARK, "CreationDate": None}, ".png": {"Software": MARK}}
    for kind in KINDS:
        file = path.with_name(path.name + kind)
        with atomic_write(file, marked=True) as temp, translate_os_errors(file), temp.open("wb") as stream:
            figure.savefig(stream, format=kind[1:], metadata=metadata[kind])
