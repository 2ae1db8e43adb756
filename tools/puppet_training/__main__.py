"""Train the small model at 256x256 in one command that resumes.

``python -m tools.puppet_training RUN`` starts from the weights in ``state`` beside this file (or ``models/puppet``),
draws its own data, trains, and scores the result on the held-out portraits. Interrupt at any time; run the same command
to resume. On a GPU use ``--device cuda --workers 14 --people 8000 --batch 128``. ``--train-vae STEPS`` trains the VAE
first; a denoiser only works with the VAE that it was trained with.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from tools.puppet_training import clips, vae
from tools.puppet_training.model import BASE, write_model

STATE = Path(__file__).with_name("state")
STAGES = ("pictures", "detail", "clips")


def train_vae(options: argparse.Namespace) -> Path:
    """Train the VAE if requested; returns the path of its weights."""
    stored = STATE / "vae.safetensors"
    if not options.train_vae:
        return stored if stored.exists() else BASE / "vae.safetensors"
    folder = options.run / "vae"
    flags = ["--steps", str(options.train_vae), "--device", options.device, "--half-judge"]
    if options.device != "cpu":
        flags += ["--batch", "16", "--workers", str(options.workers)]
    if (STATE / "vae.pt").exists():
        flags += ["--start", str(STATE / "vae.pt")]
    vae.main([str(folder), *flags])
    return folder / "vae.safetensors"


def train_stage(options: argparse.Namespace, stage: str, model: Path, data: Sequence[Path]) -> Path:
    """Run ``sa train`` with the settings of one stage; returns the resulting model folder."""
    run = options.run / stage
    command = [sys.executable, "-m", "stableanimator_cli", "train"]
    if (run / "config.toml").exists():
        command += ["--resume", str(run)]
    else:
        config = Path(__file__).with_name(f"{stage}.toml")
        command += [*map(str, data), "-o", str(run), "--model", str(model), "--config", str(config)]
        command += ["--device", options.device]
        if options.batch:
            command += ["--batch", str(options.batch if stage != "clips" else max(4, options.batch // 8))]
        if options.steps:
            command += ["--steps", str(options.steps)]
    code = subprocess.run(command, check=False).returncode
    if code:  # the child has printed why
        raise SystemExit(code)
    return run / "model"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.puppet_training", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--people", type=int, default=3000)
    parser.add_argument("--train-vae", type=int, default=0, metavar="STEPS")
    parser.add_argument("--steps", type=int, help="of each stage, instead of the settings'")
    parser.add_argument("--batch", type=int, help="images per step, instead of the settings'")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    options = parser.parse_args(arguments)
    options.run.mkdir(parents=True, exist_ok=True)
    model = options.run / "start"
    if not model.exists():
        denoiser = STATE / "denoiser"
        temp = options.run / ".start.part"
        shutil.rmtree(temp, ignore_errors=True)
        write_model(temp, train_vae(options), denoiser if denoiser.exists() and not options.train_vae else None)
        temp.rename(model)
    for stage in options.stages:
        apart = stage != "clips"
        data = clips.write_all(
            options.run / ("images" if apart else "clips-data"),
            str(options.run / "start"),
            people=options.people if apart else max(options.people // 8, 16),
            frames=4 if apart else 9,
            fps=Fraction(2 if apart else 8),
            device=options.device,
            workers=options.workers,
        )
        model = train_stage(options, stage, model, data)
    command = [sys.executable, "-m", "tools.puppet_training.score", "--model", str(model), "--swap"]
    subprocess.run([*command, "--device", options.device, "--out", str(options.run / "score.jsonl")], check=False)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command to resume")
