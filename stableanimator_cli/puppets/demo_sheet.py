"""The picture and the video of ``sa demo``: three people side by side with their identity curves, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HEADER, CURVES, MARGIN = 30, 150, 34  # pixels: titles above, curves below, and the room for an axis
COLUMNS = ("reference", "motion", "sa animate", "another's face vector")
_COLOURS = ((214, 69, 65), (38, 110, 190), (42, 150, 90))
_PAPER, _INK, _GRID = (250, 250, 250), (40, 40, 40), (215, 215, 215)
_INSET = 4.5  # sides of a cell over those of the other person's face


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonRow:
    """One person: images uint8[s,s,3], videos uint8[t,s,s,3], and similarities of the face to the reference, float[t].

    ``other`` is the reference of the person whose face vector ``swapped`` was made with. NaN where no face is found.
    """

    reference: np.ndarray
    skeletons: Sequence[np.ndarray]
    result: Sequence[np.ndarray]
    swapped: Sequence[np.ndarray]
    other: np.ndarray
    similarity: np.ndarray
    swapped_similarity: np.ndarray


def draw_demo(people: Sequence[PersonRow]) -> Iterator[np.ndarray]:
    """One image per frame, uint8[h,w,3] with even sides: a row per person, the curves so far below."""
    side = people[0].reference.shape[0]
    width, height = side * len(COLUMNS), HEADER + side * len(people) + CURVES
    font = ImageFont.load_default(max(12, side // 16))
    page = Image.new("RGB", (width + width % 2, height + height % 2), _PAPER)
    pen = ImageDraw.Draw(page)
    for column, title in enumerate(COLUMNS):
        pen.text((column * side + side // 2, HEADER // 2), title, _INK, font, anchor="mm")
    for row, person in enumerate(people):
        page.paste(Image.fromarray(person.reference), (0, HEADER + row * side))
        pen.rectangle((0, HEADER + row * side, 7, HEADER + (row + 1) * side - 1), fill=_COLOURS[row % len(_COLOURS)])
    _axes(pen, height - CURVES, width, font)
    small = int(side / _INSET)
    insets = [Image.fromarray(person.other).resize((small, small), Image.Resampling.LANCZOS) for person in people]
    for t in range(len(people[0].result)):
        frame = page.copy()
        for row, person in enumerate(people):
            top = HEADER + row * side
            for column, image in enumerate((person.skeletons[t], person.result[t], person.swapped[t]), 1):
                frame.paste(Image.fromarray(image), (column * side, top))
            frame.paste(insets[row], (4 * side - small - 4, top + 4))
        _curves(ImageDraw.Draw(frame), people, t, height - CURVES, width)
        yield np.asarray(frame)


def halve(image: np.ndarray) -> np.ndarray:
    """The image uint8[h,w,3] at half of its even sides, as the GIF shows it."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    return image.reshape(height, 2, width, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)


def _axes(pen: ImageDraw.ImageDraw, top: int, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    for level in (0.0, 0.5, 1.0):
        y = _height_of(level, top)
        pen.line((MARGIN, y, width - 8, y), _GRID)
        pen.text((MARGIN - 4, y), f"{level:g}", _INK, font, anchor="rm")
    legend = "similarity of the face to the reference, by frame: sa animate (line), another's face vector (dots)"
    pen.text((MARGIN + 4, top + 14), legend, _INK, font, anchor="lm")


def _curves(pen: ImageDraw.ImageDraw, people: Sequence[PersonRow], now: int, top: int, width: int) -> None:
    frames = len(people[0].result)
    xs = np.linspace(MARGIN + 6, width - 12, frames)
    for person, colour in zip(people, cycle(_COLOURS), strict=False):
        points = [(float(x), _height_of(value, top)) for x, value in zip(xs, person.similarity, strict=True)]
        for left, right in pairwise(points[: now + 1]):
            if np.isfinite([left[1], right[1]]).all():
                pen.line((*left, *right), colour, 2)
        for x, value in zip(xs[: now + 1], person.swapped_similarity, strict=False):
            if np.isfinite(value):
                y = _height_of(value, top)
                pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        if np.isfinite(points[now][1]):
            x, y = points[now]
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)


def _height_of(similarity: float, top: int) -> float:
    """Row of pixels of a similarity: 0 at the bottom, 1 below the legend."""
    if not np.isfinite(similarity):
        return float("nan")
    return top + CURVES - 14 - min(1.0, max(0.0, similarity)) * (CURVES - 44)
