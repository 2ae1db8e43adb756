"""Detect the layouts of existing weight folders.

The reference implementation uses ``checkpoints/`` with ``Animation/{unet,pose_net,face_encoder}.pth``, a diffusers
folder of Stable Video Diffusion (named ``SVD`` in its scripts and
``stable-video-diffusion-img2vid-xt`` in its demo), ``DWPose/`` and, outside ``checkpoints``, ``models/antelopev2``.
Zips unpacked one level too deep, flat files, and its trainer's ``checkpoint-N/unet-N.pth`` open too. Only names and
paths are examined; the only file read is the note that ``sa train --export upstream`` writes beside the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stableanimator_cli.errors import ModelMissing
from stableanimator_cli.readers import damaged_model, read_json
from stableanimator_cli.readers_fields import Fields

if TYPE_CHECKING:
    from stableanimator_cli.records import ChannelOrder

NOTE = "stableanimator-cli.json"
"""Note beside exported weights, for what their files cannot hold."""

EXPORT_ALL = "export all networks of the run: `sa train --resume RUN --export model -o FOLDER`"
"""The hint for exported networks of other sizes than SVD's, which no download completes."""

SIGNS = "Animation/unet.pth, unet.pth, an SVD folder (vae/, image_encoder/), DWPose/ or antelopev2/"
"""Signs of a layout, for messages."""

ANIMATOR, BASE, FACE, POSE = "stableanimator", "svd-xt", "antelopev2", "dwpose"

_FORMS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
_SVD_STEMS = {
    "vae": ("diffusion_pytorch_model",),
    "image_encoder": ("model", "pytorch_model"),
    "unet": ("diffusion_pytorch_model",),
}
_SVD_FOLDERS = (
    "SVD",
    "stable-video-diffusion-img2vid-xt",
    "SVD/stable-video-diffusion-img2vid-xt",
    "stable-video-diffusion-img2vid-xt-1-1",
    "svd-xt",
    ".",
)
_FACE_FILE = "glintr100.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutMatch:
    """One role in a downloaded folder: its weight file or folder, and the config beside it."""

    file: Path | None = None
    config: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Content of a folder. ``parts`` and ``searched`` (folders) are keyed by (catalogue entry, role).

    ``primary`` is the entry that the folder is a download of. ``face_channel_order`` overrides the entry's;
    ``guessed_order`` is the weight file if its order is unknown. ``fits_svd``: whether the networks have the sizes of
    SVD's, which complete them.
    """

    folder: Path
    primary: str
    parts: Mapping[tuple[str, str], LayoutMatch]
    searched: Mapping[tuple[str, str], tuple[Path, ...]]
    face_channel_order: ChannelOrder | None = None
    guessed_order: Path | None = None
    fits_svd: bool = True

    def warnings(self, order: ChannelOrder | None) -> tuple[str, ...]:
        """What is not known about the folder; ``order`` is the channel order that is used."""
        if self.guessed_order is None:
            return ()
        note = self.guessed_order.with_name(NOTE)
        return (
            f"{self.guessed_order} does not name the channel order in which faces are embedded; {order} is used, as "
            f'for the released weights. To set it, write {{"face_channel_order": "bgr"}} to {note}',
        )

    def incomplete(self, roles: Iterable[str]) -> ModelMissing:
        """The error for missing networks that must have other sizes than SVD's: no download has them."""
        return ModelMissing(
            f"{self.folder}: its networks have other sizes than SVD's, and lack {', '.join(roles)} of these sizes",
            hint=EXPORT_ALL,
        )


def detect_layout(folder: Path) -> Layout | None:
    """The layout of ``folder`` (``checkpoints`` or its parent, or one model's folder), None if unknown."""
    search = _Search(folder)
    numbered = search.animator()
    search.base()
    search.detectors()
    search.face()
    # a face pack beside the folder completes a download, but does not make the folder one
    owners = {name for (name, _), f in search.parts.items() if f.file is not None and f.file.is_relative_to(folder)}
    primary = next((n for n in (ANIMATOR, BASE, FACE, POSE) if n in owners), None)
    if primary is None:
        return None
    order, guessed, fits_svd = None, None, True
    unet = search.parts.get((ANIMATOR, "unet"))
    if primary == ANIMATOR and unet is not None and unet.file is not None:
        order, fits_svd = _read_note(unet.file.parent)
        if order is None and numbered:
            # the reference implementation's trainer now embeds faces in insightface's order; the released weights
            # most likely were not trained so, which their entry records
            order = "bgr"
        guessed = unet.file if order is None else None
    return Layout(
        folder=folder,
        primary=primary,
        parts=search.parts,
        searched=search.searched,
        face_channel_order=order,
        guessed_order=guessed,
        fits_svd=fits_svd,
    )


