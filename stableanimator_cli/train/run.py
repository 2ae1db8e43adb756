"""``sa train`` from flags to a run folder: resolve, check everything that is cheap, go on or begin, train, report."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from stableanimator_cli import catalogue, distributed
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.config.parse import parse_size as read_size
from stableanimator_cli.config.train import StageConfig, TrainConfig
from stableanimator_cli.engine.device import DevicePlan, float32_precision
from stableanimator_cli.engine.training import export_configs
from stableanimator_cli.errors import ConfigError, Interrupted, NoFace, SaError
from stableanimator_cli.files import check_apart, locked_output
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.records import NETWORKS, ModelFolder
from stableanimator_cli.train import base_model, checkpoint, resume
from stableanimator_cli.train.caching import find_faces, make_caches
from stableanimator_cli.train.checkpoint import Card, State
from stableanimator_cli.train.curves import CURVES, draw_curves
from stableanimator_cli.train.dataset import Dataset, check_faces, open_dataset, with_faces
from stableanimator_cli.train.export import export as write_export
from stableanimator_cli.train.loop import Hooks, Loop, TrainPosition
from stableanimator_cli.train.metrics_log import Metrics, read_metrics
from stableanimator_cli.train.plan import TrainPlan, fit_to_limit
from stableanimator_cli.train.processes import open_accelerator
from stableanimator_cli.train.report import ExportReport, TrainReport
from stableanimator_cli.train.stage import TrainingStage, settings_of
from stableanimator_cli.train.validation import validate

if TYPE_CHECKING:
    from accelerate import Accelerator

_BASE_SIZE = (512, 512)  # where no model says its own


def run(
    *,
    flags: Mapping[str, Any],
    config_file: Path | None = None,
    resumed: Path | None = None,
    export: Literal["model", "upstream"] | None = None,
    plan_only: bool = False,
    reporter: Reporter | None = None,
) -> TrainReport | TrainPlan | ExportReport | None:
    """Begin a training, or go on with the one in the folder ``resumed``. ``flags`` by option name, None where not
    given; see ``config_train.TrainConfig``. Raises ``SaError``; checkpoints that were written stay as they are.

    ``export`` writes a checkpoint of ``resumed`` to ``output`` instead, ``plan_only`` counts what it would cost. None
    in all but the first of several processes that torchrun started; what all of them refuse, or are stopped in, the
    first says for all.
    """
    given = (flags, config_file, resumed, export, plan_only, reporter or NullReporter())
    if distributed.rank() == 0:
        return _run(*given)
    try:
        return _run(*given)
    except (ConfigError, Interrupted, KeyboardInterrupt, NoFace) as error:
        raise SystemExit(error.exit_code if isinstance(error, SaError) else Interrupted.exit_code) from None


def _run(
    flags: Mapping[str, Any],
    config_file: Path | None,
    resumed: Path | None,
    export: Literal["model", "upstream"] | None,
    plan_only: bool,
    reporter: Reporter,
) -> TrainReport | TrainPlan | ExportReport | None:
    if export is not None:
        return _export(flags, resumed, export)
    if resumed is None:
        config = resume.new_config(flags, config_file)
        if distributed.rank() == 0:  # others may look when the first has begun
            resume.check_new(config.output)
            check_apart(config.output, [*config.dataset, *(config.validation.of or ())])
    else:
        config = resume.resumed_config(resumed, flags, config_file)
    _check_sharding(config, distributed.world_size(), run_folder=resumed)
    if plan_only:
        return _plan(config, fresh=resumed is None, reporter=reporter) if distributed.rank() == 0 else None
    accelerator = open_accelerator(config)
    exact = float32_precision(tf32=False)  # torch's own default computes float32 convolutions in TF32 on a card
    if not accelerator.is_main_process:
        with exact:
            _train(config, accelerator, NullReporter(), fresh=resumed is None)
        return None
    with locked_output(config.output, "sa train", folder=True), exact:
        if resumed is None:
            resume.check_new(config.output)  # another one may have finished since
        return _train(config, accelerator, reporter, fresh=resumed is None)


def _export(flags: Mapping[str, Any], run_folder: Path | None, form: Literal["model", "upstream"]) -> ExportReport:
    if run_folder is None:
        hint = f"sa train --resume RUN --export {form} -o FOLDER"
        raise ConfigError("--export", form, "--resume RUN, whose checkpoint it writes", hint=hint)
    output = flags.get("output")
    if output is None:
        raise ConfigError("--output", None, "a folder to write to", hint="add -o FOLDER")
    folder = Path(output)
    if not folder.name:  # "." cannot be replaced by the folder that is made beside it
        folder = folder.absolute()
    check_apart(folder, [run_folder])
    with locked_output(folder, "sa train --export"):
        return write_export(run_folder, form, folder, flags.get("weights"))


def _plan(config: TrainConfig, *, fresh: bool, reporter: Reporter) -> TrainPlan:
    """What it would cost: nothing is loaded or written."""
    named = config.model or catalogue.default_model(NETWORKS)
    model = base_model.open_base(named, config.from_scratch or ())
    if fresh:
        config = _settled(config, named, model)
    _check_ranks(config, distributed.world_size())
    dataset = _dataset(config, model, reporter)
    if fresh:
        check_apart(config.output, [clip.path for clip in dataset.clips])
    config = _counted(config, dataset)
    ranks = distributed.world_size()
    return TrainPlan.of(fit_to_limit(config, model, ranks=ranks) if fresh else config, model, dataset, ranks=ranks)


def _dataset(config: TrainConfig, model: ModelFolder, reporter: Reporter) -> Dataset:
    least = max(2, *(stage.frames for stage in config.stage or ()))
    dataset = open_dataset(config.dataset, least=least, face_channel_order=model.face_channel_order, reporter=reporter)
    reporter.info(f"dataset: {dataset.summary()}")
    return dataset


def _train(config: TrainConfig, accelerator: Accelerator, reporter: Reporter, *, fresh: bool) -> TrainReport:
    started = time.perf_counter()
    run_folder, main = config.output, accelerator.is_main_process
    named = config.model or catalogue.default_model(NETWORKS)
    needs, model = _base(config, named, accelerator)
    for warning in model.warnings:
        reporter.warning(warning)
    if fresh:
        config = _settled(config, named, model)
    _check_ranks(config, accelerator.num_processes)
    if fresh:
        config = fit_to_limit(config, model, ranks=accelerator.num_processes)
    dataset = _dataset(config, model, reporter)
    if fresh:
        check_apart(config.output, [clip.path for clip in dataset.clips])
    config = _counted(config, dataset)
    digest = _digest(dataset)
    resume.check_dataset(run_folder, digest)
    if main:
        checkpoint.check_replaceable(run_folder)
        checkpoint.clean(run_folder)
        resume.write_config(config, run_folder)
    shard = (accelerator.process_index, accelerator.num_processes)
    make_caches(config, dataset, model, torch.device(accelerator.device), shard, reporter)
    accelerator.wait_for_everyone()
    if config.ablation.face == "on":
        dataset = with_faces(dataset, model.face_channel_order)
        check_faces(dataset, model, reporter)
        reporter.info(f"faces: in {len(dataset.clips) - len(dataset.faceless)} of {len(dataset.clips)} clips")
    here = checkpoint.saved(run_folder)
    state = checkpoint.read_state(here[-1][1]) if here else None
    if state is not None:
        reporter.info(f"goes on at step {here[-1][0]}")
    accelerator.wait_for_everyone()  # all ranks have seen the same checkpoints before one of them writes another
    metrics = Metrics(run_folder, here[-1][0] if here else 0, writes=main)
    held_out = None
    if config.validation.of is not None:
        order = model.face_channel_order
        held_out = open_dataset(config.validation.of, least=2, face_channel_order=order, reporter=reporter)
        if main and config.ablation.face == "on":
            find_faces(held_out, model, torch.device(accelerator.device), reporter)
    keeper = CheckpointWriter(config, model, needs, digest, held_out, torch.device(accelerator.device), reporter)
    if state is not None and main:
        measured = keeper.make_up(TrainPosition(**state.progress["place"]), here[-1][1])
        if measured is not None:
            metrics.add(measured)
    accelerator.wait_for_everyone()
    hooks = Hooks(
        open_stage=lambda index: TrainingStage(config, index, model, dataset, accelerator),
        save=keeper.save,
        wants=keeper.wants,
    )
    if config.track == "tensorboard":
        accelerator.init_trackers("sa-train")
    loop = Loop(config, config.memory.dtype, accelerator, hooks, metrics, reporter, state)
    try:
        loop.run()
    finally:
        metrics.close()
        if main:
            draw_curves(read_metrics(run_folder), run_folder / CURVES)
    accelerator.end_training()
    rows = read_metrics(run_folder)
    scores = checkpoint.read_scores(run_folder)
    return TrainReport(
        run=run_folder,
        model=run_folder / checkpoint.LINK,
        steps=loop.place.step,
        samples=loop.place.samples,
        loss=resume.last_loss(run_folder, rows),
        seconds=time.perf_counter() - started,
        best=checkpoint.best_step(run_folder),
        validation=scores[-1] if scores else None,
        data=dataset.to_json(),
    )


class CheckpointWriter:
    """Writes checkpoints where they are due and tidies up after them."""

    def __init__(
        self,
        config: TrainConfig,
        model: ModelFolder,
        needs: str,
        dataset: str,
        held_out: Dataset | None,
        device: torch.device,
        reporter: Reporter,
    ) -> None:
        self.config, self.model, self.needs, self.dataset, self.talk = config, model, needs, dataset, reporter
        self.held_out, self.device = held_out, device
        self.total = sum(stage.steps or 0 for stage in config.stage or ())

    def wants(self, place: TrainPosition, stage_ends: bool) -> bool:
        """Every so many steps, where a stage ends, and where a validation wants one."""
        return self._validates(place) or stage_ends or place.step % self.config.saving.every == 0

    def _validates(self, place: TrainPosition) -> bool:
        """Every so many steps and at the end; pictures say nothing yet about videos."""
        stage = (self.config.stage or ())[place.stage]
        due = place.step % self.config.validation.every == 0 or place.step == self.total
        return self.held_out is not None and due and not stage.image_only

    def save(
        self, place: TrainPosition, tensors: dict[str, dict[str, Tensor]], state: State
    ) -> dict[str, float | None] | None:
        config, run_folder = self.config, self.config.output
        progress = {**state.progress, "config": resume.as_json(config), "dataset": self.dataset}
        stage = (config.stage or ())[place.stage]
        card = Card(
            model=self.model,
            needs=self.needs,
            configs=export_configs(self.model, settings_of(config, stage)),
            name=base_model.plain_name(run_folder.resolve().name),
            defaults=defaults_of(config),
            training=training_table(config, stage, place),
        )
        folder = checkpoint.save(run_folder, place.step, tensors, card, replace(state, progress=progress))
        measured = self._score(place, folder)
        checkpoint.tidy(run_folder, config.saving.keep)
        draw_curves(read_metrics(run_folder), run_folder / CURVES)
        return measured

    def make_up(self, place: TrainPosition, folder: Path) -> dict[str, float | None] | None:
        """What follows the writing of a checkpoint, for the last one of a run that was killed: its score, for the
        metrics too, and which checkpoints stay."""
        known = [row for row in checkpoint.read_scores(self.config.output) if row["step"] == place.step]
        measured = _measured(known[-1]) if known else self._score(place, folder)
        checkpoint.tidy(self.config.output, self.config.saving.keep)
        return measured

    def _score(self, place: TrainPosition, folder: Path) -> dict[str, float | None] | None:
        """What a validation that is due says of a checkpoint, for the metrics; None where none is."""
        if self.held_out is None or not self._validates(place):
            return None
        stage = (self.config.stage or ())[place.stage]
        row = validate(self.config, stage, folder, place.step, self.held_out, self.device, self.talk)
        measured = _measured(row)
        csim, error = ("none" if value is None else f"{value:.3f}" for value in measured.values())
        self.talk.info(f"step {place.step}: csim {csim}, key-point error {error} of the image's side")
        if row["score"] is None:
            self.talk.warning(f"step {place.step}: validation could measure nothing, so this checkpoint is not deleted")
        elif row["absent"]:
            self.talk.warning(f"step {place.step}: no frame shows a person and a face; the checkpoint ranks last")
        return measured


def _measured(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Of a row of validation, what the metrics show."""
    return {name: row.get(name) for name in ("csim", "keypoint_error")}


