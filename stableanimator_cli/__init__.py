"""StableAnimator: animate a person in an image with a motion, and keep the face.

``animate``, ``preprocess``, ``train`` and ``evaluate`` are the functions of ``api``; their packages can be called.
``Animator`` keeps a model loaded, ``StableAnimatorPipeline`` is a diffusers pipeline of the same networks. Nothing is
imported before its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stableanimator_cli.api import Animator, animate, evaluate, preprocess, train
    from stableanimator_cli.diffusers_pipeline import StableAnimatorPipeline

__all__ = ["Animator", "StableAnimatorPipeline", "__version__", "animate", "evaluate", "preprocess", "train"]
__version__ = "0.1.0"

_LAZY = {"Animator": "api", "StableAnimatorPipeline": "diffusers_pipeline"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
