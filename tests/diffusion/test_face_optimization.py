"""Face optimisation as a function: gradients by chunk, who moves and who stays, on a decoder small enough to check."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from stableanimator_cli.diffusion.face_optimization import Box, FaceOptimization, FaceOptimizationSettings, Target
from stableanimator_cli.diffusion.sampler import Step, sample_euler, sample_heun
from stableanimator_cli.diffusion.schedule import karras_sigmas

FRAMES, SIDE = 6, 8
STEP = Step(1, 4, 2.0, 1.0)
SETTINGS = FaceOptimizationSettings(mode="full", steps=(0, 4), iterations=3, lr=0.1, chunk=2)


class Decoder:
    """Latents four times as wide as pixels are: a fixed mix of channels, repeated."""

    scale = 8

    def __init__(self) -> None:
        self.mix = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
        self.decoded: list[int] = []

    def frames(self, latents):
        return latents

    def pixels(self, latents):
        self.decoded.append(len(latents))
        return F.interpolate(torch.einsum("tchw,dc->tdhw", latents, self.mix) * 0.1, scale_factor=8.0)

    @contextmanager
    def with_recorded_stats(self, latents, chunks):
        yield

    def crop(self, latents, chunk, box):
        x0, y0, x1, y1 = box
        return self.pixels(latents)[..., y0 : y1 + 1, x0 : x1 + 1], (x0, y0)


def embed(pixels: torch.Tensor, boxes: Sequence[Box]) -> torch.Tensor:
    """A face's vector: its 4x4 means, mixed."""
    mix = torch.randn(16, 48, generator=torch.Generator().manual_seed(2)).to(pixels)
    cut = [p[:, y0 : y1 + 1, x0 : x1 + 1] for p, (x0, y0, x1, y1) in zip(pixels, boxes, strict=True)]
    return torch.stack([F.adaptive_avg_pool2d(c, 4).flatten() for c in cut]) @ mix.T


def target(*missing: int, box: Box = (16, 8, 39, 31)) -> Target:
    boxes = tuple(None if frame in missing else box for frame in range(FRAMES))
    return Target(boxes=boxes, vector=torch.randn(16, generator=torch.Generator().manual_seed(3)))


def clean() -> torch.Tensor:
    return torch.randn(FRAMES, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(4))


def hook(*targets: Target, **settings) -> FaceOptimization:
    return FaceOptimization(Decoder(), embed, targets or [target()], replace(SETTINGS, **settings))


class Detector:
    """As ``engine.faces`` detects: a target always, with None for each frame that shows no face in that step. Records
    the frames that it was asked for."""

    def __init__(self, *visible: dict[int, Box], frames: int = FRAMES) -> None:
        self.visible = list(visible)
        self.frames = frames
        self.asked: list[list[int]] = []

    def __call__(self, latents: torch.Tensor, frames: Sequence[int]) -> list[Target]:
        shown = self.visible[len(self.asked)]
        self.asked.append(list(frames))
        boxes = tuple(shown.get(frame) if frame in frames else None for frame in range(self.frames))
        return [Target(boxes=boxes, vector=target().vector)]


def searching(detector: Detector | None, decoder: Decoder | None = None, **settings) -> FaceOptimization:
    return FaceOptimization(decoder or Decoder(), embed, [], replace(SETTINGS, **settings), detect=detector)


def at(index: int) -> Step:
    return Step(index, 4, 2.0, 1.0)


NEAR, FAR = (16, 8, 39, 31), (24, 24, 47, 47)


def plain(x: torch.Tensor, targets: Sequence[Target], rate: float, iterations: int) -> torch.Tensor:
    """Algorithm 1's inner loop in one graph."""
    decoder, z = Decoder(), x.clone().requires_grad_(True)
    adam = torch.optim.Adam([z], lr=rate)
    for _ in range(iterations):
        pixels = decoder.pixels(z).clamp(-1, 1)
        losses = [
            (1 - F.cosine_similarity(embed(pixels[i][None], [box]), t.vector[None])).abs()
            for t in targets
            for i, box in enumerate(t.boxes)
            if box is not None
        ]
        adam.zero_grad()
        torch.cat(losses).mean().backward()
        adam.step()
    return z.detach()


