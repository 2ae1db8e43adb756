"""Face optimisation on an engine: where faces are found, and in which channel order vectors are computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor

from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.diffusion.face_optimization import FaceOptimizationSettings
from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.engine import face_optimization
from stableanimator_cli.engine.backbones.svd import BACKBONE
from stableanimator_cli.engine.decoder import FaceDecoder
from stableanimator_cli.engine.face_optimization import FaceBox, pixel_boxes
from stableanimator_cli.motion.masks import face_mask
from stableanimator_cli.records import Face
from tests.tiny import temporal_vae

FRAMES, SIZE = 5, (64, 64)
SETTINGS = FaceOptimizationSettings(mode="full", steps=(0, 9), iterations=1, chunk=2)
BOX = (8.0, 8.0, 40.0, 40.0)


class Colours:
    """A recogniser whose vector is the mean of red, green and blue in [-1,1], with a fourth number."""

    size = (112, 112)

    def embed(self, crops: Tensor) -> Tensor:
        means = crops.mean(dim=(2, 3))
        return torch.cat([means, torch.ones_like(means[:, :1])], dim=1)


class Detections:
    """A detector that sees a face in the frames it is told to, by the order in which it is asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[float, ...] | None] = []
        self.asked = 0

    def boxes(self, frame: np.ndarray) -> tuple[Face, ...]:
        self.asked += 1
        box = self.answers.pop(0)
        if box is None:
            return ()
        smaller = Face(box=np.float32((0, 0, 10, 10)), landmarks=np.zeros((5, 2)), score=1.0, embedding=None)
        return (Face(box=np.float32(box), landmarks=np.zeros((5, 2)), score=1.0, embedding=None), smaller)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLTemporalDecoder:
    return temporal_vae(32)


@pytest.fixture
def engine(vae) -> Any:
    """As much of an engine as the hook uses."""
    detections = Detections()
    return SimpleNamespace(
        networks={"vae": vae, "recogniser": Colours()},
        calls=Counter(),
        backbone=BACKBONE,
        plan=SimpleNamespace(device=torch.device("cpu")),
        resident=lambda *names: nullcontext(),
        faces=lambda: detections,
        detections=detections,
    )


def picture(colour: Sequence[int] = (255, 0, 0)) -> np.ndarray:
    image = np.zeros((64, 64, 3), np.uint8)
    image[8:41, 8:41] = colour
    return image


def hook(engine: Any, **more: Any) -> Any:
    usual = {"references": [FaceBox(image=picture(), box=np.array(BOX))], "boxes": None, "size": SIZE}
    return face_optimization.face_optimization(engine, SETTINGS, **(usual | more))


def latents() -> Tensor:
    return torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(2)) * 0.18215


def at(index: int) -> Step:
    return Step(index, 9, 2.0, 1.0)


@pytest.mark.parametrize(
    ("colour", "means"), [((255, 0, 0), (1, -1, -1)), ((0, 255, 0), (-1, 1, -1)), ((0, 0, 255), (-1, -1, 1))]
)
def test_the_references_vector_and_those_of_frames_are_of_rgb(engine, colour, means):
    """ArcFace in torch takes RGB, as decoded frames are: a reference in BGR would pull faces towards other colours."""
    reference = FaceBox(image=picture(colour), box=np.array(BOX))
    optimise = face_optimization.face_optimization(
        engine, SETTINGS, references=[reference], boxes=np.tile(np.array(BOX), (1, 1, 1)), size=SIZE
    )
    expected = torch.tensor([*means, 1.0])
    torch.testing.assert_close(optimise.targets[0].vector, expected)
    frame = torch.from_numpy(picture(colour)).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(optimise.embed(frame, [(8, 8, 40, 40)])[0], expected)


@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_the_references_vector_does_not_depend_on_the_order_of_the_checkpoints_embeddings(tmp_path, order):
    """``face_channel_order`` concerns what the UNet was trained on; the optimisation compares with decoded frames."""
    from stableanimator_cli.nets.arcface import crop_resize
    from tests import onnx_samples

    reader = FaceReader(onnx_samples.faces(tmp_path / "faces"), order)
    network = face_optimization.ArcFace(reader.recogniser_file.read_bytes())
    engine = SimpleNamespace(
        networks={"vae": None, "recogniser": network},
        calls=Counter(),
        backbone=BACKBONE,
        plan=SimpleNamespace(device=torch.device("cpu")),
        resident=lambda *names: nullcontext(),
        faces=lambda: reader,
    )
    image = picture((250, 120, 10))
    reference = FaceBox(image=image, box=np.array(BOX))
    optimise = face_optimization.face_optimization(
        engine, SETTINGS, references=[reference], boxes=np.full((1, 1, 4), np.nan), size=SIZE
    )
    signed = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    rgb, bgr = (network.embed(crop_resize(each, [(8, 8, 40, 40)], 112))[0] for each in (signed, signed.flip(1)))
    torch.testing.assert_close(optimise.targets[0].vector, rgb)
    assert not torch.allclose(rgb, bgr, atol=1e-3)


