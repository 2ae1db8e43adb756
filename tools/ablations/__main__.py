"""The paper's ablations (Tables 2 to 5) on the small model, with enough seeds to see differences.

``python -m tools.ablations WORK`` (``make ablations``) trains a base without ID path (``training``), then seven
variants with each of ``--seeds`` seeds, scores each after pictures and after temporal training (``scores``), and prints
paired differences to ``ours`` (``page``). Face masks have an experiment of their own, of whole bodies with small faces.
So has Table 5: its base and three variants are models of the backbone magic, and its other rows are these with face
optimisation or a pasted face.
``--pilot`` trains two variants with three seeds, which gives the spread. Interrupt at any time; run the same command to
resume: ``WORK/scores.jsonl`` has one row per variant, seed, stage and person. ``--tables`` prints the rows so far.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stableanimator_cli import catalogue
from stableanimator_cli.bench.rows import ResumableRows, Row, read_rows, short_digests
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import atomic_write, sha256_of
from tools.ablations.page import UPPER, text_of, to_json
from tools.ablations.scores import People, Scorer, write_sheet
from tools.ablations.training import (
    BASES,
    EXPERIMENTS,
    STAGES,
    TRAININGS,
    TREATED,
    Experiment,
    Stage,
    Trainer,
    trained_as,
)
from tools.bench.pages import page_section, write_section
from tools.command import exit_code_of, positive, report
from tools.processes import Command, on_sigterm, python
from tools.settings import check_settings

PILOT = ("ours", "addition")
PILOT_SEEDS, SEEDS, PEOPLE = 3, 5, 24
SECTION = "ablations"  # of the page
ALL_VARIANTS = (*TRAININGS, *TREATED)
_SHEET = 8  # people of a sheet


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``variants`` and ``experiments`` select what is trained; ``seeds`` may grow, the other settings are fixed.

    ``steps`` and ``people`` (of training clips) replace the numbers of every recipe and experiment, for tests.
    """

    work: Path
    experiments: tuple[str, ...] = tuple(EXPERIMENTS)
    variants: tuple[str, ...] = ALL_VARIANTS
    seeds: int = SEEDS
    scored: int = PEOPLE
    steps: int | None = None
    people: int | None = None
    keep: bool = False

    def settings(self) -> dict[str, object]:
        """The settings that determine every row."""
        recipes = sorted(Path(__file__).parent.glob("*.toml"))
        return {
            "scored": self.scored,
            "steps": self.steps or {name: dict(experiment.steps) for name, experiment in EXPERIMENTS.items()},
            "people": self.people or {name: dict(experiment.people) for name, experiment in EXPERIMENTS.items()},
            "flags": {name: dict(experiment.recipe_flags) for name, experiment in EXPERIMENTS.items()},
            "recipes": {path.stem: sha256_of(path)[:12] for path in recipes},
            "bases": {path.parent.name: sha256_of(path)[:12] for path in sorted(BASES.glob("*/unet.safetensors"))},
            "weights": short_digests(catalogue.open_model("puppet"), ("vae", "image_encoder", "face", "judge")),
        }


def measure(plan: Plan, command: Command) -> list[Row]:
    """Train and score what is missing; returns all rows. Seeds come in turn, so interrupted results are paired."""
    started = any((plan.work / name / "runs").is_dir() for name in EXPERIMENTS)
    check_settings(plan.work / "settings.json", plan.settings(), started=started)
    rows = ResumableRows(plan.work / "scores.jsonl", plan.settings())
    measured = list(rows.rows)
    trainer = Trainer(work=plan.work, command=command, steps=plan.steps, people=plan.people)
    for name in plan.experiments:
        experiment, people = EXPERIMENTS[name], None
        for variant, seed, stage in _cells(plan, experiment):
            key = {"experiment": name, "variant": variant, "seed": seed, "stage": stage}
            done = {row["person"] for row in measured if key.items() <= row.items()}
            if len(done) < plan.scored:
                if variant == UPPER:
                    model = trainer.base(experiment)
                else:
                    model = trainer.variant(experiment, variant, seed, stage)
                people = people or People(experiment, plan.scored)
                started = time.monotonic()
                for row in _score(plan, experiment, people, model, key, done):
                    rows.append(row)
                    measured.append(row)
                report(f"{variant}, seed {seed}, after {stage}: scored in {time.monotonic() - started:.0f} s")
            if variant != UPPER and stage == STAGES[-1] and not plan.keep:
                following = [other for other in _variants(plan, experiment) if trained_as(other) == trained_as(variant)]
                if variant == following[-1]:  # of those that are scored from the same training
                    shutil.rmtree(trainer.cell(experiment, variant, seed), ignore_errors=True)
    return measured


