"""Train the variants of the paper's Tables 2, 3 and 4 on the puppet model, and compute the tables.

``python -m tools.bench.ablations WORK`` (``make ablations``) trains seven variants by ``sa train``. All start from one
common checkpoint (``--base``, the shipped puppet) with the same recipe (``ablations.toml``), clips and seed.
``WORK/ablations`` gets one model folder per variant. ``--tables`` (``make ablation-tables``) then runs ``sa evaluate
--ablation`` on them with three sampling seeds, into ``WORK/table2`` to ``table4``. Interrupt at any time; run the same
command to resume: finished variants are skipped with a message, trainings are resumed.

``ours`` is trained further as well, so it gets as many steps as the other variants. It still has an advantage: the
common checkpoint was trained with all parts. ``--fresh`` reduces it by initialising the Face Encoder at random in every
variant, and needs more steps. Otherwise all weights stay: "w/o Face Encoder" keeps the projection's weights and loses
the fusion, so its adapters receive unfamiliar inputs.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue.schema import FILE_NAME
from stableanimator_cli.errors import BadInput, BadUsage, Interrupted, SaError
from stableanimator_cli.files import atomic_write, sha256_of, translate_os_errors
from stableanimator_cli.readers import read_json
from stableanimator_cli.readers_fields import Fields
from tools.command import exit_code_of, report

VARIANTS: Mapping[str, Mapping[str, str]] = {
    "ours": {},
    "no-face-masks": {"--face-mask": "off"},
    "no-face-encoder": {"--face-encoder": "off"},
    "addition": {"--id-adapter": "addition"},
    "norm": {"--id-adapter": "norm"},
    "ip-adapter": {"--face-encoder": "off", "--id-adapter": "addition", "--face-mask": "off"},
    "no-face": {"--face": "off", "--face-mask": "off"},
}
"""Variant (the name of its model folder) -> its flags of ``sa train`` beside the recipe.

"w/o Alignment" of Table 2 is "Addition" of Table 4. An IP-Adapter (Ye et al., 2023) projects the embedding into tokens
(no Face Encoder) and adds the output of a second cross-attention. As in Table 3 it replaces all parts that
StableAnimator adds, masks in the loss included; the same holds for no face at all."""

RECIPE = Path(__file__).with_name("ablations.toml")
ANIMATE = Path(__file__).with_name("ablations_animate.toml")
TABLES = ("table2", "table3", "table4")
TRAINED = ("unet", "pose_net", "face_encoder")
FOLDER, _SETTINGS = "ablations", "ablations.json"
_GRACE = 30.0  # seconds that an interrupted command has to exit
_CLIPS = 400
_SHARED = ("data", "animated")  # by the tables: a variant of two tables is animated once

Command = Callable[[Sequence[str]], int]
"""Runs Python with arguments (``-m stableanimator_cli ...``) to its end; returns the exit code."""


class CommandFailed(SaError):
    """A command for a variant failed; it has printed its own error. Has the exit code of that command."""

    code = "command-failed"

    def __init__(self, what: str, exit_code: int) -> None:
        super().__init__(
            f"{what}: exit code {exit_code}", hint="fix the error above and run the same command to resume"
        )
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The settings that all variants share.

    ``data`` are clip folders; None draws ``clips`` puppets. ``steps`` replaces the number of each of the recipe's
    stages.
    """

    work: Path
    base: str = "puppet"
    data: Path | None = None
    clips: int = _CLIPS
    recipe: Path = RECIPE
    steps: int | None = None
    seed: int = 0
    fresh: bool = False

    def settings(self) -> dict[str, object]:
        """The settings that determine the weights.

        Raises ``ModelMissing`` without the base, ``BadInput`` without the recipe.
        """
        model = catalogue.open_model(self.base, TRAINED)
        if not self.recipe.is_file():
            raise BadInput(self.recipe, "no such file", "a recipe of stages, as sa train --config takes it")
        return {
            "base": self.base if self.base in catalogue.names() else str(Path(self.base).resolve()),
            "weights": {role: sha256_of(model.files[role]) for role in TRAINED},
            "data": f"{self.clips} puppets" if self.data is None else str(self.data.resolve()),
            "recipe": sha256_of(self.recipe),
            "steps": self.steps,
            "seed": self.seed,
            "fresh": self.fresh,
        }


