"""Train the base and its variants by ``sa train``, on people of the train split.

The base stands in for Stable Video Diffusion: pictures, then temporal layers, without an ID path. That of portraits has
also drawn faces for references that lost theirs, as the variants have to. Its ID adapters are removed, so every variant
starts with copies of ``to_k/to_v`` and a random Face Encoder. A variant is trained on pictures, whose temporal layers
are skipped, and then on clips. Seed k of all variants shares initial weights, samples and noise. ``WORK/EXPERIMENT``
gets the clips, the runs and the base; finished parts are skipped. A base of ``bases/`` is used instead of an hour's
training.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file, save_file

from stableanimator_cli.catalogue.schema import FILE_NAME
from stableanimator_cli.engine.training.trainable import ADAPTER, TRAINED
from stableanimator_cli.files import atomic_write
from tools.command import report
from tools.figure_networks.detectors import write_digests
from tools.processes import Command, run_sa
from tools.puppet_training import clips
from tools.puppet_training.model import copy_model

VARIANTS: Mapping[str, Mapping[str, str]] = {
    "ours": {},
    "no-face-masks": {"--face-mask": "off"},
    "no-face-encoder": {"--face-encoder": "off"},
    "addition": {"--id-adapter": "addition"},
    "norm": {"--id-adapter": "norm"},
    "ip-adapter": {"--face-encoder": "off", "--id-adapter": "addition", "--face-mask": "off"},
    "no-face": {"--face": "off", "--face-mask": "off"},
}
"""Variant -> its flags of ``sa train`` beside the recipe.

"w/o Alignment" of Table 2 is "Addition" of Table 4. An IP-Adapter (Ye et al., 2023) projects the embedding into tokens
(no Face Encoder) and adds the output of a second cross-attention. As in Table 3 it replaces all parts that
StableAnimator adds, masks in the loss included; the same holds for no face at all."""

MAGIC: Mapping[str, Mapping[str, str]] = {
    "magic": VARIANTS["no-face"],
    "magic-ip": VARIANTS["ip-adapter"],
    "magic-fe-id": VARIANTS["ours"],
}
"""The trainings of Table 5, on the backbone magic: without a face, with an IP-Adapter's parts, with all of ours."""

TRAININGS: Mapping[str, Mapping[str, str]] = {**VARIANTS, **MAGIC}

Treatment = Literal["optimize", "paste"]
TREATED: Mapping[str, tuple[str, Treatment]] = {
    "magic-face-paste": ("magic", "paste"),
    "magic-opt": ("magic", "optimize"),
    "magic-ip-opt": ("magic-ip", "optimize"),
    "magic-fe-id-opt": ("magic-fe-id", "optimize"),
}
"""Rows of Table 5 that are a training with face optimisation while sampling, or with a pasted face after it."""

BASES = Path(__file__).parent / "bases"
"""Trained bases by experiment: config and float16 weights of UNet and PoseNet, as a folder of ``Trainer.base``."""

Stage = Literal["pictures", "clips"]
STAGES: tuple[Stage, ...] = ("pictures", "clips")
WIDTHS = [64, 96]
"""Channels of the UNet's levels; ``models/puppet`` has 64 and 128. diffusers requires multiples of 32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One base with its variants. ``size`` (w, h) of training and scores; drawings are twice as large, for embeddings.

    ``people`` of each stage's training clips. ``steps`` by recipe, in their order: those of the base, then the
    variants' two. ``recipe_flags`` differ from a recipe's settings. ``starts_from`` is the experiment whose base this
    one's base continues; None: random weights. ``renders``: animations are scored, not only denoised latents.
    ``flags`` of all trainings; ``clips_of`` is the experiment whose clips it shares; differences are those to
    ``baseline``.
    """

    name: str
    size: tuple[int, int]
    framing: str
    variants: tuple[str, ...]
    people: Mapping[Stage, int]
    steps: Mapping[str, int]
    recipe_flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    starts_from: str | None = None
    renders: bool = True
    flags: tuple[str, ...] = ()
    clips_of: str | None = None
    baseline: str = "ours"


EXPERIMENTS: Mapping[str, Experiment] = {
    "portraits": Experiment(
        name="portraits",
        size=(96, 96),
        framing="portrait",
        variants=tuple(VARIANTS),
        people={"pictures": 1250, "clips": 160},
        steps={"base-pictures": 1500, "base-hidden": 1000, "base-clips": 250, "pictures": 400, "clips": 100},
        recipe_flags={"base-clips": ("--lr", "3e-4", "--reference-degrade", "0.5"), "pictures": ("--lr", "6e-4")},
    ),
    "bodies": Experiment(
        name="bodies",
        size=(256, 128),
        framing="whole",
        variants=("ours", "no-face-masks"),
        people={"pictures": 500, "clips": 80},
        steps={"base-pictures": 300, "base-clips": 60, "pictures": 200, "clips": 30},
        starts_from="portraits",
        renders=False,
    ),
    "magic": Experiment(
        name="magic",
        size=(96, 96),
        framing="portrait",
        variants=(*MAGIC, *TREATED),
        people={"pictures": 1250, "clips": 160},
        steps={"base-pictures": 1500, "base-clips": 250, "pictures": 400, "clips": 100},
        flags=("--backbone", "magic", "--sigma", "timesteps"),
        clips_of="portraits",
        baseline="magic-fe-id-opt",
    ),
}


