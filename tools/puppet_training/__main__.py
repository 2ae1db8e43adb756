"""Train the small model in one command that resumes, on portraits of 256x256.

``python -m tools.puppet_training RUN`` starts from ``models/puppet`` (``--from-scratch``: random weights), draws its
own data, trains, writes the model folder ``RUN/final``, scores it on the held-out portraits, and with ``--publish``
writes it into ``models/puppet``.
Interrupt at any time; run the same command to resume. On a GPU use ``--device cuda --workers 14 --people 8000 --batch
128``. ``--train-vae STEPS`` trains the VAE first; a denoiser only works with the VAE that it was trained with.
``--train-decoder STEPS`` trains its decoder last, on latents that the denoiser made.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from stableanimator_cli.config.schema import read_toml
from stableanimator_cli.engine.training.trainable import TRAINED
from stableanimator_cli.errors import BadInput
from stableanimator_cli.train.checkpoint import LINK
from tools.command import exit_code_of
from tools.processes import on_sigterm, python, run_sa
from tools.publish import VAE, publish, publish_decoder
from tools.puppet_training import clips, decoder, vae
from tools.puppet_training.model import BASE, copy_model
from tools.settings import check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One training by ``sa train`` with ``settings`` (a TOML file here) and ``flags``, on the clips in ``folder``.

    ``several``: a share of the clips shows two and three people. ``exchanged``: part of ``--share-exchanged`` whose
    references have other faces, which ``hide`` replaces with noise. Another ``seed`` draws other people.
    """

    settings: str
    flags: tuple[str, ...] = ()
    folder: str = "images"
    several: bool = False
    exchanged: float = 0.0
    hide: bool = False
    seed: int = 0


STAGES: Mapping[str, Stage] = {
    "pictures": Stage(settings="pictures"),
    "detail": Stage(settings="detail"),
    "again": Stage(settings="again"),
    "further": Stage(settings="again"),
    "people": Stage(settings="people", several=True),
    "hidden": Stage(settings="hidden", several=True),
    # Beside its exchanged references, all of them hidden, as many with a visible face as in the stage ``hidden``.
    "hidden-exchanged": Stage(
        settings="hidden", flags=("--reference-degrade", "0.25"), folder="images-hidden-exchanged", several=True,
        exchanged=1.0, hide=True,
    ),
    # Seven in ten references show their faces: what portraits lose by the stages before comes back.
    "visible": Stage(
        settings="hidden", flags=("--reference-degrade", "0.15"), folder="images-visible", several=True,
        exchanged=0.5, hide=True, seed=200,
    ),
    "exchanged": Stage(settings="people", folder="images-exchanged", several=True, exchanged=1.0),
    "clips": Stage(settings="clips", folder="clips-data"),
}  # fmt: skip
# Without exchanged references, which let faces follow their vectors and cost detail (docs/log.md).
USUAL = tuple(name for name in STAGES if name != "exchanged")
FIXED = ("people", "share_several", "share_exchanged", "train_vae", "steps", "batch", "from_scratch")
"""Options that a RUN has from its first command: finished clips and stages are not repeated for others."""
SEVERAL = ", ".join(name for name, stage in STAGES.items() if stage.several)


def train_vae(options: argparse.Namespace) -> Path | None:
    """Train the VAE if requested; returns the path of its weights."""
    if not options.train_vae:
        return None
    folder = options.run / "vae"
    flags = ["--steps", str(options.train_vae), "--device", options.device, "--half-judge"]
    if options.device != "cpu":
        flags += ["--batch", "16", "--workers", str(options.workers)]
    vae.main([str(folder), *flags])
    return folder / "vae.safetensors"


def train_decoder(options: argparse.Namespace, model: Path) -> Path | None:
    """Train the decoder on latents that ``model`` made if requested; returns the weights of the VAE."""
    if not options.train_decoder:
        return None
    flags = ["--model", str(model), "--steps", str(options.train_decoder), "--device", options.device]
    decoder.main([str(options.run / "decoder"), *flags])
    return options.run / "decoder" / VAE


