"""Stamps: hidden notes beside generated videos, which record what a video was made from, so that it is reused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate.report import write_text
from stableanimator_cli.files import MARK, check_replaceable, sha256_of
from stableanimator_cli.readers import read_json


@dataclass(frozen=True, slots=True)
class Stamp:
    """The note ``.NAME.KIND.json`` beside ``video``. ``source`` determines the video; ``key`` names the digest of the
    video in the note."""

    video: Path
    kind: str
    source: Mapping[str, Any]
    key: str = "video"

    @property
    def path(self) -> Path:
        return self.video.with_name(f".{self.video.stem}.{self.kind}.json")

    def is_current(self) -> bool:
        """Whether the video exists as it was written from the same source. Raises ``BadInput`` for a note that is not
        ours."""
        check_replaceable(self.path)
        try:
            return read_json(self.path, "a note of what a video was made from") == self._note()
        except BadInput:  # no note, or no video
            return False

    def write(self) -> None:
        write_text(self.path, json.dumps(self._note(), indent=1) + "\n")

    def _note(self) -> dict[str, Any]:
        return {"tool": MARK, **self.source, self.key: sha256_of(self.video)}