def defaults_of(config: TrainConfig) -> dict[str, Any]:
    """Settings of ``sa animate`` that go with the weights."""
    return {"id_adapter": config.ablation.id_adapter}


def training_table(config: TrainConfig, stage: StageConfig, place: TrainPosition) -> dict[str, Any]:
    """The card's ``[training]``: how the weights came to be, and what they were trained without."""
    ablation = config.ablation
    return {
        "recipe": config.preset or "own",
        "steps": place.step,
        "samples": place.samples,
        "stage": stage.name,
        "train": stage.train,
        "seed": config.seed,
        "face_mask": config.loss.face_mask,
        "face_encoder": ablation.face_encoder,
        "id_adapter": ablation.id_adapter,
        "face": ablation.face,
        "ema": config.optimizer.ema,
    }


def _base(config: TrainConfig, named: str, accelerator: Accelerator) -> tuple[str, ModelFolder]:
    """The model to start from; one rank writes ``RUN/base`` where there has to be one, the others wait for it."""
    scratch = config.from_scratch or ()
    if accelerator.is_main_process:
        found = base_model.prepare(named, scratch, config.output)
        accelerator.wait_for_everyone()
        return found
    accelerator.wait_for_everyone()
    return base_model.prepare(named, scratch, config.output)


def _settled(config: TrainConfig, named: str, model: ModelFolder) -> TrainConfig:
    """Stages written out, and everything that is ``auto`` decided, so that a resumed run decides nothing anew."""
    size = model.defaults.get("size")
    config = config.resolve_stages(read_size(size) if isinstance(size, str) else _BASE_SIZE)
    plan = DevicePlan.of(DeviceConfig(device=config.device, dtype=config.memory.dtype))
    dtype = str(plan.dtype).removeprefix("torch.")
    place = str(Path(named).resolve()) if named not in catalogue.names() else named
    return replace(config, model=place, memory=replace(config.memory, dtype=dtype))


