"""Train a checked config: dataset, caches, networks, loop and report; or estimate its cost."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stableanimator_cli import distributed
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.config.train import LossConfig, StageConfig, TrainConfig
from stableanimator_cli.engine.device import DTYPES, DevicePlan, dtype_name, emulation_warning, float32_precision
from stableanimator_cli.errors import SaError
from stableanimator_cli.files import check_apart
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.records import ModelFolder
from stableanimator_cli.train import base_model, checkpoint, resume
from stableanimator_cli.train.buckets import unused_sizes
from stableanimator_cli.train.checkpoint_writer import CheckpointWriter
from stableanimator_cli.train.clips import TrainingClip
from stableanimator_cli.train.curves import CURVES, draw_curves
from stableanimator_cli.train.dataset import Dataset, check_faces, open_dataset, with_faces
from stableanimator_cli.train.latent_cache import detect_faces, kinds_to_read, make_caches
from stableanimator_cli.train.loop import Loop
from stableanimator_cli.train.lr_schedule import short_warmups
from stableanimator_cli.train.metrics_log import Metrics, read_metrics
from stableanimator_cli.train.plan import TrainPlan, fit_to_limit
from stableanimator_cli.train.processes import open_accelerator
from stableanimator_cli.train.report import TrainReport
from stableanimator_cli.train.stage import TrainingStage

if TYPE_CHECKING:
    from accelerate import Accelerator


def plan(config: TrainConfig, model: ModelFolder, *, fresh: bool, reporter: Reporter) -> TrainPlan:
    """Estimate the cost of a training. Nothing is loaded or written."""
    ranks = distributed.world_size()
    if fresh:
        config = _with_dtype(config)
    else:
        resume.check_base(config.output, base_model.digests(model, config.from_scratch or ()))
    config, dataset = _open_dataset(config, model, fresh, reporter)
    return TrainPlan.of(fit_to_limit(config, model, ranks=ranks) if fresh else config, model, dataset, ranks=ranks)


def train(config: TrainConfig, name: str, model: ModelFolder, *, fresh: bool, reporter: Reporter) -> TrainReport | None:
    """Train in the processes of torchrun or in one; only the first, which has locked the folder of the run, writes and
    returns a report.

    ``model`` was opened by ``name``. ``fresh`` is False for a resumed run.
    """
    accelerator = open_accelerator(config)
    exact = float32_precision(tf32=False)  # by default torch computes float32 convolutions in TF32 on a GPU
    if not accelerator.is_main_process:
        with exact:
            _train(config, name, model, accelerator, NullReporter(), fresh)
        return None
    with exact:
        if fresh:
            resume.check_new(config.output)  # another process may have finished in the meantime
        return _train(config, name, model, accelerator, reporter, fresh)


def _train(
    config: TrainConfig, name: str, model: ModelFolder, accelerator: Accelerator, reporter: Reporter, fresh: bool
) -> TrainReport:
    started = time.perf_counter()
    run_folder, main, device = config.output, accelerator.is_main_process, torch.device(accelerator.device)
    for warning in model.warnings:
        reporter.warning(warning)
    if fresh:
        config = fit_to_limit(_with_dtype(config), model, ranks=accelerator.num_processes)
        slow = emulation_warning(device, DTYPES[config.memory.dtype])
        if slow is not None:
            reporter.warning(slow)
    config, dataset = _open_dataset(config, model, fresh, reporter)
    requested = config
    if fresh:
        config = replace(config, data=replace(config.data, cache=kinds_to_read(config, dataset, model)))
        _warn_of_clean_references(config, reporter)
    digest = _digest(dataset.clips)
    former = [
        replace(clip, key=clip.former_key or clip.key, annotations_key=clip.former_annotations_key)
        for clip in dataset.clips
    ]
    resume.check_dataset(run_folder, digest, _digest(former), _digest(former, annotations=False))
    held_out = _open_held_out(config, model, reporter)
    trains_faces = config.ablation.face == "on"
    detects = "face" in model.files and any(clip.folder is None for clip in dataset.clips)
    if trains_faces and not detects:  # what the clips lack stays missing: refuse before anything is written
        check_faces(dataset, model, reporter)
    base = base_model.digests(model, config.from_scratch or ()) if main else {}
    needs = _begin_folder(config, name, model, base) if main else ""
    shard = (accelerator.process_index, accelerator.num_processes)
    make_caches(requested, dataset, model, device, shard, reporter)
    accelerator.wait_for_everyone()
    if trains_faces and detects:
        dataset = with_faces(dataset, model.face_channel_order)
        check_faces(dataset, model, reporter)
    if trains_faces:
        reporter.info(f"faces: in {len(dataset.clips) - len(dataset.faceless)} of {len(dataset.clips)} clips")
    checkpoints = checkpoint.list_checkpoints(run_folder)
    last_step, last = checkpoints[-1] if checkpoints else (0, None)
    state = None if last is None else checkpoint.read_state(last)
    if state is not None:
        reporter.info(f"resumes at step {last_step}")
    accelerator.wait_for_everyone()  # all ranks must see the same checkpoints before one of them writes another
    metrics = Metrics(run_folder, last_step, writes=main)
    if held_out is not None and trains_faces and main:
        detect_faces(held_out, model, device, reporter)
    writer = CheckpointWriter(config, model, needs, digest, base, held_out, device, reporter)
    if state is not None and last is not None and main:
        scores = writer.complete(state.position, last)
        if scores is not None:
            metrics.add(scores)
    accelerator.wait_for_everyone()
    if config.track == "tensorboard":
        accelerator.init_trackers("sa-train")

    def open_stage(index: int) -> TrainingStage:
        return TrainingStage(config, index, model, dataset, accelerator)

    loop = Loop(config, accelerator, open_stage, writer, metrics, reporter, state)
    try:
        loop.run()
    except BaseException:
        with suppress(SaError):  # on a full disk this fails as well, but the first error has the remedy
            _close_metrics(metrics, run_folder, draws=main)
        raise
    _close_metrics(metrics, run_folder, draws=main)
    accelerator.end_training()
    return _report(run_folder, loop, dataset, time.perf_counter() - started)


def _warn_of_clean_references(config: TrainConfig, reporter: Reporter) -> None:
    """Say so if references have less noise than ``sa animate`` adds to them: cached latents are made without it."""
    cached = config.data.cache is not None and config.data.reads("latents")
    if cached and config.loss.noise_aug > LossConfig().noise_aug:  # the default is hardly visible
        reporter.warning(
            f"--noise-aug {config.loss.noise_aug:g}: references of cached latents have no noise, unlike those of "
            "`sa animate`; --cache off adds it"
        )


def _begin_folder(config: TrainConfig, name: str, model: ModelFolder, base: Mapping[str, str]) -> str:
    """Check that the run's folder belongs to this training, clear what a killed run left, and write its config.

    ``model`` was opened by ``name``, ``base`` are its digests. Returns the name by which checkpoints need it.
    """
    same = resume.check_base(config.output, base)
    checkpoint.check_replaceable(config.output)
    needs = base_model.prepare(name, model, config.output, same=same)
    checkpoint.remove_partial(config.output)
    if same:
        checkpoint.set_base(config.output, needs)
    resume.write_config(config, config.output)
    return needs


def _open_held_out(config: TrainConfig, model: ModelFolder, reporter: Reporter) -> Dataset | None:
    """The clips that validation renders, None without."""
    if config.validation.of is None:
        return None
    order = model.face_channel_order
    return open_dataset(config.validation.of, min_frames=2, face_channel_order=order, reporter=reporter)


def _close_metrics(metrics: Metrics, run_folder: Path, *, draws: bool) -> None:
    metrics.close()
    if draws:
        draw_curves(read_metrics(run_folder), run_folder / CURVES)


def _report(run_folder: Path, loop: Loop, dataset: Dataset, seconds: float) -> TrainReport:
    losses = [row["loss"] for row in read_metrics(run_folder)[-100:]]
    validation = checkpoint.read_scores(run_folder)
    return TrainReport(
        run=run_folder,
        model=run_folder / checkpoint.LINK,
        steps=loop.position.step,
        samples=loop.position.samples,
        loss=sum(losses) / len(losses) if losses else float("nan"),
        seconds=seconds,
        best=checkpoint.best_step(run_folder),
        validation=validation[-1] if validation else None,
        data=dataset.to_json(),
    )


def _with_dtype(config: TrainConfig) -> TrainConfig:
    """Resolve ``--dtype auto``, so that a resumed run does not depend on its device."""
    device = DevicePlan.of(DeviceConfig(device=config.device, dtype=config.memory.dtype))
    dtype = dtype_name(device.dtype)
    return replace(config, memory=replace(config.memory, dtype=dtype))


def _open_dataset(
    config: TrainConfig, model: ModelFolder, fresh: bool, reporter: Reporter
) -> tuple[TrainConfig, Dataset]:
    """Open the dataset, and turn epochs into steps now that the number of clips is known."""
    stages = config.stage or ()
    min_frames = max(2, *(stage.frames for stage in stages))  # a sample of one frame needs another one as reference
    order = model.face_channel_order
    people = config.data.people
    dataset = open_dataset(
        config.dataset, min_frames=min_frames, face_channel_order=order, people=people, reporter=reporter
    )
    reporter.info(f"dataset: {dataset.summary()}")
    if people > 1 and not dataset.several:
        reporter.warning(f"--people {people}: no clip shows several people, so it changes nothing")
    if fresh:
        check_apart(config.output, [clip.path for clip in dataset.clips])
    counted = (
        stage
        if stage.epochs is None
        else replace(stage, epochs=None, steps=max(1, math.ceil(stage.epochs * len(dataset.clips) / stage.batch)))
        for stage in stages
    )
    config = replace(config, stage=tuple(counted))
    if fresh:
        _warn_of_stages(config.stage or (), dataset, reporter)
    if not fresh and any(stage.epochs is not None for stage in stages):
        resume.check_length(config, reporter, "--epochs")
    return config, dataset


def _warn_of_stages(stages: Sequence[StageConfig], dataset: Dataset, reporter: Reporter) -> None:
    """Report stages that do not reach their learning rate, and sizes that have no clips."""
    sizes = [stage.sizes or () for stage in stages]
    for warning in (*short_warmups(stages), *unused_sizes(dataset.clips, sizes)):
        reporter.warning(warning)


def _digest(clips: Sequence[TrainingClip], *, annotations: bool = True) -> str:
    """sha256 of the names, order and content of the clips, without ``annotations`` as earlier versions computed it."""
    rows = [f"{clip.name}\0{clip.key}\0{clip.frames}" for clip in clips]
    if annotations:
        rows += [clip.annotations_key for clip in clips if clip.annotations_key]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
