"""The ComfyUI nodes, without ComfyUI: their schema is what it reads, and they do what the command line does."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from stableanimator_cli import Animator
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.media import open_clip, write_image
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.puppets.scene import sample_scene
from tests.animate.clips import plain_picture
from tests.conftest import ROOT
from tests.tiny import waving

FOLDER = ROOT / "integrations" / "comfyui"
TYPES = {"STRING", "INT", "FLOAT", "BOOLEAN", "IMAGE", "STABLEANIMATOR_MODEL", "STABLEANIMATOR_MOTION"}


@pytest.fixture(scope="module")
def package() -> ModuleType:
    spec = importlib.util.spec_from_file_location("comfyui_nodes", FOLDER / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_node_has_the_schema_that_comfyui_reads(package):
    assert package.NODE_CLASS_MAPPINGS.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in package.NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()
        assert set(inputs) <= {"required", "optional"}
        names = [name for group in inputs.values() for name in group]
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        assert takes_any or set(names) == set(parameters) - {"self"}
        for name, parameter in parameters.items():
            if name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
                assert name in names
                assert (parameter.default is parameter.empty) == (name in inputs["required"])
        for kind, *options in (row for group in inputs.values() for row in group.values()):
            assert kind in TYPES if isinstance(kind, str) else all(isinstance(choice, str) for choice in kind)
            assert all(isinstance(each, dict) for each in options)
        assert isinstance(node.RETURN_TYPES, tuple)
        assert node.RETURN_TYPES or node.OUTPUT_NODE


def test_the_options_are_those_of_the_command(package):
    from stableanimator_cli.config.animate import AnimateConfig, DeviceConfig

    rows = package.Animate.INPUT_TYPES()["required"]
    assert set(rows["preset"][0]) == set(inspect.get_annotations(AnimateConfig, eval_str=True)["preset"].__args__)
    switches = {name for name, row in package.Animate.INPUT_TYPES()["optional"].items() if row[0] == "BOOLEAN"}
    assert switches == {"allow_no_face", "hide_reference_face"} <= set(inspect.get_annotations(AnimateConfig))
    device = inspect.get_annotations(DeviceConfig, eval_str=True)
    for name in ("dtype", "offload"):
        assert set(package.LoadModel.INPUT_TYPES()["required"][name][0]) == set(device[name].__args__)


def test_a_workflow_makes_the_frames_of_the_command(package, tiny_model, tmp_path):
    plain_picture(tmp_path / "person.png")
    save_motion(tmp_path / "poses.npz", waving(3))
    (model,) = package.LoadModel().load(str(tiny_model), "cpu", "auto", "none")
    (motion,) = package.Poses().read(str(tmp_path / "poses.npz"))
    picture = torch.from_numpy(np.array(Image.open(tmp_path / "person.png").convert("RGB"))).float()[None] / 255
    (frames,) = package.Animate().animate(
        model, picture, motion, 64, 64, allow_no_face=True, steps=1, guidance=1.0, seed=3, preset="fast"
    )
    with Animator(tiny_model, device="cpu", allow_no_face=True, size="64x64", steps=1, guidance=1.0) as animator:
        expected = list(animator.frames(tmp_path / "person.png", tmp_path / "poses.npz", seed=3, preset="fast"))
    assert frames.shape == (3, 64, 64, 3)
    assert np.array_equal((frames * 255).round().byte().numpy(), expected)
    result = package.SaveVideo().save(frames, str(tmp_path / "out.mp4"), 29.97)
    assert result["ui"]["text"] == [str(tmp_path / "out.mp4")]
    clip = open_clip(tmp_path / "out.mp4")
    assert (clip.count, str(clip.fps)) == (3, "30000/1001")
    (tmp_path / "theirs.mp4").write_text("a film of somebody else")
    with pytest.raises(BadInput, match="not written by sa"):
        package.SaveVideo().save(frames, str(tmp_path / "theirs.mp4"), 25)


def test_a_motion_of_another_content_is_another_one(package, tmp_path):
    """ComfyUI repeats its last result as long as ``IS_CHANGED`` returns an equal value."""
    video, keypoints = tmp_path / "poses.mp4", tmp_path / "poses.npz"
    states = []
    for path, content in ((video, "one"), (video, "two"), (keypoints, "one"), (keypoints, "two")):
        path.write_text(content)
        states.append(package.Poses.IS_CHANGED(path=str(video), detect_to="", model="puppet"))
        assert states[-1] == package.Poses.IS_CHANGED(path=str(video))
    assert all(one != other for number, one in enumerate(states) for other in states[:number])
    assert package.Poses.IS_CHANGED(path=str(tmp_path / "none.mp4")) == []


def test_people_and_their_faces_are_those_of_the_command(package, tmp_path):
    """A couple, whose second person gets the face of another image."""
    scene = sample_scene("test", 0, people=2, framing="portrait", size=(64, 64), frames=2)
    write_image(tmp_path / "two.png", scene.reference((192, 192)).image)
    write_image(tmp_path / "other.png", sample_scene("test", 3).portrait((128, 128), 0).image)
    save_motion(tmp_path / "two.npz", scene.motion())
    two, other = (
        torch.from_numpy(np.array(Image.open(tmp_path / name).convert("RGB"))).float()[None] / 255
        for name in ("two.png", "other.png")
    )
    (model,) = package.LoadModel().load("puppet", "cpu", "auto", "none")
    usual = {"steps": 1, "guidance": 1.0, "seed": 3, "preset": "fast", "hide_reference_face": True}
    named = {"person": "1,0", "pair": "0:0", "faces": other, "faces_of": "1"}
    (frames,) = package.Animate().animate(model, two, str(tmp_path / "two.npz"), 64, 64, **named, **usual)
    options = {"person": "1,0", "pair": "0:0", "face_of": [f"1={tmp_path / 'other.png'}"], "size": "64x64", **usual}
    with Animator("puppet", device="cpu") as animator:
        expected = list(animator.frames(tmp_path / "two.png", tmp_path / "two.npz", **options))
        paired = list(animator.frames(tmp_path / "two.png", tmp_path / "two.npz", size="64x64", **usual))
    made = (frames * 255).round().byte().numpy()
    assert np.array_equal(made, expected)
    assert not np.array_equal(made, paired)
    with pytest.raises(ConfigError, match=r"faces_of: found '0,1', expected 1 number"):
        package.Animate().animate(model, two, "two.npz", 64, 64, faces=other, faces_of="0,1", **usual)


def test_importing_the_nodes_loads_nothing_heavy():
    probe = "import sys; sys.path.insert(0, sys.argv[1]); import comfyui; "
    probe += "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-c", probe, str(Path(FOLDER).parent)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint({"torch", "numpy", "diffusers", "cv2", "PIL"})
