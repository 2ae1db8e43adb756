"""The page of ``sa app``, in Gradio: the form on the left, the run and its result on the right."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from stableanimator_cli.app.engine_queue import Job
from stableanimator_cli.app.examples import Example
from stableanimator_cli.app.motion_preview import write_motion_preview
from stableanimator_cli.app.request import Request, faces_by_person, missing_input, number_of
from stableanimator_cli.app.session import Session
from stableanimator_cli.app.views import curve_html, error_html, plan_html, result_html, status_html
from stableanimator_cli.catalogue import DRAWN
from stableanimator_cli.errors import SaError, as_sa_error
from stableanimator_cli.progress import NullReporter, WarningLog

_FACES = -2  # position of the uploaded faces among the values of the form
POLL = 0.5  # seconds between two looks at a run
PLAYABLE = (".mp4", ".m4v", ".webm", ".mov")  # by browsers
PICTURES = [".png", ".jpg", ".jpeg", ".webp", ".bmp"]
MOTIONS = [".npz", *PLAYABLE, ".mkv", ".avi", ".gif", ".webp", ".json"]
PRESETS = ["the model's own", "quick", "fast", "standard", "released", "paper"]
PLANNING = "<div class='sa-note'>Estimating memory and time ...</div>"
EMPTY = "<div class='sa-empty'>The video appears here.</div>"
CSS = """
.gradio-container{max-width:1400px!important;margin:0 auto!important}
.sa-plan{display:flex;flex-wrap:wrap;gap:.4rem 1.6rem}
.sa-plan div{display:flex;flex-direction:column}
.sa-plan b{font-size:1.15rem;line-height:1.3}
.sa-plan span,.sa-note,.sa-axis,.sa-status span{color:var(--body-text-color-subdued);font-size:.85rem}
.sa-status{display:flex;flex-direction:column;gap:.3rem}
.sa-status span,.sa-note{overflow-wrap:anywhere}
.sa-bar{height:.6rem;border-radius:.3rem;background:var(--border-color-primary);overflow:hidden}
.sa-bar i{display:block;height:100%;background:var(--color-accent);transition:width .4s}
.sa-bar .sa-busy{width:30%;animation:sa-busy 1.6s ease-in-out infinite alternate}
@keyframes sa-busy{to{margin-left:70%}}
#video [data-testid=block-label],#beside [data-testid=block-label],#live [data-testid=block-label]{position:static}
#command textarea{field-sizing:content;height:auto!important}
#plan{min-height:4.2rem}
.sa-error{border-left:4px solid #c0392b;padding:.5rem .8rem;overflow-wrap:anywhere}
.sa-error div{color:var(--body-text-color-subdued)}
.sa-curve{margin:0}
.sa-curve svg{width:100%;height:7rem;display:block}
.sa-curve line{stroke:var(--border-color-primary);vector-effect:non-scaling-stroke}
.sa-curve polyline{fill:none;stroke:var(--color-accent);stroke-width:2.5;vector-effect:non-scaling-stroke}
.sa-axis{display:flex;justify-content:space-between}
.sa-empty{border:2px dashed var(--border-color-primary);border-radius:.6rem;padding:4rem 1rem;text-align:center;
 color:var(--body-text-color-subdued)}
details pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.8rem}
footer{display:none!important}
"""


def build_page(session: Session, examples: list[Example]) -> gr.Blocks:
    """The page for a session. The form shows the first example, so that the button can be pressed at once."""
    with gr.Blocks(title="sa: animate a person", analytics_enabled=False) as page:
        gr.Markdown("# Animate a person\nA picture and a motion become a video, with the face of the picture.")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                form = _form(session, examples, page.load)
                plan = gr.HTML(PLANNING, elem_id="plan", padding=False)
                with gr.Row():
                    start = gr.Button("Animate", variant="primary", elem_id="animate", scale=3, min_width=160)
                    stop = gr.Button("Stop", elem_id="stop", interactive=False, scale=1, min_width=90)
            with gr.Column(scale=6, min_width=300):
                status = gr.HTML(EMPTY, elem_id="status", padding=False)
                live = gr.Image(
                    label="Live preview: some frames as they are so far", interactive=False, visible=False,
                    elem_id="live", buttons=[],
                )  # fmt: skip
                with gr.Column(visible=False) as result:
                    video = gr.Video(label="Video", elem_id="video", autoplay=True, loop=True, height=400)
                    beside = gr.Video(label="Picture, skeleton, video", elem_id="beside", autoplay=True, loop=True)
                    curve = gr.HTML(elem_id="curve", padding=False)
                command = gr.Textbox(
                    label="Command line that repeats it", visible=False, interactive=False, lines=2, max_lines=8,
                    elem_id="command", buttons=["copy"],
                )  # fmt: skip
        job = gr.State(None)
        gr.on(
            [page.load, *(box.change for box in form)], partial(_plan, session), form, plan,
            trigger_mode="always_last", show_progress="hidden", concurrency_limit=1,
        )  # fmt: skip
        start.click(
            partial(_run, session), form, [job, status, live, result, video, beside, curve, command, start, stop],
            show_progress="hidden", concurrency_limit=None,
        )  # fmt: skip
        stop.click(partial(_stop, session), job, stop, queue=False)
    return page


def _form(session: Session, examples: list[Example], load: Any) -> list[Any]:
    """The inputs, in the order that ``_request`` takes them. ``load`` is the page's event."""
    model = session.default_model
    shown = examples[0] if examples and model == DRAWN else None
    with gr.Row():
        picture = gr.Image(
            value=shown and str(shown.picture), label="Picture", type="filepath", height=300,
            sources=["upload", "clipboard"], buttons=[], elem_id="picture", min_width=240,
        )  # fmt: skip
        with gr.Column(min_width=240):
            motion = gr.File(
                value=shown and str(shown.motion), label="Motion or video",
                file_types=MOTIONS, height=110, elem_id="motion",
            )  # fmt: skip
            moving = gr.Video(
                label="Motion", show_label=False, height=180, interactive=False, autoplay=True, loop=True, buttons=[],
                visible=False, elem_id="moving",
            )  # fmt: skip
    _take_as_they_are(picture, motion)
    drawn = gr.Dataset(
        components=[picture], samples=[[str(one.picture)] for one in examples], type="index",
        label="No picture at hand? Drawn people, for the model puppet", visible=bool(examples), elem_id="people",
    )  # fmt: skip
    drawn.click(lambda index: tuple(map(str, examples[index])), drawn, [picture, motion])
    with gr.Row():
        model_box = gr.Dropdown(list(session.models), value=model, label="Model", min_width=120)
        sizes = session.sizes(model)
        size = gr.Dropdown(sizes, value=sizes[0], label="Size", allow_custom_value=True, min_width=120)
    model_box.change(partial(_sizes, session), model_box, size)
    gr.on([load, motion.change], partial(_moving, session), motion, moving, show_progress="hidden")
    with gr.Accordion("More settings", open=False):
        with gr.Row():
            # no gr.Number: an empty one becomes 0 once the accordion opens
            steps = gr.Textbox("", label="Steps", placeholder="the model's own", max_lines=1, min_width=120)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=120)
        with gr.Row():
            frames = gr.Textbox("", label="Frames", placeholder="all, or as 0:48", max_lines=1, min_width=120)
            preset = gr.Dropdown(PRESETS, value=PRESETS[0], label="Preset", min_width=120)
        memory = gr.Textbox("", label="Stay below this memory", placeholder="no limit, or as 6GB", max_lines=1)
        with gr.Row():
            person = gr.Textbox("", label="People", placeholder="all, largest, or as 1,0", max_lines=1, min_width=120)
            pair = gr.Textbox(
                "", label="Face of each", placeholder="from left to right, or as 0:1,1:0", max_lines=1, min_width=120
            )
        with gr.Row():
            faces = gr.File(
                label="Other faces", file_count="multiple", file_types=PICTURES, height=110,
                elem_id="faces", min_width=120,
            )  # fmt: skip
            _take_as_they_are(faces)
            owners = gr.Textbox(
                "", label="Whose faces they are", placeholder="0,1,... in the order of the files", max_lines=1,
                min_width=120,
            )  # fmt: skip
        hide = gr.Checkbox(False, label="Hide the picture's own face: for other faces")
        no_face = gr.Checkbox(False, label="Continue if the picture shows no face")
        force = gr.Checkbox(False, label="Continue if the picture is unlike those that the model was trained on")
    people = [person, pair, faces, owners]
    return [picture, motion, model_box, size, steps, seed, frames, preset, memory, hide, no_face, force, *people]


