"""Sample people and clothes deterministically from names and indices.

An identity (skin, face, hair, beard, glasses) is independent of clothes and build, so a person can be drawn in other
clothes. Splits share no person and no movement: every index of a split is congruent to its position in ``SPLITS``
modulo three, and every seed is a digest of such an index.
"""

from __future__ import annotations

import colorsys
import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from stableanimator_cli.errors import ConfigError

Split = Literal["train", "val", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
MAX_PEOPLE = 3

RGB = tuple[int, int, int]

HAIR_STYLES = (
    "bald", "buzz", "short", "parting", "fringe", "spiky", "bob", "long", "curly", "bun", "ponytail", "twintails",
    "mohawk", "wavy",
)  # fmt: skip
_HAIR_PROBABILITY = np.array([0.5, 0.6] + [1.0] * 12) / 13.1  # bald heads are harder to tell apart
BEARDS = ("none", "stubble", "full", "goatee", "moustache")
GLASSES = ("none", "round", "square")
NOSES = ("button", "line", "wide", "long")
TOPS = ("plain", "stripes", "bands", "dots", "logo", "jacket", "shirt", "hoodie", "yoke", "dress")
BOTTOMS = ("trousers", "shorts", "skirt")
SLEEVES = ("long", "short", "none")
LOGOS = ("disc", "star", "square", "heart", "ring", "bolt")

_SKINS: tuple[RGB, ...] = (
    (255, 226, 205), (250, 208, 180), (240, 190, 155), (226, 168, 130), (205, 145, 105),
    (178, 118, 82), (146, 92, 62), (112, 70, 48), (84, 54, 40), (238, 200, 150),
)  # fmt: skip
_HAIRS: tuple[RGB, ...] = (
    (28, 24, 26), (62, 40, 28), (98, 62, 36), (140, 92, 48), (214, 170, 92), (240, 214, 140), (186, 76, 36),
    (222, 104, 48), (168, 168, 174), (236, 236, 236), (226, 96, 150), (74, 108, 214), (60, 160, 118), (126, 74, 176),
    (170, 28, 40), (70, 190, 214),
)  # fmt: skip
_IRISES: tuple[RGB, ...] = (
    (70, 44, 28), (110, 72, 34), (46, 96, 176), (70, 150, 210), (52, 132, 70), (120, 150, 60), (110, 116, 124),
    (150, 70, 160), (190, 120, 30), (20, 20, 24),
)  # fmt: skip


def derive_seed(*names: object) -> int:
    """A 63-bit seed that depends on ``names`` alone, equal on every machine and Python version."""
    digest = hashlib.sha256("/".join(str(name) for name in names).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def derive_rng(*names: object) -> np.random.Generator:
    return np.random.default_rng(derive_seed(*names))


def global_index(split: str, index: int) -> int:
    """The number of a split's ``index``-th item, unique over all splits."""
    if split not in SPLITS:
        raise ConfigError("--split", split, f"one of {', '.join(SPLITS)}")
    if index < 0:
        raise ConfigError("--index", index, "0 or more")
    return index * len(SPLITS) + SPLITS.index(split)


@lru_cache(maxsize=4096)
def shade(colour: RGB, amount: float) -> RGB:
    """Lighten (``amount`` > 0, towards white) or darken (< 0, towards black) a colour."""
    target = 255.0 if amount > 0 else 0.0
    k = abs(amount)
    return tuple(round(c + (target - c) * k) for c in colour)  # type: ignore[return-value]


@lru_cache(maxsize=4096)
def mix(a: RGB, b: RGB, k: float) -> RGB:
    return tuple(round(x + (y - x) * k) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Appearance of a person. Lengths are in head heights.

    ``number`` is unique over all splits. ``power`` is the exponent of the face's superellipse, ``taper`` how much the
    jaw narrows. ``eye_height`` and similar heights on the head run from -1 (top) to 1 (chin).
    """

    number: int
    skin: RGB
    hair_colour: RGB
    iris: RGB
    lips: RGB
    hair: str
    beard: str
    glasses: str
    glasses_colour: RGB
    nose: str
    face_width: float
    power: float
    taper: float
    chin: float
    eye_spacing: float
    eye_width: float
    eye_aspect: float
    eye_tilt: float
    eye_height: float
    iris_size: float
    lashes: float
    brow_thickness: float
    brow_gap: float
    brow_tilt: float
    nose_size: float
    mouth_width: float
    mouth_height: float
    lip_thickness: float
    ear_size: float
    blush: float
    freckles: int
    moles: tuple[tuple[float, float], ...]
    earrings: bool
    hair_phase: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Body proportions in head heights. Not part of an identity: a face must be recognisable on any body."""

    shoulders: float
    hips: float
    torso: float
    arm: float
    leg: float
    girth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Clothes:
    """Patterns and colours of clothes."""

    top: str
    colour: RGB
    second: RGB
    logo: str
    sleeve: str
    bottom: str
    bottom_colour: RGB
    shoes: RGB
    count: int


def _jitter(rng: np.random.Generator, colour: RGB, amount: float) -> RGB:
    return tuple(int(np.clip(c + rng.normal(0, amount), 0, 255)) for c in colour)  # type: ignore[return-value]


def _cloth(rng: np.random.Generator) -> RGB:
    hue, saturation, value = rng.random(), rng.choice([0.08, 0.4, 0.65, 0.85]), rng.uniform(0.22, 0.98)
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))  # type: ignore[return-value]


def _apart(rng: np.random.Generator, *others: RGB, minimum: float = 90.0) -> RGB:
    """A cloth colour at least ``minimum`` away from ``others``, or the farthest of twelve."""
    best, distance = _cloth(rng), -1.0
    for _ in range(12):
        colour = _cloth(rng)
        apart = min(float(np.linalg.norm(np.subtract(colour, other))) for other in others)
        if apart > distance:
            best, distance = colour, apart
        if distance >= minimum:
            break
    return best


def sample_identity(number: int) -> Identity:
    """The person with this number (``global_index``)."""
    rng = derive_rng("identity", number)
    skin = _jitter(rng, _SKINS[int(rng.integers(len(_SKINS)))], 5)
    hair_colour = _jitter(rng, _HAIRS[int(rng.integers(len(_HAIRS)))], 8)
    if np.abs(np.subtract(skin, hair_colour)).max() < 45:  # hair like the skin hides the face's outline
        hair_colour = shade(hair_colour, -0.55 if sum(skin) > 330 else 0.6)
    hair = HAIR_STYLES[int(rng.choice(len(HAIR_STYLES), p=_HAIR_PROBABILITY))]
    bearded = rng.random() < (0.5 if hair in ("bald", "buzz", "short", "spiky", "mohawk") else 0.2)
    moles = tuple((float(rng.uniform(-0.25, 0.25)), float(rng.uniform(0.3, 0.72))) for _ in range(rng.integers(-2, 3)))
    return Identity(
        number=number,
        skin=skin,
        hair_colour=hair_colour,
        iris=_jitter(rng, _IRISES[int(rng.integers(len(_IRISES)))], 8),
        lips=mix(skin, (196, 40, 62), float(rng.uniform(0.3, 0.95))),
        hair=hair,
        beard=BEARDS[int(rng.integers(1, len(BEARDS)))] if bearded else "none",
        glasses=GLASSES[int(rng.choice(3, p=[0.68, 0.16, 0.16]))],
        glasses_colour=((24, 24, 28), (150, 30, 40), (40, 60, 140), (200, 160, 60))[int(rng.integers(4))],
        nose=NOSES[int(rng.integers(len(NOSES)))],
        face_width=float(rng.uniform(0.375, 0.49)),
        power=float(rng.uniform(2.0, 3.1)),
        taper=float(rng.uniform(0.0, 0.42)),
        chin=float(rng.uniform(-0.03, 0.05)),
        eye_spacing=float(rng.uniform(0.15, 0.225)),
        eye_width=float(rng.uniform(0.07, 0.125)),
        eye_aspect=float(rng.uniform(0.62, 1.3)),
        eye_tilt=float(rng.uniform(-0.2, 0.28)),
        eye_height=float(rng.uniform(0.04, 0.2)),
        iris_size=float(rng.uniform(0.55, 0.85)),
        lashes=float(rng.uniform(0.008, 0.03)),
        brow_thickness=float(rng.uniform(0.018, 0.055)),
        brow_gap=float(rng.uniform(0.05, 0.12)),
        brow_tilt=float(rng.uniform(-0.45, 0.45)),
        nose_size=float(rng.uniform(0.05, 0.1)),
        mouth_width=float(rng.uniform(0.085, 0.175)),
        mouth_height=float(rng.uniform(0.56, 0.68)),
        lip_thickness=float(rng.uniform(0.014, 0.045)),
        ear_size=float(rng.uniform(0.08, 0.13)),
        blush=float(rng.choice([0.0, 0.0, 0.35, 0.6])),
        freckles=int(rng.choice([0, 0, 0, 8])),
        moles=moles,
        earrings=bool(rng.random() < 0.2),
        hair_phase=float(rng.uniform(0, 6.283)),
    )


def exaggerate_features(who: Identity) -> Identity:
    """Enlarge eyes, brows and mouth, so that a face is recognisable in few pixels."""
    width = min(1.32 * who.eye_width, 0.43 * who.face_width - 0.02)
    spacing = min(max(1.1 * who.eye_spacing, width + 0.04), 0.9 * who.face_width - width)
    return replace(
        who,
        lips=mix(who.lips, (186, 28, 52), 0.4),
        eye_width=width,
        eye_spacing=spacing,
        eye_aspect=min(max(who.eye_aspect, 0.75), 0.15 / width),
        eye_height=0.6 * who.eye_height,
        lashes=who.lashes + 0.012,
        brow_thickness=0.012 + 1.4 * who.brow_thickness,
        mouth_width=1.3 * who.mouth_width,
        mouth_height=0.04 + who.mouth_height,
        lip_thickness=0.01 + 1.3 * who.lip_thickness,
    )


def sample_build(rng: np.random.Generator) -> Build:
    return Build(
        shoulders=float(rng.uniform(0.31, 0.41)),
        hips=float(rng.uniform(0.24, 0.33)),
        torso=float(rng.uniform(0.72, 0.88)),
        arm=float(rng.uniform(0.78, 0.92)),
        leg=float(rng.uniform(0.85, 1.2)),
        girth=float(rng.uniform(0.85, 1.2)),
    )


def sample_clothes(rng: np.random.Generator, skin: RGB) -> Clothes:
    """Clothes whose colours differ from the skin and from each other."""
    colour = _apart(rng, skin)
    return Clothes(
        top=TOPS[int(rng.integers(len(TOPS)))],
        colour=colour,
        second=_apart(rng, colour, minimum=110.0),
        logo=LOGOS[int(rng.integers(len(LOGOS)))],
        sleeve=SLEEVES[int(rng.choice(3, p=[0.5, 0.36, 0.14]))],
        bottom=BOTTOMS[int(rng.choice(3, p=[0.5, 0.2, 0.3]))],
        bottom_colour=_apart(rng, colour, skin),
        shoes=_cloth(rng),
        count=int(rng.integers(3, 6)),
    )