def _check_sharding(config: TrainConfig, world: int, run_folder: Path | None) -> None:
    """Pieces want somebody to share them with, and an optimiser that looks at no more than its own."""
    if config.memory.sharding == "off":
        return
    if world == 1:
        given = "DATASET -o RUN" if run_folder is None else f"--resume {run_folder}"
        raise ConfigError(
            "--sharding",
            "full",
            "off, as there is one process",
            hint=f"add --sharding off, or start several: "
            f"torchrun --nproc-per-node 2 -m stableanimator_cli train {given} --sharding full",
        )
    if config.optimizer.kind != "adamw":
        hint = "use optimizer.kind adamw, or --sharding off"
        raise ConfigError("optimizer.kind", config.optimizer.kind, "adamw with --sharding full", hint=hint)


def _check_ranks(config: TrainConfig, world: int) -> None:
    for stage in config.stage or ():
        if stage.batch % world:
            hint = f"--batch counts the samples of all processes together: try {math.ceil(stage.batch / world) * world}"
            raise ConfigError("--batch", stage.batch, f"a multiple of the {world} processes", hint=hint)


def _counted(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """Epochs as steps, now that the clips are counted."""
    stages = [
        stage
        if stage.epochs is None
        else replace(stage, epochs=None, steps=max(1, math.ceil(stage.epochs * len(dataset.clips) / stage.batch)))
        for stage in config.stage or ()
    ]
    return replace(config, stage=tuple(stages))


def _digest(dataset: Dataset) -> str:
    """sha256 of which clips there are, in their order, and of their content."""
    rows = "\n".join(f"{clip.name}\0{clip.key}\0{clip.frames}" for clip in dataset.clips)
    return hashlib.sha256(rows.encode()).hexdigest()
