"""Graphics cards that need not be here, for ``--card``: what their vendor publishes (``cards.toml``), and what
``sa bench card --accept`` measured (``cards.toml`` of the user, whose rows win)."""

from __future__ import annotations

import functools
import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from stableanimator_cli.errors import BadInput, ConfigError, did_you_mean
from stableanimator_cli.readers import read_toml

SHARE = 0.28
"""Share of the published rate that a rendering reaches, from reports of others on an A100 at 576x1024: StableAnimator,
16 frames in about 30 s (28.5 %, its issue 84), and Stable Video Diffusion XT, 25 frames in 50.9 s (26 %, OneDiff's pull
request 514), both with eager PyTorch. Cards with less arithmetic per byte of bandwidth reach more: an RTX 4090 41 % by
the README of StableAnimator."""

USER_TABLE = "cards.toml"
"""In the folder of downloaded files."""

_MAKERS = re.compile(r"nvidia|geforce|tesla|quadro|[^a-z0-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A card: dense TFLOP/s by type (``bf16`` None if it has none), ``bandwidth`` in GB/s, ``memory`` in GiB. ``share``
    of the rate is what a rendering reached on it, if it was measured."""

    name: str
    bf16: float | None = None
    fp16: float
    fp32: float
    bandwidth: float
    memory: int
    source: str
    share: float = SHARE

    @property
    def bytes(self) -> int:
        return self.memory << 30

    def flops_per_second(self, dtype: str) -> float:
        """The published rate for ``float16``, ``bfloat16`` or ``float32``."""
        rates = {"float16": self.fp16, "bfloat16": self.bf16 or self.fp32, "float32": self.fp32}
        return rates[dtype] * 1e12


@functools.cache
def cards() -> tuple[Card, ...]:
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return tuple(Card(**row) for row in table["card"])


def read_cards(path: Path) -> tuple[Card, ...]:
    """The cards of a user's table, none if there is no file. Raises ``BadInput`` for anything but cards."""
    if not path.exists():
        return ()
    what = "a table of cards as `sa bench card --accept` writes it"
    try:
        found = tuple(Card(**row) for row in read_toml(path, what)["card"])
        if all(map(_plausible, found)):
            return found
    except (LookupError, TypeError):
        pass
    raise BadInput(path, "other tables", what, hint="correct it, or delete it")


def _plausible(card: Card) -> bool:
    """Whether the values of a card have their types: texts, whole gibibytes, and positive finite rates."""
    rates = (card.fp16, card.fp32, card.bandwidth, card.share, *(() if card.bf16 is None else (card.bf16,)))
    texts = isinstance(card.name, str) and isinstance(card.source, str)
    return texts and type(card.memory) is int and card.memory > 0 and all(map(_is_rate, rates))


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def card_key(name: str) -> str:
    """A card's name without its maker, case and punctuation."""
    return _MAKERS.sub("", name.lower())


def find_card(name: str, measured: Path | None = None) -> Card:
    """The card that a name means, with or without ``NVIDIA`` and ``GeForce``: ``RTX 4090``, ``4090``, ``a100-80gb``.

    ``measured``: the user's table, whose rows win. Raises ``ConfigError`` for a name of no card, or of several.
    """
    requested, known = card_key(name), {card_key(card.name): card for card in cards()}
    own = () if measured is None else read_cards(measured)
    for card in own:
        known[card_key(card.name)] = card
    exact = [card for key, card in known.items() if key == requested]
    found = exact or [card for card in known.values() if requested and _has_words(card.name, name)]
    if len(found) == 1:
        return found[0]
    names = [card.name for card in found or known.values()]
    hint = None if found else did_you_mean(name, names)
    raise ConfigError("--card", name, f"one of {', '.join(names)}", hint=hint)


def _has_words(card: str, name: str) -> bool:
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if not _MAKERS.fullmatch(word)]
    return bool(words) and all(word in re.split(r"[^a-z0-9]+", card.lower()) for word in words if word)