def train_variants(plan: Plan, command: Command, report: Callable[[str], None]) -> list[Path]:
    """Train the variants that are not trained yet; returns their model folders in the order of ``VARIANTS``.

    Raises ``BadInput`` if ``plan.work`` has variants of other settings: rows of one table share all of them.
    """
    _check_settings(plan)
    data = plan.data if plan.data is not None else _draw_clips(plan, command, report)
    folders = []
    for name, flags in VARIANTS.items():
        folder = plan.work / FOLDER / name
        if (folder / FILE_NAME).is_file():
            report(f"{name}: already trained, {folder}")
        else:
            _train(plan, name, flags, data, command, report)
            run = str(plan.work / "runs" / name)
            export = ["train", "--resume", run, "--export", "model", "-o", str(folder)]
            _run(command, f"writing {folder}", export)
        folders.append(folder)
    return folders


def write_tables(work: Path, command: Command, flags: Sequence[str] = ()) -> list[Path]:
    """Score the trained variants by ``sa evaluate`` with further ``flags``; returns the tables' ``scores.json``."""
    variants = work / FOLDER
    if not variants.is_dir():
        raise BadInput(variants, "no such folder", "trained variants", hint=f"make ablations ABLATIONS={work}")
    for name in _SHARED:
        (work / name).mkdir(exist_ok=True)
    written = []
    for table in TABLES:
        out = work / table
        out.mkdir(exist_ok=True)
        for name in _SHARED:
            if not (out / name).is_symlink():
                (out / name).symlink_to(Path("..") / name, target_is_directory=True)
        evaluate = ["evaluate", "--ablation", table, "--variants", str(variants), "-o", str(out), *flags]
        _run(command, f"scoring {table}", evaluate)
        written.append(out / "scores.json")
    return written


def _check_settings(plan: Plan) -> None:
    """Compare the settings with those of the folder's first training, or record them before the first one."""
    path, settings = plan.work / _SETTINGS, plan.settings()
    started = any(plan.work.glob("runs/*/config.toml")) or any(plan.work.glob(f"{FOLDER}/*/{FILE_NAME}"))
    if started and path.is_file():
        what, hint = "the settings of the variants", "choose another WORK"
        recorded = Fields.of(read_json(path, what, hint=hint), path, what, hint=hint).table
        changed = [key for key in settings if recorded.get(key) != settings[key]]
        if changed:
            raise BadInput.because(
                path, f"its variants were trained with different {' and '.join(changed)}",
                hint="use the same settings, or choose another WORK: variants of one table share all of them",
            )  # fmt: skip
        return
    with translate_os_errors(path), atomic_write(path) as temp:
        temp.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _draw_clips(plan: Plan, command: Command, report: Callable[[str], None]) -> Path:
    videos, clips = plan.work / "videos", plan.work / "clips"
    if clips.is_dir() and sum(1 for _ in clips.glob("[0-9]*/clip.json")) >= plan.clips:
        report(f"clips: {plan.clips} exist, {clips}")
        return clips
    draw = ["puppets", str(videos), "--videos", str(plan.clips), "--frames", "10", "--size", "256x256"]
    _run(command, "drawing puppets", draw)
    code = command(["-m", "tools.truth_clips", str(videos), str(clips)])
    _check(code, f"writing {clips}")
    return clips


