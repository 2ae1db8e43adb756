"""Remedies for missing detectors of a model: a download helps only a model whose ``needs`` lead to it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue.schema import FILE_NAME
from stableanimator_cli.records import ModelFolder

PROVIDERS: Mapping[str, str] = MappingProxyType(
    {"face": "antelopev2", "person_detector": "dwpose", "pose_detector": "dwpose"}
)
"""The catalogue's entry of each detector, by role."""


def download_for(model: ModelFolder, role: str) -> str | None:
    """The catalogue name whose download gives ``model`` the detector ``role``; None if no download does."""
    name, _ = _source(model, role)
    return name


def remedy(model: ModelFolder, role: str) -> str:
    """The remedy for a ``model`` without the detector ``role``, as an imperative for hints."""
    name, source = _source(model, role)
    if name is not None:
        return f"`sa models pull {name}`"
    if source is not None:
        return f"copy {source} back to its place"
    provider = PROVIDERS[role]
    return f'add "{provider}" to `needs` in {model.path / FILE_NAME} and run `sa models pull {provider}`'


def _source(model: ModelFolder, role: str) -> tuple[str | None, str | None]:
    """The catalogue name of the files of ``role``, or their path in a folder, or neither."""
    if not (model.path / FILE_NAME).is_file():  # a download of others, which all of the catalogue's detectors complete
        return PROVIDERS[role], None
    for owner in catalogue.with_needs(catalogue.load_entry(model.path)):
        component = owner.components.get(role)
        if component is not None and component.file is not None:
            downloaded = owner.has_addresses and len(catalogue.search_paths(owner)) > 1
            return (owner.name, None) if downloaded else (None, str(owner.folder / component.file))
    return None, None
