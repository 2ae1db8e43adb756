"""The page's texts as HTML: the plan, the state of a run, errors, and the identity curve."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stableanimator_cli import html_pages
from stableanimator_cli.app.engine_queue import WARNING, Job
from stableanimator_cli.app.request import in_words
from stableanimator_cli.errors import SaError

if TYPE_CHECKING:
    from stableanimator_cli.animate.result import AnimationPlan

_STAGES = {"denoise": "Drawing", "decode": "Writing the video", "detect": "Detecting people"}


def _html(name: str, **context: Any) -> str:
    return "".join(html_pages.render("app", name, **context))


def error_html(error: SaError, folders: Sequence[Path]) -> str:
    """An error in the words of the command line, with files named as they were uploaded."""
    message, hint = in_words(error, folders)
    return _html("error", message=message, hint=hint.splitlines())


def plan_html(plan: AnimationPlan, warnings: Sequence[str] = ()) -> str:
    """Memory and time of a run, and the plan that ``sa animate --plan`` prints."""
    data = plan.data
    facts = [
        ("estimated time", clock(data["duration"]["seconds"])),
        (f"memory on {data['device'].split(',')[0]}", f"{data['memory']['total'] / 2**30:.1f} GiB"),
        ("video", f"{data['frames']} frames, {data['seconds']:.3g} s"),
    ]
    return _html("plan", facts=facts, warnings=warnings, summary=plan.summary())


def status_html(job: Job, ahead: int) -> str:
    """State of a run that is not finished, with its progress and messages."""
    stage, detail = job.stage, ""
    title = "Reading the picture and the motion"
    if job.state == "waiting":
        title = f"Waiting: {ahead} run(s) before this one" if ahead else "Waiting"
    elif stage is not None:
        title = _STAGES.get(stage.desc, stage.desc.capitalize())
        count = f"{stage.done} of {stage.total} {stage.unit}s" if stage.total else f"{stage.done} {stage.unit}s"
        step = stage.fields.get("step")
        left = stage.seconds_left
        detail = ", ".join(
            [*([f"step {step}"] if step else []), count, *([] if left is None else [f"{clock(left)} left"])]
        )
    if job.stop_requested:
        title, detail = "Stopping", "after the step that is computed now"
    share = round(100 * stage.done / stage.total) if stage is not None and stage.total else None
    return _html(
        "status", state=job.state, title=title, detail=detail, busy=True, share=share, messages=job.messages
    )  # fmt: skip


def result_html(job: Job) -> str:
    """State of a finished run without an error."""
    assert job.animation is not None
    seconds = job.animation.seconds["total"]
    detail = f"{job.animation.frames} frames in {clock(seconds)}: {job.animation.video}"
    warnings = [line for line in job.messages if line.startswith(WARNING)]
    return _html("status", state=job.state, title="Done", detail=detail, busy=False, share=None, messages=warnings)


def curve_html(identity: dict[str, Any] | None) -> str:
    """The curve of a record's ``identity``: 0 below, 1 above, a gap where a frame shows no face."""
    if identity is None:
        return ""
    values = identity["similarity"]
    last = max(1, len(values) - 1)
    lines = []
    for seen, run in groupby(enumerate(values), key=lambda item: item[1] is not None):
        if seen:
            points = [(100 * index / last, 40 - 40 * min(1.0, max(0.0, value))) for index, value in run]
            points = (
                points if len(points) > 1 else [(points[0][0] - 0.5, points[0][1]), (points[0][0] + 0.5, points[0][1])]
            )
            lines.append(" ".join(f"{x:.2f},{y:.2f}" for x, y in points))
    mean = identity["mean"]
    return _html(
        "curve", lines=lines, frames=len(values), mean="" if mean is None else f"{mean:.2f}",
        gaps=sum(value is None for value in values),
    )  # fmt: skip


def clock(seconds: float) -> str:
    """``75`` -> ``1:15 min``."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d} h" if hours else f"{minutes}:{rest:02d} min"
