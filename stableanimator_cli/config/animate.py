"""Options of ``sa animate``: frozen dataclasses that check themselves and whose errors name the flag.

``schema.resolve`` merges flags over a TOML file over a model's defaults over the defaults below; ``to_toml`` writes the
result, which repeats the run. Paths in a file are relative to the working directory. Standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

from stableanimator_cli.backbone_facts import Schedule
from stableanimator_cli.config.parse import (
    DEVICE,
    HIDDEN_FACES,
    INTERVAL,
    OUTPUT,
    PREVIEWS,
    SAMPLING,
    Guidance,
    Range,
    Size,
    check_device,
    device_option,
    dump_cache_interval,
    dump_guidance,
    dump_interval,
    dump_preview,
    dump_range,
    dump_size,
    model_option,
    parse_bytes,
    parse_cache_interval,
    parse_fps,
    parse_guidance,
    parse_hidden_faces,
    parse_interval,
    parse_output,
    parse_preview,
    parse_range,
    parse_size,
)
from stableanimator_cli.config.people import PeopleConfig
from stableanimator_cli.config.refine import RefineConfig
from stableanimator_cli.config.schema import check_fields, option, require
from stableanimator_cli.errors import ConfigError

# panels of the help
LONG = "Long videos"
FACE = "Face"

ANIMATION_SUFFIXES = (".gif", ".webp")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", *ANIMATION_SUFFIXES)
"""Of outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """Sampling of latents.

    ``guidance`` rises linearly from the first frame of the full video, or the anchor before it, to the last. Outside of
    ``guidance_interval`` (noise levels, LO excluded, HI included) there is none. ``noise`` ``fresh`` draws noise per
    frame, ``repeat`` repeats one window's. ``churn`` is EDM's S_churn over the full run. Between two
    ``cache_features``-th steps only the UNet's last ``cache_layers`` layers are computed, from cached deep features.
    ``motion_bucket`` and ``conditioning_fps`` are conditioning inputs of Stable Video Diffusion, not the rate of the
    file; ``prompt`` and ``negative_prompt`` are those of models with a text encoder.
    """

    # fmt: off
    steps: int = option("--steps", 25, metavar="N", ge=1, le=1000, model_default=True,
        help="Denoising steps.")
    guidance: Guidance = option("--guidance", (3.0, 3.0), parse=parse_guidance, dump=dump_guidance,
        metavar="G|FIRST:LAST", model_default=True,
        help="Classifier-free guidance, 0 or more: one number, or a rise from the first frame to the last as 1:3.")
    guidance_interval: Guidance | None = option("--guidance-interval", None, parse=parse_interval,
        dump=dump_interval, none="off", metavar="off|LO:HI", panel=SAMPLING, default_text="off, guidance throughout",
        model_default=True,
        help="Approximate: guide only at noise levels above LO and at most HI, of 700 (990 with --churn) down to "
        "0.002; half the network calls outside.")
    cache_features: int = option("--cache-features", 1, parse=parse_cache_interval, dump=dump_cache_interval,
        metavar="off|N", panel=SAMPLING, default_text="off, every step", ge=1,
        help="Approximate: compute the full network only in every N-th step, and reuse its deep features in the steps "
        "between.")
    cache_layers: int = option("sampling.cache_layers", 2, ge=1)
    sampler: Literal["euler", "heun", "dpmpp_2m"] = option("--sampler", "euler", model_default=True, panel=SAMPLING,
        help="Solver: euler as the reference implementation, heun with two network calls per step, or dpmpp_2m "
        "(DPM-Solver++ 2M), of second order with one.")
    schedule: Schedule = option("--schedule", "karras", panel=SAMPLING,
        help="Noise levels of the steps: karras as the reference implementation, or ays (Align Your Steps), with fewer "
        "high ones, made for about ten steps. A model of the backbone magic has ddim, its timesteps.")
    churn: float = option("--churn", 0.0, model_default=True, metavar="S", ge=0, panel=SAMPLING,
        help="Noise added back over the run, EDM's S_churn.")
    churn_min: float = option("sampling.churn_min", 0.0, ge=0)
    churn_max: float = option("sampling.churn_max", 1000.0, ge=0)
    churn_noise: float = option("sampling.churn_noise", 1.0, ge=0)
    noise: Literal["repeat", "fresh"] = option("--noise", "fresh", model_default=True, panel=SAMPLING,
        help="Initial noise: drawn per frame, or one window's noise repeated.")
    noise_aug: float = option("--noise-aug", 0.02, metavar="SIGMA", ge=0, panel=SAMPLING, model_default=True,
        help="Standard deviation of the noise on the reference image.")
    motion_bucket: float = option("--motion-bucket", 127.0, metavar="ID", ge=0, panel=SAMPLING, model_default=True,
        help="Amount of motion, a conditioning input of the UNet.")
    conditioning_fps: int = option("--conditioning-fps", 7, metavar="FPS", ge=1, panel=SAMPLING,
        model_default=True, help="Frame rate, a conditioning input of the UNet; --fps sets the rate of the video.")
    seed: int = option("--seed", 0, metavar="N", ge=0, le=2**63 - 1,
        help="Seed of the noise; the same seed gives the same frames.")
    prompt: str = option("--prompt", "", metavar="TEXT", panel=SAMPLING, model_default=True, default_text="none",
        help="Description of the video, for models with a text encoder.")
    negative_prompt: str = option("--negative-prompt", "", metavar="TEXT", panel=SAMPLING, model_default=True,
        default_text="none",
        help="What --guidance above 1 leads away from, for models with a text encoder.")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        finite = all(0 <= scale < math.inf for scale in self.guidance)
        require(finite, "--guidance", dump_guidance(self.guidance), "0 or more")
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            require(0 <= low < high < math.inf, "--guidance-interval", dump_interval(self.guidance_interval), INTERVAL)
        maximum = f"at most sampling.churn_max ({self.churn_max:g})"
        require(self.churn_min <= self.churn_max, "sampling.churn_min", self.churn_min, maximum)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowConfig:
    """Windows of a long video: ``length`` frames, of which ``overlap`` are shared with the next window.

    ``blend`` ``upstream`` joins them as the reference implementation, ``smooth`` by raised cosines, ``shifted`` by
    these at other places in each step, with one window more. ``anchor``: the image that conditions later windows.
    """

    # fmt: off
    length: int = option("--window", 16, metavar="FRAMES", ge=1, panel=LONG, model_default=True,
        help="Frames that the network sees at once.")
    overlap: int = option("--overlap", 4, metavar="FRAMES", ge=0, panel=LONG, model_default=True,
        help="Frames shared by two windows, less than --window.")
    blend: Literal["upstream", "smooth", "shifted"] = option("--blend", "smooth", model_default=True, panel=LONG,
        help="How windows are joined: upstream as in the reference implementation, smooth by cross-fades, shifted by "
        "cross-fades at other places in each step (one window more, least visible seams).")
    anchor: Literal["first", "reference"] = option("--anchor", "first", model_default=True, panel=LONG,
        help="Image that conditions the first frame of every window.")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        maximum = self.length - 1
        require(self.overlap <= maximum, "--overlap", self.overlap, f"0 to {maximum} (less than --window)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    """Decoding of latents: ``chunk`` frames at once, of which ``overlap`` were in the previous chunk."""

    # fmt: off
    chunk: int = option("--decode-chunk", 4, metavar="FRAMES", ge=1, panel=LONG, model_default=True,
        help="Frames decoded at once; fewer need less memory.")
    overlap: int = option("--decode-overlap", 0, model_default=True, metavar="FRAMES", ge=0, panel=LONG,
        help="Frames shared by two decoded chunks, less than --decode-chunk.")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        maximum = self.chunk - 1
        require(self.overlap <= maximum, "--decode-overlap", self.overlap, f"0 to {maximum} (less than --decode-chunk)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """Device, dtype and memory. ``pose_budget_mb``: memory of cached pose features, in MiB.

    ``max_memory`` bytes: other settings are chosen so that the run stays below it, and then it is None.
    """

    # fmt: off
    device: str = device_option(None)
    gpus: int = option("--gpus", 1, metavar="N", ge=1, le=1024, panel=DEVICE,
        help="GPUs that share the windows and guidance branches of one video; on a CPU, processes. Also with torchrun.")
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = option("--dtype", "auto", model_default=True,
        panel=DEVICE,
        help="Floating-point type of the networks.")
    offload: Literal["none", "model", "group"] = option("--offload", "none", model_default=True,
        renamed={"swap": "model", "groups": "group"}, panel=DEVICE,
        help="Keep in device memory one network (model), or one block of the UNet (group), at a time.")
    pose_budget_mb: int = option("device.pose_budget_mb", 1024, ge=0)
    ff_chunks: int = option("--ff-chunks", 1, formerly="pieces", old_flag="--ff-pieces", metavar="N", ge=1, le=256,
        panel=DEVICE,
        help="Compute feed-forward layers in N chunks: less memory, equal within rounding.")
    quantization: Literal["plain", "int8", "fp8"] = option("--quantize", "plain", formerly="weights",
        old_flag="--weights", panel=DEVICE,
        help="Weight-only quantization of the UNet: one byte per weight, approximate.")
    compile: Literal["off", "blocks"] = option("--compile", "off", panel=DEVICE,
        help="blocks: compile the blocks of the UNet, equal within rounding. Takes minutes and needs a C++ compiler.")
    cuda_graphs: bool = option("--cuda-graphs", False, panel=DEVICE,
        help="Record the UNet's calls and replay them: for small frames on fast CUDA GPUs, without --offload.")
    channels_last: bool = option("--channels-last", False, panel=DEVICE,
        help="Store convolution kernels channels last, equal within rounding. `sa bench unet vae` measures it.")
    tf32: bool = option("--tf32", False, panel=DEVICE,
        help="Approximate: compute float32 in TF32 on a CUDA GPU, with --dtype float32.")
    max_memory: int | None = option("--max-memory", None, parse=parse_bytes, formerly="fit", old_flag="--fit",
        metavar="6GB", default_text="as given",
        help="Choose offload, chunks, quantization and windows so that the predicted peak stays below this, exact ways "
        "before approximate ones. The choice is reported.")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        check_device(self.device)
        if self.cuda_graphs and self.offload != "none":
            hint = "graphs read weights where they were recorded: leave one of the two out"
            raise ConfigError("--cuda-graphs", True, f"no --offload {self.offload}", hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnimateConfig:
    """One run of ``sa animate``. ``size`` is (width, height); ``frames`` a half-open range of the motion; ``fps`` None
    the motion's own rate; ``id_adapter`` None the model's own."""

    # fmt: off
    reference: Path = option("REFERENCE", help="Image of the person: PNG, JPEG or WebP.")
    motion: Path = option("MOTION",
        help="Motion: a skeleton video, a motion .npz, a folder of images or OpenPose JSON, or a video of a person.")
    output: Path = option("--output", short="-o", parse=parse_output, metavar="OUT.mp4",
        help="Video to write, a GIF or WebP animation by its suffix, or a folder of PNG files: FRAMES/ or "
        "FRAMES/%05d.png. Its record is written to OUT.json.")
    model: str | None = model_option()
    motion_kind: Literal["auto", "skeleton", "video"] = option("--motion-kind", "auto", panel=OUTPUT,
        help="Content of MOTION: drawn skeletons, or people to detect.")
    size: Size = option("--size", (512, 512), parse=parse_size, dump=dump_size, metavar="WxH",
        default_text="512x512", model_default=True, help="Width and height in pixels, as 576x1024.")
    resize: Literal["crop", "pad", "stretch"] = option("--resize", "crop", model_default=True, panel=OUTPUT,
        help="How images of another shape are fitted to the size.")
    frames: Range | None = option("--frames", None, parse=parse_range, dump=dump_range, metavar="A:B",
        default_text="all", help="Frames A to B of the motion, B not included, as a Python slice: 0:48, 10:, :100.")
    fps: Fraction | None = option("--fps", None, model_default=True, parse=parse_fps, metavar="RATE", panel=OUTPUT,
        default_text="the motion's own",
        help="Frame rate to resample the motion to, up to 1000 frames per second, as 25 or 30000/1001 (29.97 is that).")
    audio: Literal["keep", "none"] = option("--audio", "keep", panel=OUTPUT, help="Sound of a motion video.")
    preview: Literal["off", "video", "live", "both"] = option("--preview", "off", parse=parse_preview,
        dump=dump_preview, bare="video", complete=PREVIEWS, metavar="[video|live|both|off]", panel=OUTPUT,
        help="video, or nothing: also write OUT.preview.mp4, reference, skeleton and result side by side. live: while "
        "the run works, show some frames in OUT.live.png, which is replaced every few steps and removed at the end.")
    preview_every: int | None = option("--preview-every", None, metavar="STEPS", ge=1, panel=OUTPUT,
        default_text="a fifth of --steps", help="Steps between two live previews.")
    id_adapter: Literal["distribution", "addition", "norm", "off"] | None = option("--id-adapter", None,
        model_default=True, panel=FACE, default_text="distribution", help="How face and image features are combined.")
    force_ablation: bool = option("--force-ablation", False, panel=FACE,
        help="Allow another --id-adapter, or a face, than the model was trained with.")
    face_embedding: Path | None = option("--face-embedding", None, metavar="FACE.npy", panel=FACE,
        default_text="the largest face of REFERENCE",
        help="ArcFace embedding (512 numbers) to use instead of the one detected in REFERENCE.")
    force: bool = option("--force", False, panel=FACE,
        help="Animate REFERENCE even if it is unlike the images that the model was trained on.")
    hide_reference_face: Literal["off", "exchanged", "all"] = option("--hide-reference-face", "off",
        model_default=True, parse=parse_hidden_faces, bare="all", complete=HIDDEN_FACES, panel=FACE,
        metavar="[all|exchanged|off]",
        help="Replace faces of REFERENCE with noise, so that these faces come from the face vectors alone, with models "
        "that were trained so. all, or nothing: every face, as for --face-embedding. exchanged: those of people who "
        "get another's face (--pair, --face-of).")
    allow_no_face: bool = option("--allow-no-face", False, panel=FACE,
        help="Continue without an identity if REFERENCE shows no face.")
    preset: Literal["quick", "fast", "standard", "released", "paper"] = option("--preset", "standard",
        model_default=True,
        help="Face optimisation. quick: none, and five steps, guided at all levels but the first and the last "
        "(approximate). fast: none. standard: crop, 2 iterations in late steps, if the model has a recogniser "
        "and the reference a face. released: full, 3 iterations, learning rate 0.1 decreasing linearly, Euler, as the "
        "authors' code. paper: Algorithm 1 as printed, 10 iterations, constant learning rate, in each of 25 steps "
        "(fewer leave noise), Heun and churn (S_churn 40, S_min 0.05, S_max 50, S_noise 1.003: EDM's values). A preset "
        "given here or in a file wins over the model's own settings.")
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    people: PeopleConfig = field(default_factory=PeopleConfig)
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.model != "", "--model", self.model, "a name of the catalogue or a folder")
        if self.frames is not None:
            require(not _is_empty(self.frames), "--frames", dump_range(self.frames), "A before B")
        if self.face_embedding is not None and (flag := self.people.names_faces) is not None:
            hint = "--face-embedding is one face for everybody: leave one of the two out"
            raise ConfigError("--face-embedding", str(self.face_embedding), f"no {flag} beside it", hint=hint)

    @property
    def hides_optimised_face(self) -> bool:
        """Whether face optimisation would be towards a face that is hidden: ``face_embedding`` replaces the vector of
        REFERENCE's face, and optimisation compares with its pixels."""
        return self.hide_reference_face == "all" and self.face_embedding is not None

    @property
    def preview_path(self) -> Path:
        """Path of the preview: ``out.mp4`` -> ``out.preview.mp4``."""
        suffix = (
            ".mp4" if self.frames_folder or self.output.suffix.lower() in ANIMATION_SUFFIXES else self.output.suffix
        )
        return self._beside(f".preview{suffix}")

    @property
    def has_preview_video(self) -> bool:
        return self.preview in ("video", "both")

    @property
    def has_live_preview(self) -> bool:
        return self.preview in ("live", "both")

    @property
    def live_preview_path(self) -> Path:
        """Path of the live preview: ``out.mp4`` -> ``out.live.png``."""
        return self._beside(".live.png")

    @property
    def state_path(self) -> Path:
        """Path of an unfinished run's checkpoint: ``out.mp4`` -> ``.out.mp4.state``."""
        return self.target.with_name(f".{self.target.name}.state")

    @property
    def inputs(self) -> dict[str, Path]:
        """Files and folders that a run reads, by role; ``motion_points`` is the motion beside a skeleton video."""
        inputs = {"reference": self.reference, "motion": self.motion}
        if self.face_embedding is not None:
            inputs["face_embedding"] = self.face_embedding
        inputs |= {f"face_of_{person}": path for person, path in self.people.face_files.items()}
        beside = self.motion.with_suffix(".npz")
        if beside != self.motion and self.motion.is_file() and beside.is_file():
            inputs["motion_points"] = beside
        return inputs

    @property
    def record_path(self) -> Path:
        """Path of the run record: ``out.mp4`` -> ``out.json``; of a folder of frames, ``frames`` -> ``frames.json``."""
        return self._beside(".json")

    @property
    def frames_folder(self) -> Path | None:
        """Folder of numbered PNG files: ``frames/%05d.png`` -> ``frames``. None for a video."""
        if self.output.suffix.lower() != ".png":
            return None
        return self.output.parent if self.output.parent.name else self.output.absolute().parent

    @property
    def target(self) -> Path:
        """Output of a run: the file ``output``, or the folder of its frames."""
        return self.frames_folder or self.output

    def _beside(self, suffix: str) -> Path:
        stem = self.target.name if self.frames_folder else self.output.stem
        return self.target.with_name(f"{stem}{suffix}")


def record_beside(video: Path) -> Path:
    """Path of the record of a run beside what it made, as ``AnimateConfig.record_path``; of any path."""
    video = video if video.name else video.absolute()
    return video.parent / f"{video.name if video.is_dir() else video.stem}.json"


def _is_empty(frames: Range) -> bool:
    """Whether a slice is empty for any length; sides of unlike sign depend on the length and pass."""
    first, last = frames
    start = 0 if first is None else first
    if last is None:
        return False
    return last == 0 or ((start < 0) == (last < 0) and start >= last)
