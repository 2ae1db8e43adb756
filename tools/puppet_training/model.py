"""The initial model folder of a training: a copy of ``models/puppet``, with another VAE if one was trained."""

from __future__ import annotations

import shutil
from pathlib import Path

from tools.figure_networks.detectors import write_digests

BASE = Path("models/puppet")


def copy_model(out: Path, vae: Path | None = None) -> Path:
    """Copy ``models/puppet`` to ``out``, with the weights ``vae``; the copy has no card and no ``[training]`` table."""
    shutil.copytree(BASE, out, ignore=shutil.ignore_patterns("CARD.md"))
    if vae is not None:
        shutil.copyfile(vae, out / "vae.safetensors")
        (out / "vae.safetensors").chmod(0o644)
    card = out / "model.toml"
    text = card.read_text(encoding="utf-8")
    card.write_text(text.partition("[training]")[0] + "[[files]]" + text.partition("[[files]]")[2], encoding="utf-8")
    write_digests(out, [])
    return out