@pytest.mark.parametrize("chunk", [1, 2, 4, 6])
@pytest.mark.parametrize("missing", [(), (0, 3), (2, 3, 4)])
def test_chunks_have_the_gradient_of_one_graph(chunk, missing):
    targets = [target(*missing), replace(target(1), vector=torch.ones(16))]
    ours = hook(*targets, chunk=chunk)(clean(), STEP)
    torch.testing.assert_close(ours, plain(clean(), targets, 0.1 * (1 - 1 / 4), 3), atol=2e-5, rtol=0)


def test_similarity_rises_and_is_logged():
    optimise = hook(iterations=10)
    optimise(clean(), STEP)
    (entry,) = optimise.log
    assert (entry.step, entry.faces) == (1, FRAMES)
    assert entry.after > entry.before + 0.1


def test_full_moves_everything_that_has_a_gradient_and_crop_only_faces():
    inside = torch.zeros(FRAMES, 4, SIDE, SIDE, dtype=torch.bool)
    inside[..., 1:4, 2:5] = True  # latents of the box 16..39 x 8..31
    moved = hook(mode="crop", mask_dilation=0)(clean(), STEP) != clean()
    assert moved[inside].all()
    assert not moved[~inside].any()
    anchored = hook(anchor="background", mask_dilation=1)(clean(), STEP) != clean()
    assert not anchored[..., 6:].any()


def test_crop_equals_full_where_the_decoder_is_local():
    torch.testing.assert_close(hook(mode="crop")(clean(), STEP), hook(mode="full")(clean(), STEP), atol=1e-6, rtol=0)


def test_frames_without_a_face_stay_and_are_not_decoded():
    optimise = hook(target(0, 1, 4))
    out = optimise(clean(), STEP)
    assert torch.equal(out[[0, 1, 4]], clean()[[0, 1, 4]])
    assert (out[[2, 3, 5]] != clean()[[2, 3, 5]]).any(dim=1).any(dim=-1).any(dim=-1).all()
    assert sum(optimise.decoder.decoded) == 4 * 3  # frames 2-5 in three iterations
    assert optimise.log[0].faces == 3


@pytest.mark.parametrize(
    "optimise",
    [
        hook(iterations=0),
        hook(steps=(2, 2)),
        hook(steps=(2, 4)),
        hook(target(*range(FRAMES))),
        FaceOptimization(Decoder(), embed, [], SETTINGS),
        searching(Detector({})),
    ],
    ids=["no iterations", "empty range", "another step", "no face", "no target", "no face found"],
)
def test_nothing_to_do_leaves_the_very_tensor(optimise):
    x = clean()
    assert optimise(x, STEP) is x
    assert not optimise.decoder.decoded


def test_rates():
    assert SETTINGS.lr_at(Step(0, 25, 1, 1)) == pytest.approx(0.1)
    assert SETTINGS.lr_at(Step(20, 25, 1, 1)) == pytest.approx(0.02)
    assert replace(SETTINGS, lr_schedule="constant").lr_at(Step(20, 25, 1, 1)) == 0.1


@pytest.mark.parametrize("mode", ["full", "crop"])
def test_each_frame_is_searched_in_every_step_until_it_shows_a_face(mode):
    """Nothing in step 0; frames that show a face keep their first box, the others are searched again."""
    detector = Detector({}, {0: NEAR, 1: NEAR}, {3: FAR}, {2: FAR, 4: FAR, 5: FAR})
    optimise, x = searching(detector, mode=mode), clean()
    assert optimise(x, at(0)) is x
    assert optimise.log == []
    moved = [(optimise(x, at(index)) != x).flatten(1).any(dim=1).nonzero().flatten().tolist() for index in (1, 2, 3)]
    assert moved == [[0, 1], [0, 1, 3], [0, 1, 2, 3, 4, 5]]
    assert detector.asked == [[0, 1, 2, 3, 4, 5]] * 2 + [[2, 3, 4, 5], [2, 4, 5]]
    assert optimise.targets[0].boxes == (NEAR, NEAR, FAR, FAR, FAR, FAR)
    assert [(entry.step, entry.faces, entry.frames) for entry in optimise.log] == [(1, 2, 2), (2, 3, 3), (3, 6, 6)]


