"""HJB face optimisation (StableAnimator §3.3, Algorithm 1): move faces towards the reference in denoised latents.

At each denoising step the denoised latents are decoded, faces are cropped, and a few Adam iterations minimise one minus
the cosine between their embeddings and the reference's. Decoder and embedding are arguments. The loss is a mean over
faces, and chunks of frames are decoded separately, so the backward pass needs one chunk in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stableanimator_cli.diffusion.sampler import Step

Mode = Literal["full", "crop"]
Anchor = Literal["none", "background"]
LRSchedule = Literal["linear", "constant"]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in output pixels, inclusive


class ChunkDecoder(Protocol):
    """The decoder of the optimisation, for one chunk of frames at a time."""

    scale: int  # pixels per latent

    def frames(self, latents: range) -> range:
        """Video frames of these latents along time: the same numbers if time is not compressed."""
        ...

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents of one chunk [t,c,h,w] -> its frames [T,3,H,W] in [-1,1], unclamped, differentiable."""
        ...

    def with_recorded_stats(self, latents: Tensor, chunks: Sequence[range]) -> AbstractContextManager[None]:
        """Record the norm statistics of full frames for ``crop``, with one decode per chunk."""
        ...

    def crop(self, latents: Tensor, chunk: range, box: Box) -> tuple[Tensor, tuple[int, int]]:
        """Differentiable pixels of a crop of the chunk's frames around ``box``, and its corner (x, y)."""
        ...


Embed = Callable[[Tensor, Sequence[Box]], Tensor]  # pixels [n,3,H,W] in [-1,1], one box each -> embeddings [n,d]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One person's face: a box per frame (None without a face) and the target embedding ``vector`` [d]."""

    boxes: tuple[Box | None, ...]
    vector: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceOptimizationSettings:
    """Settings of the optimisation.

    ``steps`` is a half-open range of denoising steps. Adam's ``lr`` is constant, or lr (1 - step/steps) if ``linear``.
    ``anchor`` ``background`` fixes latents outside the boxes dilated by ``mask_dilation`` latents; ``crop`` always
    does. ``chunk`` latents along time are decoded together. A face whose cosine is ``target`` or more is not pulled
    further. Its latents rest, beside another face those of its dilated box; a step ends when no face is below it.
    """

    mode: Mode
    steps: tuple[int, int]
    iterations: int = 3
    target: float | None = None
    lr: float = 0.1
    lr_schedule: LRSchedule = "linear"
    anchor: Anchor = "none"
    chunk: int = 4
    mask_dilation: int = 4

    def lr_at(self, step: Step) -> float:
        return self.lr * (1 - step.index / step.total) if self.lr_schedule == "linear" else self.lr


# denoised latents [t,c,h,w], frames without a box -> one target per person, with one box per frame
Detect = Callable[[Tensor, Sequence[int]], Sequence[Target]]


@dataclass(frozen=True, slots=True)
class RefineLogEntry:
    """One refined step: mean cosine over faces in its first iteration (``before``) and in its last (``after``, which
    the last update is not part of: measuring it would cost a decode), number of faces, and of frames with a face."""

    step: int
    before: float
    after: float
    faces: int
    frames: int = 0


