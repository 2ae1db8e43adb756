"""``sa animate`` from flags to files: cheap mistakes are told before torch, which takes seconds, is imported."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stableanimator_cli import distributed
from stableanimator_cli.animate.validate import resolve_config, validate
from stableanimator_cli.progress import Reporter

if TYPE_CHECKING:
    from stableanimator_cli.animate.result import Animation, AnimationPlan
    from stableanimator_cli.engine.parallel import WorkerGroup


def run(
    *,
    flags: Mapping[str, Any],
    config_file: Path | None = None,
    plan_only: bool = False,
    restart: bool = False,
    reporter: Reporter | None = None,
) -> Animation | AnimationPlan:
    """Animate REFERENCE after MOTION. ``flags`` by option name, None where not given; see ``config.AnimateConfig``.

    Writes ``OUT.mp4`` (and ``OUT.preview.mp4``) and ``OUT.json``, each whole or not at all. A run that was broken off
    is gone on with (``state.py``), unless ``restart``. Raises ``SaError``. Of several processes that torchrun started
    the first does all this and has the result; the others help it to denoise and end here, without a word.
    """
    if distributed.rank() > 0:
        from stableanimator_cli.engine import parallel_worker

        parallel_worker.run_worker()
        raise SystemExit(0)
    with _launched() as ranks:
        config, model = resolve_config(flags, config_file)
        validate(config, model)
        from stableanimator_cli.animate.pipeline import run_pipeline

        return run_pipeline(config, model, plan_only=plan_only, restart=restart, reporter=reporter, ranks=ranks)


def _launched() -> AbstractContextManager[WorkerGroup | None]:
    """The others that torchrun started, who are to hear of a mistake too; without torch where there are none."""
    if distributed.world_size() == 1:
        return nullcontext()
    from stableanimator_cli.engine.parallel import torchrun_group

    return torchrun_group()