def _moving(session: Session, motion: str | None) -> Any:
    """The motion as a video, if it is one or a motion file that can be drawn."""
    path = Path(motion) if motion else None
    suffix = "" if path is None else path.suffix.lower()  # cameras and phones write .MP4 and .MOV
    if path is not None and suffix == ".npz":
        target = Path(tempfile.mkdtemp(dir=session.temporary)) / "motion.mp4"
        with contextlib.suppress(SaError):  # the plan reports it
            return gr.Video(str(write_motion_preview(path, target)), visible=True)
    elif path is not None and suffix in PLAYABLE:
        return gr.Video(str(path), visible=True)
    return gr.Video(None, visible=False)


def _take_as_they_are(*components: Any) -> None:
    """Receive the paths of uploads: Gradio would decode pictures, check suffixes, and report both in its own words."""
    for component in components:
        component.preprocess = _paths


def _paths(payload: Any) -> str | list[str] | None:
    """Path of an upload, or of each of several."""
    if payload is None:
        return None
    return [one.path for one in payload.root] if hasattr(payload, "root") else payload.path


def _sizes(session: Session, model: str) -> Any:
    sizes = session.sizes(model)
    return gr.Dropdown(choices=sizes, value=sizes[0])


def _request(values: tuple[Any, ...]) -> Request:
    """The request of the form. Raises ``BadInput`` if a file is missing."""
    picture, motion, model, size, steps, seed, frames, preset, memory, hide, no_face, force, *people = values
    person, pair, faces, owners = people
    missing = missing_input(picture, motion)
    if missing is not None:
        raise missing
    options = {
        "model": model,
        "size": size,
        "steps": number_of(steps, "Steps"),
        "seed": int(seed or 0),
        "frames": frames.strip(),
        "preset": "" if preset == PRESETS[0] else preset,
        "max_memory": memory.strip(),
        "person": person.strip(),
        "pair": pair.strip(),
        "hide_reference_face": hide,
        "allow_no_face": no_face,
        "force": force,
        "preview": "video",
    }
    # by identity: 0 == False, and a number of 0 steps is to be refused
    given = {name: value for name, value in options.items() if not (value is None or value is False or value == "")}
    others = faces_by_person(faces or (), owners)
    return Request(reference=Path(picture), motion=Path(motion), options=given, faces=others)