def _cells(plan: Plan, experiment: Experiment) -> Iterator[tuple[str, int, Stage]]:
    """Variant, seed and stage in the order of work; the VAE's own scores first."""
    if experiment.renders:
        yield UPPER, 0, STAGES[0]
    for seed in range(plan.seeds):
        for variant in _variants(plan, experiment):
            for stage in STAGES[-1:] if variant in TREATED else STAGES:
                yield variant, seed, stage


def _variants(plan: Plan, experiment: Experiment) -> list[str]:
    return [variant for variant in experiment.variants if variant in plan.variants]


def _score(plan: Plan, experiment: Experiment, people: People, model: Path, key: Row, done: set[int]) -> Iterator[Row]:
    sheet = []
    variant = key["variant"]
    with_face = TRAININGS.get(trained_as(variant), {}).get("--face") != "off"
    treatment = TREATED[variant][1] if variant in TREATED else None
    with Scorer(model, experiment, people, with_face=with_face, treatment=treatment) as scorer:
        for person in range(plan.scored):
            if key["variant"] == UPPER:
                figures = scorer.reconstruct(person)
            else:
                if person in done and person >= _SHEET:
                    continue
                figures, images = scorer.score(person)
                sheet += [images] if person < _SHEET and experiment.renders else []
            if person not in done:
                yield {**key, "person": person, **figures}
    if sheet:
        name = f"{key['variant']}-{key['seed']}-{key['stage']}.png"
        write_sheet(plan.work / experiment.name / "sheets" / name, sheet)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.ablations", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("work", metavar="WORK", type=Path, help="folder of all results; finished parts stay")
    parser.add_argument("--pilot", action="store_true", help="two variants, three seeds, portraits only")
    parser.add_argument("--seeds", type=positive, help=f"training seeds (default {SEEDS}; more may follow later)")
    parser.add_argument("--experiments", nargs="+", choices=tuple(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--variants", nargs="+", choices=ALL_VARIANTS, default=list(ALL_VARIANTS))
    parser.add_argument("--scored", type=positive, default=PEOPLE, help=f"people of the test split (default {PEOPLE})")
    parser.add_argument("--steps", type=positive, help="of every training, instead of the experiment's")
    parser.add_argument("--people", type=positive, help="training people, instead of the experiment's")
    parser.add_argument("--keep", action="store_true", help="keep the runs and models of scored variants")
    parser.add_argument("--tables", action="store_true", help="train nothing; print the rows so far")
    parser.add_argument("--page", type=Path, help="also write the tables into a Markdown page")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(arguments)
    plan = Plan(
        work=options.work,
        experiments=("portraits",) if options.pilot else tuple(options.experiments),
        variants=PILOT if options.pilot else tuple(options.variants),
        seeds=options.seeds or (PILOT_SEEDS if options.pilot else SEEDS),
        scored=options.scored,
        steps=options.steps,
        people=options.people,
        keep=options.keep,
    )
    rows = read_rows(plan.work / "scores.jsonl", plan.settings()) if options.tables else measure(plan, python)
    if not rows:  # a page keeps its tables
        hint = "run without --tables first" if options.tables else "name --variants of the --experiments"
        raise BadInput.because(plan.work / "scores.jsonl", "it has no rows", hint=hint)
    text = text_of(rows)
    with atomic_write(plan.work / "scores.json") as temp:
        temp.write_text(json.dumps(to_json(rows), indent=1) + "\n", encoding="utf-8")
    write_section(options.page, SECTION, page_section("Variants against ours", "tools.ablations", arguments, text))
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, on_sigterm)
    sys.exit(exit_code_of(main))
