"""StableAnimator for ComfyUI: load a model, read poses of a video, animate an image, save a video.

Put a link to this folder into ComfyUI's ``custom_nodes`` and install ``stableanimator-cli`` in its environment. The
nodes only wrap ``stableanimator_cli``: options, errors and files are those of the command line.
"""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

MODEL, MOTION = "STABLEANIMATOR_MODEL", "STABLEANIMATOR_MOTION"


class LoadModel:
    """A model that stays loaded: a name of the catalogue (``sa models list``) or a folder."""

    CATEGORY, FUNCTION = "StableAnimator", "load"
    RETURN_TYPES, RETURN_NAMES = (MODEL,), ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI calls it so
        return {
            "required": {
                "model": ("STRING", {"default": "stableanimator"}),
                "device": ("STRING", {"default": "auto"}),
                "dtype": (["auto", "float16", "bfloat16", "float32"],),
                "offload": (["none", "model", "group"],),
            }
        }

    def load(self, model: str, device: str, dtype: str, offload: str) -> tuple[Any]:
        from stableanimator_cli import Animator

        return (Animator(model, device=device, dtype=dtype, offload=offload),)


class Poses:
    """The motion of a driving video: people are detected once and written to ``OUTPUT.mp4`` and ``.npz``.

    A file that ``sa animate`` reads as a motion (npz, OpenPose JSON, a skeleton video) is passed on.
    """

    CATEGORY, FUNCTION = "StableAnimator", "read"
    RETURN_TYPES, RETURN_NAMES = (MOTION,), ("motion",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI calls it so
        return {
            "required": {"path": ("STRING", {"default": "dance.mp4"})},
            "optional": {
                "detect_to": ("STRING", {"default": "", "tooltip": "skeleton video to write; empty: PATH is a motion"}),
                "model": ("STRING", {"default": "stableanimator"}),
            },
        }

    @classmethod
    def IS_CHANGED(cls, path: str, detect_to: str = "", model: str = "stableanimator") -> list[str]:  # noqa: N802
        """What ComfyUI compares with the last run, which it otherwise repeats: content, not only the name."""
        from stableanimator_cli.files import sha256_of

        files = (Path(path), Path(path).with_suffix(".npz"))  # a skeleton video has its keypoints beside it
        return [sha256_of(file) for file in files if file.exists()]

    def read(self, path: str, detect_to: str = "", model: str = "stableanimator") -> tuple[str]:
        if not detect_to:
            return (path,)
        from stableanimator_cli import preprocess

        preprocess(path, poses=detect_to, model=model)
        return (detect_to,)


class Animate:
    """Animate the first image of ``reference`` with a motion: a batch of images."""

    CATEGORY, FUNCTION = "StableAnimator", "animate"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("frames",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI calls it so
        return {
            "required": {
                "model": (MODEL,),
                "reference": ("IMAGE",),
                "motion": (MOTION,),
                "width": ("INT", {"default": 512, "min": 64, "max": 4096, "step": 8}),
                "height": ("INT", {"default": 512, "min": 64, "max": 4096, "step": 8}),
                "steps": ("INT", {"default": 25, "min": 1, "max": 1000}),
                "guidance": ("FLOAT", {"default": 3.0, "min": 0.0, "max": 20.0, "step": 0.1}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1}),
                "preset": (["standard", "quick", "fast", "released", "paper"],),
            },
            "optional": {
                "allow_no_face": ("BOOLEAN", {"default": False}),
                "hide_reference_face": ("BOOLEAN", {"default": False, "tooltip": "for faces of other people"}),
                "person": ("STRING", {"default": "", "tooltip": "people to animate: largest, all, or numbers as 1,0"}),
                "pair": ("STRING", {"default": "", "tooltip": "person:face, as 0:1,1:0; empty: from left to right"}),
                "faces": ("IMAGE", {"tooltip": "faces of people who are not in reference"}),
                "faces_of": ("STRING", {"default": "0", "tooltip": "whose they are: one number per image, as 0,1"}),
            },
        }

    def animate(
        self,
        model: Any,
        reference: Any,
        motion: str,
        width: int,
        height: int,
        allow_no_face: bool = False,
        hide_reference_face: bool = False,
        person: str = "",
        pair: str = "",
        faces: Any = None,
        faces_of: str = "0",
        **options: Any,
    ) -> tuple[Any]:
        import numpy as np
        import torch

        from stableanimator_cli.errors import ConfigError

        images = [] if faces is None else list(faces)
        owners = faces_of.split(",") if images else []
        if len(owners) != len(images):
            raise ConfigError("faces_of", faces_of, f"{len(images)} number(s), one per image of faces")
        options |= {name: value.strip() for name, value in (("person", person), ("pair", pair)) if value.strip()}
        if hide_reference_face:  # else the model's own, which may be another one than off
            options["hide_reference_face"] = "all"
        with tempfile.TemporaryDirectory() as folder:
            path = _write(Path(folder) / "reference.png", reference[0])
            others = [
                f"{owner.strip()}={_write(Path(folder) / f'face-{index}.png', image)}"
                for index, (owner, image) in enumerate(zip(owners, images, strict=True))
            ]
            if others:
                options["face_of"] = others
            frames = list(model.frames(path, motion, size=f"{width}x{height}", allow_no_face=allow_no_face, **options))
        return (torch.from_numpy(np.stack(frames)).float() / 255,)


def _write(path: Path, image: Any) -> Path:
    """Write one image [h,w,3] of 0 to 1 as a file."""
    from PIL import Image

    Image.fromarray(image.clamp(0, 1).mul(255).round().byte().cpu().numpy()).save(path)
    return path


class SaveVideo:
    """Write a batch of images as an H.264 video; a file of others is never replaced."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "StableAnimator", "save", True
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI calls it so
        return {
            "required": {
                "frames": ("IMAGE",),
                "path": ("STRING", {"default": "out.mp4"}),
                "fps": ("FLOAT", {"default": 25.0, "min": 0.1, "max": 1000.0}),
            }
        }

    def save(self, frames: Any, path: str, fps: float) -> dict[str, Any]:
        from stableanimator_cli.config.parse import parse_fps
        from stableanimator_cli.media import VideoWriter

        height, width = frames.shape[1:3]
        rate: Fraction = parse_fps(str(fps), "fps")
        with VideoWriter(path, (width, height), rate, tag={"sa.kind": "animation"}) as video:
            for frame in frames:
                video.write(frame.clamp(0, 1).mul(255).round().byte().cpu().numpy())
        return {"ui": {"text": [path]}}


NODE_CLASS_MAPPINGS = {
    "StableAnimatorLoadModel": LoadModel,
    "StableAnimatorPoses": Poses,
    "StableAnimatorAnimate": Animate,
    "StableAnimatorSaveVideo": SaveVideo,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "StableAnimatorLoadModel": "StableAnimator: load model",
    "StableAnimatorPoses": "StableAnimator: poses",
    "StableAnimatorAnimate": "StableAnimator: animate",
    "StableAnimatorSaveVideo": "StableAnimator: save video",
}