def check_start(run: Path, model: Path) -> None:
    """Raise ``BadInput`` unless the training in ``run`` started from ``model``: the last one named is the result."""
    stored = Path(str(read_toml(run / "config.toml").get("model", "")))
    known, given = ((path.parent if path.name == LINK else path).name for path in (stored, model))
    if known != given:
        hint = "name the --stages of the earlier command in its order, further ones after them, or another folder"
        raise BadInput.because(run, f"it continues {known}, not {given}", hint=hint)


def train_stage(options: argparse.Namespace, name: str, model: Path, data: Sequence[Path]) -> Path:
    """Run ``sa train`` with the settings of one stage; returns the resulting model folder."""
    run, stage = options.run / name, STAGES[name]
    command = ["train"]
    if (run / "config.toml").exists():
        check_start(run, model)
        command += ["--resume", str(run)]
    else:
        config = Path(__file__).with_name(f"{stage.settings}.toml")
        command += [*map(str, data), "-o", str(run), "--model", str(model), "--config", str(config)]
        command += ["--device", options.device, *stage.flags]
        if options.batch:
            command += ["--batch", str(options.batch if name != "clips" else max(4, options.batch // 8))]
        if options.steps:
            command += ["--steps", str(options.steps)]
        if options.from_scratch and name == options.stages[0]:
            command += ["--from-scratch", ",".join(TRAINED)]
    run_sa(python, f"stage {name}", command)
    return run / LINK


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.puppet_training", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--people", type=int, default=3000)
    parser.add_argument(
        "--share-several", type=float, default=0.2, metavar="S",
        help=f"of {SEVERAL}: share of clips of 2 and 3",
    )  # fmt: skip
    parser.add_argument(
        "--share-exchanged", type=float, default=0.3, metavar="S",
        help="of stages with exchanged references: share of references with other faces than the embeddings; in "
        "visible half of it",
    )  # fmt: skip
    parser.add_argument("--train-vae", type=int, default=0, metavar="STEPS")
    parser.add_argument("--train-decoder", type=int, default=0, metavar="STEPS")
    parser.add_argument("--steps", type=int, help="of each stage, instead of the settings'")
    parser.add_argument("--batch", type=int, help="images per step, instead of the settings'")
    parser.add_argument("--from-scratch", action="store_true", help="random weights instead of models/puppet's")
    parser.add_argument("--publish", action="store_true", help="write the result into models/puppet")
    parser.add_argument("--stages", nargs="+", choices=tuple(STAGES), default=USUAL)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--score", type=int, default=50, metavar="N", help="held-out clips to score; 0 for none")
    options = parser.parse_args(arguments)
    clips.check_shares(parser, options)
    model = options.run / "start"
    settings = {name: getattr(options, name) for name in FIXED}
    check_settings(options.run / "settings.json", settings, started=model.exists())
    if not model.exists():
        temp = options.run / ".start.part"
        shutil.rmtree(temp, ignore_errors=True)
        copy_model(temp, train_vae(options)).rename(model)
    for name in options.stages:
        stage, apart = STAGES[name], name != "clips"
        data = clips.write_all(
            options.run / stage.folder,
            str(options.run / "start"),
            people=options.people if apart else max(options.people // 8, 16),
            frames=4 if apart else 9,
            fps=Fraction(2 if apart else 8),
            device=options.device,
            workers=options.workers,
            share=options.share_several if stage.several else 0.0,
            exchanged=options.share_exchanged * stage.exchanged,
            hide=stage.hide,
            seed=stage.seed,
        )
        model = train_stage(options, name, model, data)
    weights = train_decoder(options, model)
    final = options.run / "final"
    shutil.rmtree(final, ignore_errors=True)
    shutil.copytree(BASE, final)
    for folder in (final, BASE) if options.publish else (final,):
        publish(model.parent, folder, options.run / "start" / VAE if options.train_vae else None)
        if weights is not None:
            publish_decoder(weights, folder)
    if options.score:
        command = ["-m", "tools.puppet_training.score", "--model", str(final), "--swap"]
        command += ["--device", options.device, "--count", str(options.score)]
        return python([*command, "--out", str(options.run / "score.jsonl")])
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, on_sigterm)
    sys.exit(exit_code_of(main))
