"""``sa animate``: a picture, a motion and a model become a video."""

from __future__ import annotations

from stableanimator_cli.cli import console, options
from stableanimator_cli.cli import options_memory as memory
from stableanimator_cli.cli import options_refine as refine


def animate(
    reference: options.ReferenceArg = None,
    motion: options.MotionArg = None,
    output: options.OutputOpt = None,
    model: options.ModelOpt = None,
    motion_kind: options.MotionKindOpt = None,
    config: options.ConfigOpt = None,
    plan: options.PlanOpt = False,
    restart: options.RestartOpt = False,
    size: options.SizeOpt = None,
    resize: options.ResizeOpt = None,
    frames: options.FramesOpt = None,
    fps: options.FpsOpt = None,
    audio: options.AudioOpt = None,
    preview: options.PreviewOpt = None,
    steps: options.StepsOpt = None,
    guidance: options.GuidanceOpt = None,
    guidance_interval: memory.IntervalOpt = None,
    cache_features: memory.CacheOpt = None,
    sampler: options.SamplerOpt = None,
    churn: options.ChurnOpt = None,
    noise: options.NoiseOpt = None,
    noise_aug: options.NoiseAugOpt = None,
    motion_bucket: options.MotionBucketOpt = None,
    seed: options.SeedOpt = None,
    window: options.WindowOpt = None,
    overlap: options.OverlapOpt = None,
    blend: options.BlendOpt = None,
    anchor: options.AnchorOpt = None,
    decode_chunk: options.DecodeChunkOpt = None,
    decode_overlap: options.DecodeOverlapOpt = None,
    id_adapter: options.IdAdapterOpt = None,
    force_ablation: options.ForceAblationOpt = None,
    face_embedding: options.FaceEmbeddingOpt = None,
    allow_no_face: options.AllowNoFaceOpt = None,
    preset: refine.PresetOpt = None,
    refine_face: refine.FaceOpt = None,
    refine_steps: refine.StepsOpt = None,
    refine_iters: refine.ItersOpt = None,
    refine_lr: refine.RateOpt = None,
    refine_schedule: refine.ScheduleOpt = None,
    refine_anchor: refine.AnchorOpt = None,
    refine_region: refine.RegionOpt = None,
    min_csim: refine.MinCsimOpt = None,
    redraw: refine.RedrawOpt = None,
    device: options.DeviceOpt = None,
    gpus: options.GpusOpt = None,
    dtype: options.DtypeOpt = None,
    offload: options.OffloadOpt = None,
    ff_pieces: memory.PiecesOpt = None,
    weights: memory.WeightsOpt = None,
    compile: memory.CompileOpt = None,
    cuda_graphs: memory.GraphsOpt = None,
    channels_last: memory.LastOpt = None,
    fit: memory.FitOpt = None,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    progress: options.ProgressOpt = "bar",
) -> None:
    """\b
    sa animate person.png poses.mp4 -o out.mp4
    sa animate person.png dance.mp4 -o out.mp4 --model puppet --size 128x128 --plan

    Animate the person in REFERENCE after MOTION and keep the face. Prints the path of the video.
    """
    flags = {
        "reference": reference,
        "motion": motion,
        "output": output,
        "model": model,
        "motion_kind": motion_kind,
        "size": size,
        "resize": resize,
        "frames": frames,
        "fps": fps,
        "audio": audio,
        "preview": preview,
        "steps": steps,
        "guidance": guidance,
        "guidance_interval": guidance_interval,
        "cache_features": cache_features,
        "sampler": sampler,
        "churn": churn,
        "noise": noise,
        "noise_aug": noise_aug,
        "motion_bucket": motion_bucket,
        "seed": seed,
        "window": window,
        "overlap": overlap,
        "blend": blend,
        "anchor": anchor,
        "decode_chunk": decode_chunk,
        "decode_overlap": decode_overlap,
        "id_adapter": id_adapter,
        "force_ablation": force_ablation,
        "face_embedding": face_embedding,
        "allow_no_face": allow_no_face,
        "preset": preset,
        "refine_face": refine_face,
        "refine_steps": refine_steps,
        "refine_iters": refine_iters,
        "refine_lr": refine_lr,
        "refine_schedule": refine_schedule,
        "refine_anchor": refine_anchor,
        "refine_region": refine_region,
        "min_csim": min_csim,
        "redraw": redraw,
        "device": device,
        "gpus": gpus,
        "dtype": dtype,
        "offload": offload,
        "ff_pieces": ff_pieces,
        "weights": weights,
        "compile": compile,
        "cuda_graphs": cuda_graphs,
        "channels_last": channels_last,
        "fit": fit,
    }
    talk = console.configure(json=json, quiet=quiet, progress=progress)
    from stableanimator_cli.animate import settings

    settings.checked(*settings.resolved(flags, config))
    from stableanimator_cli.animate import run  # torch starts loading here: mistakes are told before

    report = run.run(flags=flags, config_file=config, plan_only=plan, restart=restart, talk=console.get())
    talk.result(report.to_json(), report.summary())
