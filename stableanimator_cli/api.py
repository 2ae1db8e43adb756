"""The four verbs as Python functions, and a model that stays loaded.

``options`` are the flags of the verb with underscores: ``decode_chunk=8`` is ``--decode-chunk 8``. They accept what the
flags accept, and numbers, tuples and paths: ``size=(512, 512)`` or ``size="512x512"``. ``config`` is a TOML file as for
``--config``. Every function raises the errors of ``errors``, whose ``message`` and ``hint`` are what the command line
prints, and returns the record that ``--json`` prints, an object with ``to_json()``. ``reporter`` receives messages and
progress (``progress.Reporter``); None discards them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stableanimator_cli.progress import Reporter

if TYPE_CHECKING:
    import numpy as np

    from stableanimator_cli.animate.live_preview import OnPreview
    from stableanimator_cli.animate.result import Animation, AnimationPlan
    from stableanimator_cli.engine.engine import EngineCache
    from stableanimator_cli.evaluate.run import Result
    from stableanimator_cli.preprocess.run import Result as PreprocessResult
    from stableanimator_cli.train.plan import TrainPlan
    from stableanimator_cli.train.report import ExportReport, TrainReport

StrPath = str | Path


def animate(
    reference: StrPath,
    motion: StrPath,
    output: StrPath,
    *,
    config: StrPath | None = None,
    plan: bool = False,
    restart: bool = False,
    reporter: Reporter | None = None,
    on_preview: OnPreview | None = None,
    card: str | None = None,
    **options: Any,
) -> Animation | AnimationPlan:
    """Write the video ``output`` and its record: ``sa animate``. Resumes an interrupted call, unless ``restart``.

    ``on_preview(image, step)`` receives a live preview every ``preview_every`` steps: a Pillow image of a few small
    frames side by side, and the step (``step.index`` of ``step.total``, from 0 on).

    Returns an ``Animation``; with ``plan`` an ``AnimationPlan``, and nothing is written. ``card``: plan for that card.
    """
    with Animator(reporter=reporter) as animator:
        return animator.animate(
            reference, motion, output, config=config, plan=plan, restart=restart, on_preview=on_preview, card=card,
            **options,
        )  # fmt: skip


def preprocess(
    *inputs: StrPath,
    output: StrPath | None = None,
    config: StrPath | None = None,
    plan: bool = False,
    reporter: Reporter | None = None,
    **options: Any,
) -> PreprocessResult:
    """Write clip folders of videos, a skeleton video (``poses=``), or convert a motion: ``sa preprocess``.

    Videos of a batch that fail are in the result's ``failed``; others are written.
    """
    from stableanimator_cli.preprocess import run

    flags = {**options, "input": [Path(item) for item in inputs] or None, "output": output}
    return run.run(flags=_flags(flags), config_file=_path(config), plan_only=plan, reporter=reporter)


def train(
    *dataset: StrPath,
    output: StrPath | None = None,
    resume: StrPath | None = None,
    export: Literal["model", "upstream"] | None = None,
    config: StrPath | None = None,
    plan: bool = False,
    reporter: Reporter | None = None,
    **options: Any,
) -> TrainReport | TrainPlan | ExportReport | None:
    """Train on clip folders, resume the run ``resume``, or export a checkpoint of it: ``sa train``.

    Returns None in all ranks of torchrun but the first.
    """
    from stableanimator_cli.train import run

    flags = _flags({**options, "dataset": [Path(item) for item in dataset] or None, "output": output})
    return run.run(
        flags=flags, config_file=_path(config), resumed=_path(resume), export=export, plan_only=plan, reporter=reporter
    )


def evaluate(
    *inputs: StrPath,
    output: StrPath | None = None,
    config: StrPath | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Result:
    """Score videos against their ground truth, or run a bench (``bench="puppet"``): ``sa evaluate``."""
    from stableanimator_cli.evaluate import run

    def animate_case(flags: Mapping[str, Any], settings: Path | None) -> None:
        from stableanimator_cli.animate import run

        run.run(flags=flags, config_file=settings, reporter=reporter)

    flags = _flags({**options, "inputs": [Path(item) for item in inputs] or None, "output": output})
    return run.run(flags=flags, animate=animate_case, config_file=_path(config), reporter=reporter)


class Animator:
    """Animate many times with one model, whose networks stay loaded: a context manager that frees the device.

    ``options`` are defaults of every call. A call with another model or other device settings loads it again.
    """

    def __init__(self, model: StrPath | None = None, *, reporter: Reporter | None = None, **options: Any) -> None:
        self._defaults = {**options, "model": model}
        self._reporter = reporter
        self._engines: EngineCache | None = None

    def animate(
        self,
        reference: StrPath,
        motion: StrPath,
        output: StrPath,
        *,
        config: StrPath | None = None,
        plan: bool = False,
        restart: bool = False,
        reporter: Reporter | None = None,
        on_preview: OnPreview | None = None,
        card: str | None = None,
        **options: Any,
    ) -> Animation | AnimationPlan:
        """As the function ``animate``. ``reporter`` replaces that of the ``Animator`` in this call."""
        from stableanimator_cli.animate import run

        flags = self._options(options, reference, motion, output)
        return run.run(
            flags=flags, config_file=_path(config), plan_only=plan, restart=restart,
            reporter=reporter or self._reporter, engines=self._open_engines, on_preview=on_preview, card=card,
        )  # fmt: skip

    def frames(
        self,
        reference: StrPath,
        motion: StrPath,
        *,
        config: StrPath | None = None,
        on_preview: OnPreview | None = None,
        **options: Any,
    ) -> Iterator[np.ndarray]:
        """Yield the frames uint8[h,w,3] in RGB as they are decoded. Nothing is written, so nothing can be resumed.

        Mistakes are raised by the call, before the first frame is requested. ``on_preview`` as in ``animate``.
        """
        from stableanimator_cli.animate import run

        flags = self._options(options, reference, motion, "frames.mp4")
        return run.run_frames(
            flags=flags, config_file=_path(config), engines=self._open_engines, reporter=self._reporter,
            on_preview=on_preview,
        )  # fmt: skip

    def close(self) -> None:
        """Free the device."""
        if self._engines is not None:
            self._engines.close()

    def __enter__(self) -> Animator:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _open_engines(self) -> EngineCache:
        """The cache of the open engine; created here, since it imports torch."""
        if self._engines is None:
            from stableanimator_cli.engine.engine import EngineCache

            self._engines = EngineCache()
        return self._engines

    def _options(
        self, options: Mapping[str, Any], reference: StrPath, motion: StrPath, output: StrPath
    ) -> dict[str, Any]:
        given = {**self._defaults, **options, "reference": reference, "motion": motion, "output": output}
        return _flags(given)


def _flags(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name as ``config.schema.resolve`` takes them; a model may be a path here."""
    model = options.get("model")
    return {**options, "model": None if model is None else str(model)}


def _path(path: StrPath | None) -> Path | None:
    return None if path is None else Path(path)
