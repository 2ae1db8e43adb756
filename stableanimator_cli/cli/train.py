"""``sa train``: clips and a model become a model."""

from __future__ import annotations

from stableanimator_cli.cli import console, options
from stableanimator_cli.cli import options_train as train_options


def train(
    dataset: train_options.DatasetArg = None,
    output: train_options.RunOpt = None,
    model: options.ModelOpt = None,
    preset: train_options.PresetOpt = None,
    config: options.ConfigOpt = None,
    resume: train_options.ResumeOpt = None,
    export: train_options.ExportOpt = None,
    plan: options.PlanOpt = False,
    from_scratch: train_options.ScratchOpt = None,
    seed: options.SeedOpt = None,
    steps: train_options.StepsOpt = None,
    epochs: train_options.EpochsOpt = None,
    sizes: train_options.SizesOpt = None,
    frames: train_options.FramesOpt = None,
    batch: train_options.BatchOpt = None,
    rate: train_options.RateOpt = None,
    warmup: train_options.WarmupOpt = None,
    schedule: train_options.ScheduleOpt = None,
    train: train_options.TrainOpt = None,
    clip_norm: train_options.ClipNormOpt = None,
    ema: train_options.EmaOpt = None,
    face_mask: train_options.FaceMaskOpt = None,
    sigma: train_options.SigmaOpt = None,
    dropout: train_options.DropoutOpt = None,
    noise_aug: options.NoiseAugOpt = None,
    motion_bucket: options.MotionBucketOpt = None,
    reference_degrade: train_options.DegradeOpt = None,
    face_encoder: train_options.FaceEncoderOpt = None,
    id_adapter: train_options.AdapterOpt = None,
    face: train_options.FaceOpt = None,
    stride: train_options.StrideOpt = None,
    reference_from: train_options.ReferenceOpt = None,
    resize: train_options.ResizeOpt = None,
    cache: train_options.CacheOpt = None,
    workers: train_options.WorkersOpt = None,
    checkpointing: train_options.CheckpointingOpt = None,
    micro_batch: train_options.MicroOpt = None,
    lora_rank: train_options.LoraOpt = None,
    fit: train_options.FitOpt = None,
    sharding: train_options.ShardingOpt = None,
    save_every: train_options.SaveOpt = None,
    keep: train_options.KeepOpt = None,
    weights: train_options.WeightsOpt = None,
    validate: train_options.ValidateOpt = None,
    validate_every: train_options.ValidateEveryOpt = None,
    validate_clips: train_options.ValidateClipsOpt = None,
    spike: train_options.SpikeOpt = None,
    track: train_options.TrackOpt = None,
    device: options.DeviceOpt = None,
    dtype: train_options.DtypeOpt = None,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa train dataset/ -o runs/mine --preset finetune-24gb
    sa train --resume runs/mine

    Train or fine-tune a model on clips. The run folder holds checkpoints that are model folders, metrics and curves;
    RUN/model is the one to use. Killed at any moment, it goes on with --resume. Prints the path of the model.
    """
    flags = {
        "dataset": dataset or None,
        "output": output,
        "model": model,
        "preset": preset,
        "from_scratch": from_scratch,
        "seed": seed,
        "steps": steps,
        "epochs": epochs,
        "sizes": sizes,
        "frames": frames,
        "batch": batch,
        "rate": rate,
        "warmup": warmup,
        "schedule": schedule,
        "train": train,
        "clip_norm": clip_norm,
        "ema": ema,
        "face_mask": face_mask,
        "sigma": sigma,
        "dropout": dropout,
        "noise_aug": noise_aug,
        "motion_bucket": motion_bucket,
        "reference_degrade": reference_degrade,
        "face_encoder": face_encoder,
        "id_adapter": id_adapter,
        "face": face,
        "stride": stride,
        "reference_from": reference_from,
        "resize": resize,
        "cache": cache,
        "workers": workers,
        "checkpointing": checkpointing,
        "micro_batch": micro_batch,
        "lora_rank": lora_rank,
        "fit": fit,
        "sharding": sharding,
        "save_every": save_every,
        "keep": keep,
        "weights": weights,
        "validate": validate or None,
        "validate_every": validate_every,
        "validate_clips": validate_clips,
        "spike": spike,
        "track": track,
        "device": device,
        "dtype": dtype,
    }
    reporter = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.train import run  # torch starts loading here, not earlier

    report = run.run(flags=flags, config_file=config, resumed=resume, export=export, plan_only=plan, reporter=reporter)
    if report is not None:  # of one rank alone
        reporter.result(report.to_json(), report.summary())
