"""The options that ``docs/from-the-reference.md`` names give the frames of the reference implementation.

Weights, images and frames are those of a recording (``tests.parity``); the files are in the reference implementation's
layout, as its users have them.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from stableanimator_cli.animate.run import run
from stableanimator_cli.media import read_image
from tests.conftest import ROOT
from tests.parity import FRAMES, Recording

RECORDED = ROOT / "tests" / "golden" / "reference"
CASE = "basic_pipeline_ramp"


def options_of_the_page() -> dict[str, str]:
    """Options of the first command below "The same numbers", without the files."""
    page = (ROOT / "docs" / "from-the-reference.md").read_text(encoding="utf-8")
    block = re.search(r"## The same numbers\n\n```sh\n(.*?)```", page, re.DOTALL)
    assert block is not None
    words = shlex.split(block[1].replace("\\\n", " "))
    options = {word[2:].replace("-", "_"): value for word, value in itertools.pairwise(words) if "--" in word}
    assert {"resize", "blend", "noise", "preset", "dtype"} <= options.keys()
    return {name: value for name, value in options.items() if name != "model"}


def write_checkpoints(folder: Path, recording: Recording) -> None:
    """``checkpoints/`` with the three trained networks as ``.pth``, and a folder of Stable Video Diffusion."""
    (folder / "Animation").mkdir(parents=True)
    for name in ("unet", "pose_net", "face_encoder"):
        torch.save(recording.build(name).state_dict(), folder / "Animation" / f"{name}.pth")
    files = {"vae": "diffusion_pytorch_model", "image_encoder": "model"}
    for role, config in (("unet", "unet"), ("vae", "vae"), ("image_encoder", "clip")):
        (folder / "SVD" / role).mkdir(parents=True)
        (folder / "SVD" / role / "config.json").write_text(json.dumps(recording.configs[config]))
        if role in files:
            tensors = {name: tensor.contiguous() for name, tensor in recording.build(role).state_dict().items()}
            save_file(tensors, folder / "SVD" / role / f"{files[role]}.safetensors")


def test_the_options_of_the_page_give_the_recorded_frames(tmp_path):
    recording = Recording(RECORDED, "dev")
    t, args = recording.tensors(CASE), recording.json(CASE)
    write_checkpoints(tmp_path / "checkpoints", recording)
    Image.fromarray(t["reference"].numpy()).save(tmp_path / "reference.png")
    (tmp_path / "poses").mkdir()
    for index, pose in enumerate(t["poses"].numpy()):
        Image.fromarray(pose).save(tmp_path / "poses" / f"frame_{index}.png")
    np.save(tmp_path / "face.npy", t["face_embedding"].numpy())
    run(
        flags={
            **options_of_the_page(),
            "reference": tmp_path / "reference.png",
            "motion": tmp_path / "poses",
            "motion_kind": "skeleton",
            "output": tmp_path / "frames" / "%05d.png",
            "model": str(tmp_path / "checkpoints"),
            "face_embedding": tmp_path / "face.npy",
            "device": "cpu",
            "size": f"{args['args.width']}x{args['args.height']}",
            "window": args["args.tile_size"],
            "overlap": args["args.tile_overlap"],
            "steps": args["args.num_inference_steps"],
            "guidance": f"{args['args.min_guidance_scale']}:{args['args.max_guidance_scale']}",
            "noise_aug": args["args.noise_aug_strength"],
            "decode_chunk": args["args.decode_chunk_size"],
            "seed": args["seed"],
        }
    )
    frames = np.stack([read_image(file) for file in sorted((tmp_path / "frames").iterdir())]) / 255
    recorded = t["frames"].permute(0, 2, 3, 1).clamp(0, 1).numpy()
    assert frames.shape == recorded.shape
    assert np.abs(frames - recorded).max() <= FRAMES + 0.5 / 255  # ours are whole levels