def test_frames_that_all_have_a_box_are_not_searched_again():
    detector = Detector(dict.fromkeys(range(FRAMES), NEAR))
    optimise = searching(detector)
    for index in range(4):
        optimise(clean(), at(index))
    assert len(detector.asked) == 1
    assert len(optimise.log) == 4


def test_steps_outside_of_the_range_are_not_searched():
    detector = Detector(dict.fromkeys(range(FRAMES), NEAR))
    optimise = searching(detector, steps=(2, 4))
    for index in range(4):
        optimise(clean(), at(index))
    assert len(detector.asked) == 1
    assert [entry.step for entry in optimise.log] == [2, 3]


def test_a_video_after_another_is_searched_anew():
    """A pipeline makes a long video in segments, the last of which may be shorter: boxes are those of the segment."""
    detector = Detector({0: NEAR}, {1: NEAR}, {1: FAR})
    optimise, short = searching(detector), clean()[:2]
    optimise(clean(), at(0))
    optimise(clean(), at(1))
    detector.frames = 2
    optimise(short, at(0))
    assert detector.asked == [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [0, 1]]
    assert optimise.targets[0].boxes == (None, FAR)


def test_boxes_found_before_a_break_are_used_after_it():
    """What ``sa animate`` saves is ``targets`` after a step: with them the other steps give the same numbers."""
    visible = ({0: NEAR}, {0: FAR, 3: FAR}, {1: FAR}, {5: NEAR})
    whole, x = searching(Detector(*visible)), clean()
    for index in range(4):
        x = whole(x, at(index))
    first, y = searching(Detector(*visible[:2])), clean()
    for index in range(2):
        y = first(y, at(index))
    second = replace(first, detect=Detector(*visible[2:]))
    for index in (2, 3):
        y = second(y, at(index))
    assert torch.equal(x, y)
    assert second.detect.asked == [[1, 2, 4, 5], [2, 4, 5]]


class Compressed(Decoder):
    """One latent for the first frame and one for every two after it."""

    def frames(self, latents):
        return range(max(0, 2 * latents.start - 1), 2 * latents.stop - 1)

    def pixels(self, latents):
        return super().pixels(latents).repeat_interleave(2, dim=0)[1:]


