"""State behind the page: models and sizes, plans, runs on one engine, and the temporary files."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stableanimator_cli import api, catalogue
from stableanimator_cli.app.engine_queue import EngineQueue, Job
from stableanimator_cli.app.request import VIDEO, Request, Run
from stableanimator_cli.config.parse import dump_size, parse_size
from stableanimator_cli.errors import ModelMissing, SaError
from stableanimator_cli.files import exclusive_lock
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import ModelFolder

if TYPE_CHECKING:
    from stableanimator_cli.animate.result import Animation, AnimationPlan

PREFIX, LOCK = "sa-app-", ".lock"  # of the temporary folder
LARGE = ("512x512", "576x1024", "1024x576")  # of models in the size of Stable Video Diffusion
DEFAULT_SIZE = LARGE[0]


class Session:
    """One ``sa app``. ``close`` frees the engine and removes the temporary folder."""

    def __init__(self, output: Path, model: str | None = None) -> None:
        """``output``: the folder of runs. ``model``: a name or folder, offered first. Raises ``ModelMissing``."""
        self.output = output
        self.models = local_models(model)
        remove_abandoned(Path(tempfile.gettempdir()))
        self.temporary = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = ExitStack()
        self._lock.enter_context(exclusive_lock(self.temporary / LOCK))
        self._animator = api.Animator()
        self.queue = EngineQueue(output, self._render)

    @property
    def default_model(self) -> str:
        return next(iter(self.models))

    def sizes(self, model: str) -> list[str]:
        """Sizes that suit a model, its own first."""
        own = str(self.models[model].defaults.get("size", DEFAULT_SIZE))
        width, height = parse_size(own)
        turned = [dump_size((height, width))] if width != height else []
        large = LARGE if min(width, height) >= min(parse_size(DEFAULT_SIZE)) else ()
        return list(dict.fromkeys([own, *turned, *large]))

    def plan(self, request: Request, reporter: Reporter) -> AnimationPlan:
        """The plan of a request. Raises ``SaError``."""
        output, options = self.temporary / VIDEO, request.all_options()
        plan: Any = api.animate(request.reference, request.motion, output, plan=True, reporter=reporter, **options)
        return plan

    def close(self) -> Job | None:
        """Stop all runs. Returns the one that was running."""
        try:
            job = self.queue.close()
            if self.queue.ended:  # else the engine is in the midst of a step, which the end of the process ends
                self._animator.close()
            return job
        finally:
            self._lock.close()
            shutil.rmtree(self.temporary, ignore_errors=True)

    def shown(self, video: Path) -> str:
        """A copy of a video among the temporary files: the folder of runs, which may be any, is not served."""
        return shutil.copy(video, tempfile.mkdtemp(dir=self.temporary))

    def _render(self, run: Run, job: Job) -> Animation:
        animation: Any = self._animator.animate(
            run.reference, run.motion, run.video, reporter=job, on_preview=job.show, **run.options
        )
        return animation


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary folders of sessions of this user that were killed: nothing holds their lock any more."""
    if sys.platform == "win32":  # where nothing is locked
        return
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError, SaError):
            if path.is_symlink() or path.stat().st_uid != os.getuid() or not (path / LOCK).is_file():
                continue
            with exclusive_lock(path / LOCK) as free:
                if free:
                    shutil.rmtree(path, ignore_errors=True)


def local_models(first: str | None = None) -> dict[str, ModelFolder]:
    """Models whose networks are on this machine: ``first``, ``$SA_MODEL``, the released one, then the others.

    Raises ``ModelMissing`` if there is none, and the error of ``first`` if it cannot be opened.
    """
    found: dict[str, ModelFolder] = {}
    if first is not None:
        found[first] = catalogue.open_animator(first)
    for name in (os.environ.get("SA_MODEL"), catalogue.DEFAULT, *catalogue.names()):
        if name and name not in found:
            try:
                found[name] = catalogue.open_animator(name)
            except SaError:  # not installed, as `sa models list` shows
                continue
    if not found:
        raise ModelMissing("no model of this machine can animate", hint="sa models pull stableanimator")
    return found