def trained_as(variant: str) -> str:
    """The training of a variant, which is its own if the variant has no treatment."""
    return TREATED[variant][0] if variant in TREATED else variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """Trains below ``work``. ``steps`` and ``people`` replace all numbers of the experiments, for tests."""

    work: Path
    command: Command
    steps: int | None = None
    people: int | None = None
    _data: dict[tuple[str, Stage], list[Path]] = field(default_factory=dict)

    def base(self, experiment: Experiment) -> Path:
        """The model folder without ID path that all variants start from."""
        folder = self.work / experiment.name
        base = folder / "base"
        if (base / FILE_NAME).is_file():
            return base
        stored = BASES / experiment.name
        trained = self.steps is None and self.people is None and stored.is_dir()
        model = self._random_start() if trained else self._train_base(experiment, folder / "runs")
        with atomic_write(base, folder=True) as temp:
            shutil.rmtree(temp, ignore_errors=True)
            shutil.copytree(model, temp)
            if trained:
                shutil.copytree(stored, temp, dirs_exist_ok=True)
            _remove_id_path(temp)
        return base

    def _train_base(self, experiment: Experiment, runs: Path) -> Path:
        """Train a base; returns the model folder, still with the ID adapters that nothing has trained."""
        if experiment.starts_from is None:
            model, fresh = self._random_start(), ",".join(TRAINED)
        else:
            model, fresh = self.base(EXPERIMENTS[experiment.starts_from]), "face_encoder"
        flags = ["--seed", "0", "--face", "off", "--face-mask", "off"]
        for number, recipe in enumerate(recipe for recipe in experiment.steps if recipe not in STAGES):
            initial = ["--from-scratch", fresh] if number == 0 else []
            model = self.train(experiment, recipe, model, [*flags, *initial], runs / recipe)
        return model

    def train(self, experiment: Experiment, recipe: str, model: Path, flags: list[str], run: Path) -> Path:
        """Train ``model`` by a recipe in the folder ``run``; returns the resulting model folder."""
        what = f"training {run.relative_to(self.work)}"
        out = run.with_name(f"{run.name}-model")
        if (out / FILE_NAME).is_file():
            return out
        if (run / "config.toml").is_file():
            report(f"{what}: resumes")
            run_sa(self.command, what, ["train", "--resume", str(run)])
        else:
            report(f"{what}: starts")
            data = self.clips(experiment, "clips" if recipe.endswith("clips") else "pictures")
            config = Path(__file__).with_name(f"{recipe}.toml")
            size = "x".join(map(str, experiment.size))
            steps = self.steps or experiment.steps[recipe]
            fixed = ["--config", str(config), "--sizes", size, "--steps", str(steps), "--model", str(model)]
            flags = [*experiment.recipe_flags.get(recipe, ()), *experiment.flags, *flags]
            run_sa(self.command, what, ["train", *map(str, data), "-o", str(run), *fixed, *flags])
        run_sa(self.command, what, ["train", "--resume", str(run), "--export", "model", "-o", str(out)])
        return out

    def variant(self, experiment: Experiment, variant: str, seed: int, stage: Stage) -> Path:
        """The model folder of a variant after a stage."""
        variant = trained_as(variant)
        flags = ["--seed", str(seed), *(word for pair in TRAININGS[variant].items() for word in pair)]
        folder = self.cell(experiment, variant, seed)
        if stage == "pictures":
            start, flags = self.base(experiment), [*flags, "--from-scratch", "face_encoder"]
        else:
            start = self.variant(experiment, variant, seed, "pictures")
        return self.train(experiment, stage, start, flags, folder / stage)

    def cell(self, experiment: Experiment, variant: str, seed: int) -> Path:
        """The folder of the runs and models of one variant and seed."""
        return self.work / experiment.name / "runs" / f"{trained_as(variant)}-{seed}"

    def clips(self, experiment: Experiment, stage: Stage) -> list[Path]:
        """The clip folders of a stage with caches of latents; missing ones are drawn."""
        if experiment.clips_of is not None:
            return self.clips(EXPERIMENTS[experiment.clips_of], stage)
        key = experiment.name, stage
        if key not in self._data:
            apart = stage == "pictures"
            width, height = experiment.size
            report(f"clips of {experiment.name} for {stage}: drawing what is missing")
            with redirect_stdout(sys.stderr):
                self._data[key] = clips.write_all(
                    self.work / experiment.name / f"data-{stage}",
                    str(self._random_start()),
                    people=self.people or experiment.people[stage],
                    frames=4 if apart else 9,
                    fps=Fraction(2 if apart else 8),
                    size=(2 * width, 2 * height),
                    encoded=experiment.size,
                    framing=experiment.framing,
                )
        return self._data[key]

    def _random_start(self) -> Path:
        """A model folder with the frozen networks of ``models/puppet`` and the config of a narrower UNet."""
        folder = self.work / "start"
        if not (folder / FILE_NAME).is_file():
            with atomic_write(folder, folder=True) as temp:
                shutil.rmtree(temp, ignore_errors=True)
                copy_model(temp)
                path = temp / "unet.json"
                config = {**json.loads(path.read_text()), "block_out_channels": WIDTHS}
                path.write_text(json.dumps(config, indent=2) + "\n")
        return folder


def _remove_id_path(folder: Path) -> None:
    """Remove the ID adapters, which nothing has trained: later trainings copy ``to_k/to_v`` (paper, Sec. 4.1)."""
    file = folder / "unet.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if ADAPTER not in name}
    part = file.with_suffix(".part")
    save_file(tensors, part, metadata={"format": "pt"})
    part.replace(file)
    write_digests(folder, [])