def test_a_search_counts_frames_of_the_video_where_a_latent_stands_for_several():
    detector = Detector({}, {1: NEAR, 6: NEAR}, {4: NEAR}, frames=7)
    latents = torch.randn(4, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    optimise = searching(detector, Compressed(), chunk=4)
    for index in range(3):
        optimise(latents, at(index))
    assert detector.asked == [list(range(7)), list(range(7)), [0, 2, 3, 4, 5]]
    assert [entry.frames for entry in optimise.log] == [2, 3]


def test_latents_that_stand_for_several_frames():
    latents = torch.randn(4, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    box = (16, 8, 39, 31)
    boxes = (box, box, None, box, box, None, None)  # frames 0 | 1 2 | 3 4 | 5 6
    optimise = FaceOptimization(
        Compressed(), embed, [replace(target(), boxes=boxes)], replace(SETTINGS, chunk=4, anchor="background")
    )
    moved = (optimise(latents, STEP) != latents).flatten(1).any(dim=1)
    assert moved.tolist() == [True, True, True, False]
    assert optimise.log[0].faces == 4


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_in_a_sampler_it_pulls_the_result_towards_the_face(sampler):
    sigmas = karras_sigmas(6, sigma_max=10)
    start = clean() * 10

    def denoise(x, sigma):
        return x / (1 + sigma**2)

    def run(refine):
        with torch.no_grad():
            if sampler == "euler":
                return sample_euler(denoise, start, sigmas, refine=refine)
            return sample_heun(denoise, start, sigmas, noise=lambda i: clean(), refine=refine)

    def similarity(x):
        vectors = embed(Decoder().pixels(x).clamp(-1, 1), [(16, 8, 39, 31)] * FRAMES)
        return float(F.cosine_similarity(vectors, target().vector[None]).mean())

    refine = hook(steps=(0, 6), iterations=10)
    assert similarity(run(refine)) > similarity(run(None)) + 0.1
    assert [entry.step for entry in refine.log] == list(range(6))  # Heun's second evaluation is not refined


def test_the_log_has_the_similarities_of_the_first_and_the_last_iteration():
    similarities = []
    for iterations in (1, 2, 3):
        optimise = hook(iterations=iterations)
        optimise(clean(), STEP)
        similarities.append(optimise.log[0].after)
    assert (optimise.log[0].before, optimise.log[0].after) == (similarities[0], similarities[2])
    assert similarities == sorted(similarities)


def test_a_step_ends_when_every_face_has_reached_the_target():
    free = hook(target(), iterations=6)
    free(clean(), STEP)
    reached = hook(target(), iterations=6, target=-1 + 1e-6)
    assert torch.equal(reached(clean(), STEP), clean())
    assert len(reached.decoder.decoded) == FRAMES // SETTINGS.chunk  # one look, no iteration more
    assert reached.log[0].before == reached.log[0].after == free.log[0].before


def test_a_face_above_the_target_is_not_pulled_while_another_one_is():
    similarities = hook(target())._similarities(clean(), range(FRAMES)).tolist()
    middle = sorted(similarities)[FRAMES // 2]
    refined = hook(target(), iterations=1, target=middle, chunk=FRAMES)(clean(), STEP)
    moved = [not torch.equal(a, b) for a, b in zip(refined, clean(), strict=True)]
    assert moved == [similarity < middle for similarity in similarities]
    assert set(moved) == {False, True}


@pytest.mark.parametrize("mode", ["full", "crop"])
@pytest.mark.parametrize("chunk", [1, FRAMES])
def test_a_face_that_has_reached_the_target_rests_while_others_are_pulled(mode, chunk):
    """Adam moves on by its momentum where the gradient has ended."""
    once = hook(target(), mode=mode, iterations=1, chunk=chunk)
    after = once(clean(), STEP)
    similarities = once._similarities(after, range(FRAMES))
    first = int(similarities.argmax())
    goal = float(similarities.max()) - 1e-4
    refined = hook(target(), mode=mode, iterations=6, target=goal, chunk=chunk)(clean(), STEP)
    assert torch.equal(refined[first], after[first])
    assert not any(torch.equal(refined[other], after[other]) for other in range(FRAMES) if other != first)


@pytest.mark.parametrize("mode", ["full", "crop"])
def test_a_person_who_has_reached_the_target_rests_beside_another_one(mode):
    """Adam divides gradients by their size, so that of another face moves everybody, and momentum does too."""
    left, right = target(box=(0, 0, 15, 15)), replace(target(box=(40, 40, 63, 63)), vector=-target().vector)
    settings = {"mode": mode, "mask_dilation": 1, "chunk": 3}
    once = hook(left, right, iterations=1, **settings)
    after = once(clean(), STEP)
    similarities = once._similarities(after, range(FRAMES)).view(2, FRAMES)
    goal = float(similarities[0].max()) - 1e-4
    first = int(similarities[0].argmax())
    assert similarities[1, first] < goal
    refined = hook(left, right, iterations=6, target=goal, **settings)(clean(), STEP)
    assert torch.equal(refined[first, :, :3, :3], after[first, :, :3, :3])  # the box and one latent around it
    assert not torch.isclose(refined[first, :, 5:, 5:], after[first, :, 5:, 5:]).any()


def test_a_person_above_the_target_does_not_hold_the_frame_of_another():
    pair = target(), replace(target(box=(40, 40, 63, 63)), vector=-target().vector)
    similarities = hook(*pair)._similarities(clean(), range(FRAMES)).view(2, FRAMES)
    goal = float(similarities.max(dim=0).values.min()) - 1e-6  # in every frame one of the two is above
    refined = hook(*pair, iterations=1, target=goal)(clean(), STEP)
    below = (similarities < goal).any(dim=0).tolist()
    assert [not torch.equal(a, b) for a, b in zip(refined, clean(), strict=True)] == below
    assert any(below)