def _read_note(folder: Path) -> tuple[ChannelOrder | None, bool]:
    """The channel order in the note beside exported weights, None without a note, and whether the networks have the
    sizes of SVD's. Raises ``ModelDamaged``."""
    path, what = folder / NOTE, "the note beside exported weights"
    if not path.exists():
        return None, True
    note = Fields.of(read_json(path, what, error=damaged_model), path, what, error=damaged_model)
    return note.choice("face_channel_order", ("bgr", "rgb")), note.flag("fits_svd", default=True)


class _Search:
    """The search of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bases = (folder, folder / "checkpoints")
        self.parts: dict[tuple[str, str], LayoutMatch] = {}
        self.searched: dict[tuple[str, str], tuple[Path, ...]] = {}

    def note(self, name: str, role: str, paths: Iterable[Path], config: Path | None = None) -> Path | None:
        """Record the first of ``paths`` that is a file, and the searched folders for an error."""
        paths = tuple(paths)
        file = next((p for p in paths if p.is_file()), None)
        self.searched[name, role] = tuple(dict.fromkeys(p.parent for p in paths))
        if file is not None or config is not None:
            self.parts[name, role] = LayoutMatch(file=file, config=config)
        return file

    def animator(self) -> bool:
        """Record the three trained networks; true if the UNet is the numbered one of a training checkpoint."""
        numbered = False
        for role in ("unet", "pose_net", "face_encoder"):
            steps = _numbered(self.folder, role)
            folders = [base / sub for base in self.bases for sub in ("Animation", ".")]
            # .pth comes last: converted files are preferred
            file = self.note(
                ANIMATOR, role, [*(f / f"{role}{e}" for f in folders for e in (".safetensors", ".pth")), *steps]
            )
            numbered = numbered or (role == "unet" and file in steps)
        return numbered

    def base(self) -> None:
        """The diffusers folder of Stable Video Diffusion, its configs, and its UNet's config for ours."""
        svd = next((b / s for b in self.bases for s in _SVD_FOLDERS if _is_svd(b / s)), None)
        top = svd if svd is not None else self.bases[0] / _SVD_FOLDERS[0]
        for role, stems in _SVD_STEMS.items():
            folder = top / role
            self.note(BASE, role, [folder / f"{stem}{e}" for e in _FORMS for stem in stems], _config(folder))
        scheduler = top / "scheduler" / "scheduler_config.json"
        if scheduler.is_file():
            self.parts[BASE, "scheduler"] = LayoutMatch(config=scheduler)
        unet = self.parts.get((ANIMATOR, "unet"))
        if unet is not None:
            self.parts[ANIMATOR, "unet"] = LayoutMatch(file=unet.file, config=_config(top / "unet"))

    def detectors(self) -> None:
        for role, name in (("person_detector", "yolox_l.onnx"), ("pose_detector", "dw-ll_ucoco_384.onnx")):
            self.note(POSE, role, [b / s / name for b in self.bases for s in ("DWPose", "dwpose", ".")])

    def face(self) -> None:
        """The antelopev2 pack, each path also one level deeper: its zip holds a folder of its own name."""
        tops = (self.folder, self.folder.parent, *self.bases[1:])
        paths = [p for t in tops for p in (t / "models" / FACE, t / "models" / FACE / FACE)]
        paths += [p for b in self.bases for p in (b / FACE, b / FACE / FACE)]
        paths.append(self.folder)
        self.searched[FACE, "face"] = tuple(paths[:-1])
        found = next((p for p in paths if (p / _FACE_FILE).is_file()), None)
        if found is not None:
            self.parts[FACE, "face"] = LayoutMatch(file=found)


def _is_svd(folder: Path) -> bool:
    return (folder / "vae").is_dir() or (folder / "image_encoder").is_dir()


def _config(folder: Path) -> Path | None:
    path = folder / "config.json"
    return path if path.is_file() else None


def _numbered(folder: Path, role: str) -> list[Path]:
    """``unet-3000.pth`` of a training checkpoint; of several, the highest number first."""
    found = [(int(m[1]), p) for p in folder.glob(f"{role}-*.pth") if (m := re.fullmatch(rf"{role}-(\d+)", p.stem))]
    return [path for _, path in sorted(found, reverse=True)]