def test_frames_are_searched_until_they_show_a_face_and_the_largest_counts(engine):
    """The detector returns no face for any frame at first: that is a target whose boxes are all None, not no target."""
    optimise, seen = hook(engine), engine.detections
    seen.answers = [None] * FRAMES
    x = latents()
    assert optimise(x, at(0)) is x
    assert [target.boxes for target in optimise.targets] == [(None,) * FRAMES]
    assert optimise.log == []
    seen.answers = [None, BOX, None, None, None]
    assert optimise(x, at(1)) is not x
    seen.answers = [(2, 2, 4, 4), None, None, (0, 0, 63, 63)]  # two pixels a side show no face
    optimise(x, at(2))
    assert optimise.targets[0].boxes == (None, (8, 8, 40, 40), None, None, (0, 0, 63, 63))
    assert [(entry.step, entry.faces, entry.frames) for entry in optimise.log] == [(1, 1, 1), (2, 2, 2)]
    assert seen.asked == FRAMES + FRAMES + FRAMES - 1


def test_only_chunks_with_frames_to_search_are_decoded_and_whole(engine, monkeypatch):
    optimise, decoded = hook(engine), []
    whole = FaceDecoder.pixels
    monkeypatch.setattr(FaceDecoder, "pixels", lambda self, x: decoded.append(len(x)) or whole(self, x))
    engine.detections.answers = [BOX, None, BOX, BOX, None]
    optimise(latents(), at(0))
    assert decoded[:3] == [2, 2, 1]
    decoded.clear()
    engine.detections.answers = [BOX, None]
    optimise(latents(), at(1))
    assert decoded[:2] == [2, 1]  # frames 0 and 1 together: temporal layers see the same neighbours
    assert optimise.targets[0].boxes[1] == (8, 8, 40, 40)


def test_the_anchor_in_front_is_not_searched(engine):
    optimise = hook(engine, has_anchor=True)
    engine.detections.answers = [BOX] * (FRAMES - 1)
    optimise(latents(), at(0))
    optimise(latents(), at(1))
    assert engine.detections.asked == FRAMES - 1
    assert optimise.targets[0].boxes[0] is None
    assert [entry.frames for entry in optimise.log] == [FRAMES - 1] * 2


def test_each_person_has_their_own_box_and_vector_and_who_is_unknown_is_left_alone(engine):
    """Three people, the second without a face to keep: its latents do not move, and the others' move to their own."""
    boxes = np.tile(np.float64([[0, 0, 15, 15], [24, 24, 39, 39], [48, 48, 63, 63]]), (2, 1, 1))
    boxes[1, 2] = np.nan
    colours = {0: (255, 0, 0), 2: (0, 0, 255)}
    references = [FaceBox(image=picture(colours[k]), box=np.array(BOX)) if k in colours else None for k in range(3)]
    settings = replace(SETTINGS, mode="crop", iterations=6, mask_dilation=0)
    optimise = face_optimization.face_optimization(engine, settings, references=references, boxes=boxes, size=SIZE)
    expected = [((0, 0, 15, 15),) * 2, ((48, 48, 63, 63), None)]
    assert [target.boxes for target in optimise.targets] == expected
    assert [target.vector.tolist() for target in optimise.targets] == [[1, -1, -1, 1], [-1, -1, 1, 1]]
    before = latents()[:2]
    after = optimise(before, at(0))
    moved = (after - before).abs().amax(dim=1) > 0
    assert moved[:, :2, :2].all()
    assert moved[0, 6:, 6:].all()
    assert not moved[1, 6:, 6:].any()
    assert not moved[:, 3:5, 3:5].any()
    (entry,) = optimise.log
    assert (entry.faces, entry.frames) == (3, 2)
    assert entry.after > entry.before


def test_boxes_are_those_that_the_reference_implementation_reads_from_masks():
    """Its masks are filled rectangles of truncated boxes; a box is the first and last white row and column."""
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(-5, 30, (40, 2)), rng.uniform(38.5, 80, (40, 2))], axis=1)
    for box, found in zip(boxes, pixel_boxes(boxes, (60, 50)), strict=True):
        rows, columns = np.nonzero(face_mask([box], (60, 50)))
        assert found == (columns.min(), rows.min(), columns.max(), rows.max())


@pytest.mark.parametrize("references", [0, 2, None])
def test_faces_of_several_people_are_not_searched(engine, references):
    face = FaceBox(image=picture(), box=np.array(BOX))
    given = [None] if references is None else [face] * references
    with pytest.raises(ValueError, match="people's faces cannot be optimised without their boxes"):
        hook(engine, references=given)


def test_whole_frames_are_compared_where_a_face_was_found(engine):
    optimise = hook(engine, full_frame=True)
    engine.detections.answers = [None, BOX, None, None, None]
    optimise(latents(), at(0))
    assert optimise.targets[0].boxes == (None, (0, 0, 63, 63), None, None, None)