@dataclass(slots=True)
class FaceOptimization:
    """A ``Refine`` hook: ``sample_euler(..., refine=FaceOptimization(...))``. ``log`` grows by one entry per step.

    If no boxes are known beforehand, ``targets`` is empty and ``detect`` finds faces in the denoised latents: each
    refined step looks at every frame without a box, and the first box found is final. A step whose index is not greater
    than the last one's belongs to another video (the next segment of a pipeline) and drops all boxes. ``resident`` is
    entered while the decoder and the recogniser run.
    """

    decoder: ChunkDecoder
    embed: Embed
    targets: Sequence[Target]
    settings: FaceOptimizationSettings
    detect: Detect | None = None
    resident: Callable[[], AbstractContextManager[object]] = nullcontext
    log: list[RefineLogEntry] = field(default_factory=list)
    _last_step: int = field(default=-1, init=False)  # step of the last ``detect``

    def __call__(self, denoised: Tensor, step: Step) -> Tensor:
        first, last = self.settings.steps
        if not first <= step.index < last or self.settings.iterations == 0:
            return denoised
        with self.resident():
            if self.detect is not None:
                self._detect_missing(self.detect, denoised, step)
            if not self._count_faces(range(len(denoised))):
                return denoised
            with torch.enable_grad():
                return self._optimize(denoised.detach(), step)

    def _detect_missing(self, detect: Detect, denoised: Tensor, step: Step) -> None:
        """Add boxes for the frames that have none."""
        if step.index <= self._last_step:
            self.targets = ()
        self._last_step = step.index
        frames = self.decoder.frames(range(len(denoised)))
        missing = [f for f in frames if not self.targets or any(target.boxes[f] is None for target in self.targets)]
        if missing:
            self.targets = _merge_targets(self.targets, detect(denoised, missing))

    def _optimize(self, denoised: Tensor, step: Step) -> Tensor:
        """Adam on the latents themselves, restarted in each step (Algorithm 1, lines 7-15)."""
        variable = denoised.clone().requires_grad_(True)
        adam = torch.optim.Adam([variable], lr=self.settings.lr_at(step))
        mask = self._mask(denoised) if self.settings.mode == "crop" or self.settings.anchor == "background" else None
        faces = self._count_faces(range(len(denoised)))
        similarities: list[float] = []
        chunks = list(self._chunks(len(denoised)))
        crops = self.settings.mode == "crop"
        with self.decoder.with_recorded_stats(denoised, chunks) if crops else nullcontext():
            for _ in range(self.settings.iterations):
                adam.zero_grad()
                sums, rests = zip(*(self._backward(variable, chunk, faces) for chunk in chunks), strict=True)
                similarities.append(sum(sums) / faces)
                if variable.grad is None:  # every face has reached the target
                    break
                if mask is not None:
                    variable.grad.mul_(mask)  # Adam normalises gradients: only zeros do not move
                before = variable.detach().clone()
                adam.step()
                for chunk, resting in zip(chunks, rests, strict=True):  # Adam's momentum would pull them further
                    if resting is not None:
                        rows = slice(chunk.start, chunk.stop)
                        variable.detach()[rows].copy_(torch.where(resting, before[rows], variable.detach()[rows]))
        frames = self._count_frames(len(denoised))
        self.log.append(RefineLogEntry(step.index, similarities[0], similarities[-1], faces, frames))
        return variable.detach()

    def _backward(self, variable: Tensor, chunk: range, faces: int) -> tuple[float, Tensor | None]:
        """Add one chunk's part of the gradient; return the sum of its cosines, and where its latents rest, as
        bool[t,1,h,w]; None without a target."""
        similarities = self._similarities(variable, chunk)
        losses, target, resting = (1 - similarities).abs(), self.settings.target, None
        if target is not None:
            pulled = similarities.detach() < target
            losses, resting = losses[pulled], self._resting(variable, chunk, pulled.tolist())
        if len(losses):
            (losses.sum() / faces).backward()
        return float(similarities.detach().sum()), resting

    def _resting(self, latents: Tensor, chunk: range, pulled: Sequence[bool]) -> Tensor:
        """Mask bool[t,1,h,w] of the chunk's latents that rest: all with faces of which none is ``pulled`` (a bool per
        face, in the order of the cosines), and beside one that is, the surroundings of people of whom none is."""
        mask = torch.zeros(len(chunk), 1, *latents.shape[-2:], dtype=torch.bool, device=latents.device)
        if all(pulled):
            return mask
        frames, flags = self.decoder.frames(chunk), iter(pulled)
        states = [{f: next(flags) for f in frames if one.boxes[f] is not None} for one in self.targets]
        for row, index in enumerate(chunk):
            moving: list[Box] = []
            reached: list[Box] = []
            for one, state in zip(self.targets, states, strict=True):
                shown = [frame for frame in self.decoder.frames(range(index, index + 1)) if frame in state]
                boxes = moving if any(state[frame] for frame in shown) else reached
                boxes += [box for frame in shown if (box := one.boxes[frame]) is not None]
            if reached and not moving:
                mask[row] = True
                continue
            self._fill(mask[row], reached, self.settings.mask_dilation, True)
            self._fill(mask[row], moving, 0, False)
        return mask

    def _similarities(self, latents: Tensor, chunk: range) -> Tensor:
        """Cosine of every face of a chunk with its own target [faces]."""
        chunk_latents = latents[chunk.start : chunk.stop]
        if self.settings.mode == "full":
            return torch.cat(list(self._cosines(self.decoder.pixels(chunk_latents), (0, 0), chunk, self.targets)))
        found = []
        for target in self.targets:
            boxes = [box for box in self._boxes_in(target, chunk) if box is not None]
            if boxes:
                pixels, corner = self.decoder.crop(chunk_latents, chunk, union_box(boxes))
                found += self._cosines(pixels, corner, chunk, [target])
        return torch.cat(found)

    def _cosines(
        self, pixels: Tensor, corner: tuple[int, int], chunk: range, targets: Sequence[Target]
    ) -> Iterator[Tensor]:
        pixels = pixels.float().clamp(-1, 1)
        x, y = corner
        for target in targets:
            visible = [(i, box) for i, box in enumerate(self._boxes_in(target, chunk)) if box is not None]
            if visible:
                boxes = [(box[0] - x, box[1] - y, box[2] - x, box[3] - y) for _, box in visible]
                vectors = self.embed(pixels[[i for i, _ in visible]], boxes)
                yield F.cosine_similarity(vectors, target.vector.to(vectors)[None])

    def _chunks(self, frames: int) -> Iterator[range]:
        """Chunks with a face; the others have no gradient and are not decoded."""
        for start in range(0, frames, self.settings.chunk):
            chunk = range(start, min(start + self.settings.chunk, frames))
            if self._count_faces(chunk):
                yield chunk

    def _boxes_in(self, target: Target, latents: range) -> list[Box | None]:
        """The target's boxes in the frames of these latents."""
        return [target.boxes[frame] for frame in self.decoder.frames(latents)]

    def _count_faces(self, latents: range) -> int:
        return sum(box is not None for target in self.targets for box in self._boxes_in(target, latents))

    def _count_frames(self, latents: int) -> int:
        """Number of frames with a face."""
        frames = self.decoder.frames(range(latents))
        return sum(any(target.boxes[frame] is not None for target in self.targets) for frame in frames)

    def _mask(self, latents: Tensor) -> Tensor:
        """Mask [t,1,h,w] of latents that may move: each frame's boxes, dilated by ``mask_dilation``."""
        mask = latents.new_zeros(len(latents), 1, *latents.shape[-2:])
        for index in range(len(latents)):
            boxes = [box for target in self.targets for box in self._boxes_in(target, range(index, index + 1))]
            self._fill(mask[index], boxes, self.settings.mask_dilation, 1)
        return mask

    def _fill(self, mask: Tensor, boxes: Sequence[Box | None], dilation: int, value: int) -> None:
        """Set ``mask`` [...,h,w] to ``value`` within boxes that are dilated by ``dilation`` latents."""
        scale = self.decoder.scale
        for box in boxes:
            if box is not None:
                left, top = (max(0, side // scale - dilation) for side in box[:2])
                right, bottom = (side // scale + 1 + dilation for side in box[2:])
                mask[..., top:bottom, left:right] = value


def _merge_targets(known: Sequence[Target], found: Sequence[Target]) -> Sequence[Target]:
    """The known targets with found boxes where they have none."""
    if not known or not found:
        return known or found
    return [
        Target(boxes=tuple(a or b for a, b in zip(one.boxes, other.boxes, strict=True)), vector=one.vector)
        for one, other in zip(known, found, strict=True)
    ]


def union_box(boxes: Sequence[Box]) -> Box:
    """The smallest box around all of ``boxes``."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)
