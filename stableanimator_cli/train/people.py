"""People of training samples: their face vectors, faces in the references, and regions.

A batch whose samples all show one person has no regions, so it is computed like a batch of a training without
``--people``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from stableanimator_cli.clip_folder import WIDTH


class SamplePeople(NamedTuple):
    """The ``p`` people of a sample of ``t`` frames.

    ``vectors`` float32[512] per person, None if no face is known; ``boxes`` float32[4] per person: the face in the
    reference in latent cells, NaN if it is not visible; ``regions`` float32[t,p+1,h/8,w/8] (``motion.person_regions``),
    None for one person.
    """

    vectors: Sequence[np.ndarray | None]
    boxes: Sequence[np.ndarray]
    regions: np.ndarray | None


def stack_people(samples: Sequence[SamplePeople], *, frames: int, cells: tuple[int, int]) -> dict[str, Any]:
    """``face``, ``has_face``, ``reference_box`` and ``regions`` of a ``Batch`` of ``frames`` of ``cells`` (h, w).

    Samples with fewer people than others are padded with people without a face whose regions are empty.
    """
    maximum = max(len(sample.vectors) for sample in samples)
    face = np.zeros((len(samples), maximum, WIDTH), np.float32)
    known = np.zeros((len(samples), maximum), bool)
    boxes = np.full((len(samples), maximum, 4), np.nan, np.float32)
    regions = np.zeros((len(samples), frames, maximum + 1, *cells), np.float32)
    for k, sample in enumerate(samples):
        for n, (vector, box) in enumerate(zip(sample.vectors, sample.boxes, strict=True)):
            boxes[k, n] = box
            if vector is not None:
                face[k, n], known[k, n] = vector, True
        if sample.regions is None:
            regions[k, :, 0] = 1
        else:
            people = sample.regions.shape[1] - 1
            regions[k, :, :people], regions[k, :, -1] = sample.regions[:, :-1], sample.regions[:, -1]
    fields = {"face": face, "has_face": known, "reference_box": boxes}
    if maximum == 1:
        return {name: torch.from_numpy(array[:, 0]) for name, array in fields.items()} | {"regions": None}
    return {name: torch.from_numpy(array) for name, array in (fields | {"regions": regions}).items()}


def same_arrangement(centres: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Frames that show the people of the ``chosen`` frames in the same order from left to right, bool[t].

    ``centres`` float32[t,p]: horizontal position of each person, NaN if absent.
    """
    seen = np.isfinite(centres[chosen]).any(axis=0)
    order = np.argsort(np.nanmean(centres[chosen][:, seen], axis=0), kind="stable")
    arranged = centres[:, seen][:, order]
    return np.asarray(np.isfinite(arranged).all(axis=1) & (np.diff(arranged, axis=1) > 0).all(axis=1))
