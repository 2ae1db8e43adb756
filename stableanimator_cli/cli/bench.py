"""``sa bench``: what the networks cost and how fast they are here, side by side and beside this machine's roof."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from stableanimator_cli.cli import console, options
from stableanimator_cli.cli.command import complete_model

_PLACES = {"networks", "video", "against"}  # reports omit their paths
_ELSEWHERE = {"output", "page", "json", "quiet", "progress", "baseline", "python"}
NAMES = (
    "roofline",
    "cost",
    "unet",
    "vae",
    "sample",
    "long",
    "hjb",
    "train",
    "preprocess",
    "evaluate",
    "compare",
    "gate",
)


def complete_name(incomplete: str) -> list[str]:
    return [name for name in NAMES if name.startswith(incomplete)]


NamesArg = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", autocompletion=complete_name, help=f"What to measure: {', '.join(NAMES)}."),
]
NetworksOpt = Annotated[
    str | None,
    typer.Option(
        "--networks",
        metavar="full|NAME|FOLDER",
        autocompletion=complete_model,
        help="full: the released shapes with random weights; else a catalogue name or model folder. Default: puppet "
        "(cost: full).",
    ),
]
SizeOpt = Annotated[
    str | None,
    typer.Option("--size", metavar="WxH", help="Width and height in pixels, as 576x1024. Default: what suits each."),
]
FramesOpt = Annotated[
    int | None, typer.Option("--frames", metavar="T", min=1, help="Frames. Default: what suits each.")
]
StepsOpt = Annotated[
    int | None, typer.Option("--steps", metavar="N", min=1, help="Denoising steps. Default: what suits each.")
]
PairsOpt = Annotated[
    int | None, typer.Option("--pairs", metavar="N", min=1, help="Rounds of each comparison, by turns. Default: 7.")
]
VariantOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--variant",
        metavar="WAY",
        help="A way of unet or vae to compare with the plain one (may be repeated): prepared, batched, channels-last, "
        "compiled, 'chunks of 4', 'chunks of 1'. Default: all but compiled.",
    ),
]
FaceOpt = Annotated[
    int | None,
    typer.Option(
        "--face", metavar="PIXELS", min=8, help="hjb, cost: a side of the face. Default: the drawn face; 128 in cost."
    ),
]
ItersOpt = Annotated[
    int | None, typer.Option("--refine-iters", metavar="K", min=1, help="hjb: iterations a step. Default: 3.")
]
MarginOpt = Annotated[
    int | None,
    typer.Option("--margin", metavar="LATENTS", min=0, help="hjb: latents round the face in a crop. Default: 8."),
]
VideoOpt = Annotated[
    Path | None, typer.Option("--video", metavar="FILE", help="preprocess: a video. Default: a drawn figure.")
]
AgainstOpt = Annotated[
    Path | None,
    typer.Option(
        "--against",
        metavar="FOLDER",
        help="compare: a clone of the reference implementation. Its code is run, in a process of its own.",
    ),
]
PythonOpt = Annotated[
    Path | None,
    typer.Option(
        "--python", metavar="FILE", help="compare: the interpreter that runs the clone. Default: the one that runs sa."
    ),
]
BaselineOpt = Annotated[
    Path | None,
    typer.Option("--baseline", metavar="FILE.json", help="gate: recorded counters. Default: those that come with sa."),
]
AcceptOpt = Annotated[bool, typer.Option("--accept", help="gate: record the counters found. Default: off.")]
OutputOpt = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="OUT.json", help="Also write what was found as JSON.")
]
PageOpt = Annotated[
    Path | None,
    typer.Option(
        "--page", metavar="PAGE.md", help="Also write the tables into a Markdown page, each between its markers."
    ),
]

DeviceOpt = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="Device: auto, cpu, cuda, cuda:N or mps. Default: auto."),
]
DtypeOpt = Annotated[
    Literal["auto", "float16", "bfloat16", "float32"] | None,
    typer.Option("--dtype", help="Floating-point type of the networks. Default: auto."),
]


def bench(
    context: typer.Context,
    names: NamesArg,
    networks: NetworksOpt = None,
    size: SizeOpt = None,
    frames: FramesOpt = None,
    steps: StepsOpt = None,
    pairs: PairsOpt = None,
    variant: VariantOpt = None,
    face: FaceOpt = None,
    refine_iters: ItersOpt = None,
    margin: MarginOpt = None,
    video: VideoOpt = None,
    against: AgainstOpt = None,
    python: PythonOpt = None,
    baseline: BaselineOpt = None,
    accept: AcceptOpt = False,
    device: DeviceOpt = None,
    dtype: DtypeOpt = None,
    output: OutputOpt = None,
    page: PageOpt = None,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa bench cost --size 512x512
    sa bench roofline unet hjb --networks puppet --pairs 3 --page docs/performance.md

    Measure: FLOPs, bytes alive and calls are counted and the same everywhere; seconds are measured by turns in one
    process and read as ratios, or beside the roofline of the same run. Prints tables. gate leaves with 8 where a
    counter is not what was recorded.
    """
    out = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.bench import run

    flags = {
        "names": names,
        "networks": networks,
        "size": size,
        "frames": frames,
        "steps": steps,
        "pairs": pairs,
        "variants": variant or None,
        "face": face,
        "iterations": refine_iters,
        "margin": margin,
        "video": video,
        "against": against,
        "python": python,
        "baseline": baseline,
        "accept": accept or None,
        "device": device,
        "dtype": dtype,
    }
    report = run.run(flags=flags, command=_command(context), reporter=out)
    if output is not None:
        report.write(output)
    if page is not None:
        report.write_page(page)
    for table in report.all_tables():
        if table.rows:
            out.table(table.title, table.columns, table.cells(), data=True)
        out.info(f"{table.title}: {table.note}" if table.note else "")
    run.check(report, baseline)
    if json:
        out.result(report.to_json(), "")


def _command(context: typer.Context) -> str:
    """The command line without output options and without the paths of inputs."""
    given = {name: value for name, value in context.params.items() if name not in _ELSEWHERE and value}
    words = ["sa", "bench", *given.pop("names")]
    for parameter in context.command.params:
        name = parameter.name or ""
        value = given.get(name)
        if value is True:
            words.append(parameter.opts[0])
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not None:
                words += [parameter.opts[0], Path(one).name if name in _PLACES else str(one)]
    return shlex.join(words)
