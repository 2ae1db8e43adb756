"""Packages that can be called: ``stableanimator_cli.animate(...)`` beside ``stableanimator_cli.animate.run``."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that calls the function of its own name in ``stableanimator_cli.api``, imported when it is called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        package, _, name = self.__name__.rpartition(".")
        return getattr(importlib.import_module(f"{package}.api"), name)(*args, **kwargs)


def make_callable(package: str) -> None:
    """Make an imported package callable: Python sets it as an attribute of its parent, where a function would be."""
    sys.modules[package].__class__ = CallablePackage