def _plan(session: Session, *values: Any) -> Iterator[str]:
    """The plan of the form, or the error that the run would end in."""
    if not values[0] or not values[1]:
        yield ""
        return
    yield PLANNING
    folders = [*_folders(values), session.temporary]
    warnings = WarningLog(NullReporter())
    try:
        yield plan_html(session.plan(_request(values), warnings), warnings.warnings)
    except Exception as error:
        yield error_html(as_sa_error(error), folders)


def _run(session: Session, *values: Any) -> Iterator[Any]:
    """Submit the form and follow the run: values of job, status, live preview, result group, videos, curve, command,
    and the two buttons."""
    same = gr.skip()
    try:
        job = session.queue.submit(_request(values))
    except Exception as error:
        text = error_html(as_sa_error(error), _folders(values))
        yield [None, text, gr.Image(visible=False), gr.Column(visible=False), *[same] * 6]
        return
    busy, idle = (
        [gr.Button(interactive=not running), gr.Button("Stop", interactive=running)] for running in (True, False)
    )
    text = status_html(job, session.queue.ahead_of(job))
    yield [job, text, gr.Image(None, visible=False), gr.Column(visible=False), *[same] * 4, *busy]
    shown, command = None, False
    while not job.finished:
        time.sleep(POLL)
        news = status_html(job, session.queue.ahead_of(job))
        image, run = job.preview, None if command else job.run
        if news == text and image is shown and run is None:
            continue
        live = same if image is shown else gr.Image(image, visible=True)
        line = same if run is None else gr.Textbox(run.command, visible=True)
        text, shown, command = news, image, command or run is not None
        yield [same, text, live, *[same] * 4, line, same, same]
    try:
        outcome = _outcome(session, job)
    except Exception as error:  # the folder was removed since, or the copies find no room; the form stays usable
        outcome = [error_html(as_sa_error(error), ()), gr.Image(None, visible=False), *[same] * 5]
    yield [job, *outcome, *idle]


def _folders(values: tuple[Any, ...]) -> list[Path]:
    """Folders of the uploaded files, which messages leave out."""
    return [Path(file).parent for file in (*values[:2], *(values[_FACES] or ())) if file]


def _outcome(session: Session, job: Job) -> list[Any]:
    """Values of status, live preview, result group, videos, curve and command of a finished run."""
    same = gr.skip()
    if job.animation is None:
        assert job.error is not None
        folders = [*(path.parent for path in job.request.inputs), *([job.run.folder] if job.run else [])]
        again = job.run is not None and job.run.folder.is_dir()
        text = error_html(job.error, folders)
        if job.state == "stopped" and again:
            text += "<div class='sa-note'>Press Animate with the same settings to resume.</div>"
        return [text, same, same, same, same, same, gr.Textbox(visible=again)]
    assert job.animation.preview is not None
    record = json.loads(job.animation.record.read_text(encoding="utf-8"))
    return [
        result_html(job), gr.Image(None, visible=False), gr.Column(visible=True), session.shown(job.animation.video),
        session.shown(job.animation.preview), curve_html(record["identity"]), same,
    ]  # fmt: skip


def _stop(session: Session, job: Job | None) -> Any:
    if job is not None:
        session.queue.stop(job)
    return gr.Button("Stopping", interactive=False)
