"""Entry point of ``sa animate``: mistakes that are cheap to find are reported before torch is imported."""

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
    """Animate REFERENCE with MOTION. ``flags`` by option name, None if not given; see ``config.AnimateConfig``.

    Writes ``OUT.mp4`` (and ``OUT.preview.mp4``) and ``OUT.json``, each complete or not at all. Resumes an interrupted
    run (``checkpoint.py``), unless ``restart``. Raises ``SaError``. Under torchrun rank 0 does all this and returns the
    result; other ranks only denoise, then exit.
    """
    if distributed.rank() > 0:
        from stableanimator_cli.engine import parallel_worker

        parallel_worker.run_worker()
        raise SystemExit(0)
    with _torchrun_group() as workers:
        config, model = resolve_config(flags, config_file)
        use_face = validate(config, model)
        from stableanimator_cli.animate.pipeline import run_pipeline

        return run_pipeline(
            config, model, use_face=use_face, plan_only=plan_only, restart=restart, reporter=reporter, workers=workers
        )


def _torchrun_group() -> AbstractContextManager[WorkerGroup | None]:
    """The processes of torchrun, which have to hear of a mistake too; without them torch is not imported."""
    if distributed.world_size() == 1:
        return nullcontext()
    from stableanimator_cli.engine.parallel import torchrun_group

    return torchrun_group()