def _train(
    plan: Plan, name: str, flags: Mapping[str, str], data: Path, command: Command, report: Callable[[str], None]
) -> None:
    run = plan.work / "runs" / name
    if (run / "config.toml").is_file():
        report(f"{name}: resumes, {run}")
        _run(command, f"training {name}", ["train", "--resume", str(run)])
        return
    report(f"{name}: starts, {run}")
    train = ["train", str(data), "-o", str(run), "--model", plan.base, "--config", str(plan.recipe)]
    train += ["--seed", str(plan.seed)]
    train += [] if plan.steps is None else ["--steps", str(plan.steps)]
    train += ["--from-scratch", "face_encoder"] if plan.fresh else []
    _run(command, f"training {name}", [*train, *(word for pair in flags.items() for word in pair)])


def _run(command: Command, what: str, arguments: Sequence[str]) -> None:
    _check(command(["-m", "stableanimator_cli", *arguments]), what)


def _check(code: int, what: str) -> None:
    if code in (130, -2):
        raise Interrupted(f"{what}: interrupted", hint="run the same command to resume")
    if code:
        raise CommandFailed(what, code if code > 0 else 128 - code)


def python(arguments: Sequence[str]) -> int:
    """A ``Command``: this Python in a separate process, which frees all memory at its end.

    Its stdout goes to stderr, so that stdout has only the paths.
    """
    process = subprocess.Popen([sys.executable, *arguments], stdout=sys.stderr)
    try:
        return process.wait()
    except KeyboardInterrupt as stop:
        if isinstance(stop, _Terminated):  # Ctrl-C in a terminal has reached the process already
            process.terminate()
        try:
            process.wait(_GRACE)  # it saves its state
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which is sent to this process alone."""


def _terminated(signum: int, frame: object) -> None:
    raise _Terminated


def main(arguments: Sequence[str] | None = None) -> None:
    options, flags = _parser().parse_known_args(arguments)
    if flags and not options.tables:
        raise BadUsage(f"no option {flags[0]} here", hint="--help lists them; those of sa evaluate need --tables")
    if options.tables:
        own = ["--seeds", options.seeds, "--figures", str(options.figures), "--length", str(options.length)]
        written = write_tables(options.work, python, [*own, "--animate", str(options.animate), *flags])
    else:
        plan = Plan(
            work=options.work, base=options.base, data=options.data, clips=options.clips, recipe=options.recipe,
            steps=options.steps, seed=options.seed, fresh=options.fresh,
        )  # fmt: skip
        written = train_variants(plan, python, report)
    sys.stdout.writelines(f"{path}\n" for path in written)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.ablations", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("work", metavar="WORK", type=Path, help="folder of all results; finished parts stay")
    train = parser.add_argument_group("training")
    train.add_argument("--data", type=Path, help="clip folders (default: puppets, drawn into WORK)")
    train.add_argument("--clips", type=int, default=_CLIPS, help="number of puppets (default %(default)s)")
    train.add_argument("--base", default="puppet", help="the common checkpoint (default %(default)s)")
    train.add_argument("--recipe", type=Path, default=RECIPE, help="stages and losses (default: ablations.toml)")
    train.add_argument("--steps", type=int, help="steps of each stage, instead of the recipe's")
    train.add_argument("--seed", type=int, default=0, help="seed of the trainings (default %(default)s)")
    train.add_argument("--fresh", action="store_true", help="initialise the Face Encoder at random in every variant")
    score = parser.add_argument_group("tables", "further options go to sa evaluate")
    score.add_argument("--tables", action="store_true", help="score the trained variants instead of training them")
    score.add_argument("--seeds", default="0,1,2", help="seeds of the sampling (default %(default)s)")
    score.add_argument("--figures", type=int, default=6, help="held-out figures (default %(default)s)")
    score.add_argument("--length", type=int, default=8, help="frames of each (default %(default)s)")
    score.add_argument("--animate", type=Path, default=ANIMATE, help="settings (default: ablations_animate.toml)")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(exit_code_of(main))
