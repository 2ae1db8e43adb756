"""Which drawing the identity gate chooses, and what it says of windows that it cannot measure. Nothing is rendered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stableanimator_cli.animate import pipeline
from stableanimator_cli.animate.checkpoint import BestSample, Checkpoint, SamplingState
from stableanimator_cli.animate.identity_gate import FaceSimilarity, GateResult, retry_counts
from stableanimator_cli.animate.pipeline import AnimateJob
from stableanimator_cli.config.animate import DecodeConfig, SamplingConfig
from stableanimator_cli.diffusion.windows import Window, WindowPlan, plan_windows
from stableanimator_cli.engine.render import RenderRequest
from stableanimator_cli.progress import WarningLog
from tests.animate.clips import Heard

NONE = float("nan")


def identity(*windows: float) -> FaceSimilarity:
    """Three windows of one frame each, beside the anchor, by the similarity of their faces."""
    return FaceSimilarity(similarity=np.array(windows))


def gated(
    monkeypatch: pytest.MonkeyPatch, drawings: Sequence[FaceSimilarity], *, redraw: int, found: Checkpoint | None = None
) -> tuple[int, GateResult, Heard]:
    """The number of the drawing that is chosen, with its gate and what was said. ``drawings`` are measured in order."""
    heard, numbers = Heard(), iter(range(len(drawings)))
    blank = np.zeros((64, 64, 3), np.uint8)
    request = RenderRequest(
        image=blank, resized=blank, face=None, poses=None, plan=plan_windows(4, length=2, overlap=0),
        sampling=SamplingConfig(steps=2), decode=DecodeConfig(), noise_period=2, has_anchor=True,
    )  # fmt: skip
    config = SimpleNamespace(refine=SimpleNamespace(min_csim=0.5, gate_retries=redraw), sampling=request.sampling)
    job: Any = SimpleNamespace(
        config=config,
        request=request,
        checkpoints=SimpleNamespace(restored=found),
        reporter=WarningLog(heard),
        engine=SimpleNamespace(
            backbone=SimpleNamespace(resumable_steps=lambda sampling: frozenset(), rewind=lambda *sampling: None)
        ),
    )

    def sampled(job: AnimateJob, request: RenderRequest, state: Any, save: Any) -> SamplingState:
        return SamplingState(latents=torch.tensor(float(next(numbers))), step=2)

    monkeypatch.setattr(pipeline, "_sample", sampled)
    monkeypatch.setattr(pipeline, "_measure_identity", lambda job, latents: drawings[int(latents)])
    state, gate = pipeline.sample_until_gate_passes(job)
    return int(state.latents), gate, heard


@pytest.mark.parametrize(
    ("drawings", "chosen"),
    [
        ([(0.9, 0.9, 0.4), (0.49, 0.49, 0.49)], 0),  # one failing window wins over three
        ([(0.4, 0.9, 0.9), (0.49, 1.0, 0.49)], 0),  # and over two, whose mean is lower
        ([(0.45, 0.6, 0.55), (0.45, 0.45, 0.99)], 0),  # fewer failing windows win though the mean is lower
        ([(0.1, 0.1, 0.9), (0.4, 0.9, 0.5)], 1),
        ([(0.1, 0.9, 0.9), (0.3, 0.9, 0.9), (0.2, 0.9, 0.9)], 1),  # as many failing windows: the mean decides
        ([(0.1, 0.9, 0.9), (0.9, 0.9, 0.9)], 1),
    ],
)
def test_fewer_failing_windows_win_and_then_the_mean(monkeypatch, drawings, chosen):
    number, gate, _ = gated(monkeypatch, [identity(*row) for row in drawings], redraw=len(drawings) - 1)
    assert number == chosen
    assert gate.identity is not None
    assert gate.identity.similarity.tolist() == list(drawings[chosen])
    assert list(gate.failed) == [index for index, value in enumerate(drawings[chosen]) if value < 0.5]


def test_the_best_of_an_interrupted_run_is_compared_too(monkeypatch):
    best = BestSample(
        state=SamplingState(latents=torch.tensor(7.0), step=2), identity=identity(0.9, 0.9, 0.4), failed=(2,)
    )
    found = Checkpoint(
        state=SamplingState(latents=torch.zeros(1), step=1), attempts=((2,),), best=best, calls=Counter()
    )
    number, gate, _ = gated(monkeypatch, [identity(0.49, 0.49, 0.9)], redraw=1, found=found)
    assert (number, gate.failed) == (7, (2,))


def test_a_redraw_that_loses_the_face_does_not_pass(monkeypatch):
    """A window that failed with a face and now shows none is no better, though there is nothing left to measure."""
    drawings = [identity(0.9, 0.9, 0.4), identity(0.9, 0.9, NONE)]
    number, gate, _ = gated(monkeypatch, drawings, redraw=1)
    assert (number, gate.failed) == (1, (2,))  # as many fail, and the mean of what shows is greater
    assert gate.to_json(0.5) == {
        "min_csim": 0.5, "result": "failed", "failed_windows": [2], "windows_without_face": [2]
    }  # fmt: skip
    number, gate, _ = gated(monkeypatch, [identity(0.9, 0.4, 0.4), identity(NONE, NONE, NONE)], redraw=1)
    assert (number, gate.failed) == (0, (1, 2))


@pytest.mark.parametrize("blend", ["smooth", "shifted", "upstream"])
def test_the_first_frame_counts_in_its_own_window_alone(blend):
    """Every window holds frame 0: its face would hide what a later window shows, or that it shows none."""
    plan = plan_windows(7, length=4, overlap=0, blend=blend)
    last = {frame for frame in plan.windows[-1].frames if frame > 0}
    for value in (0.4, NONE):
        found = FaceSimilarity(similarity=np.array([value if frame in last else 1.0 for frame in range(7)]))
        failed, unmeasured = found.failing(plan, 0.5, False), found.unmeasured(plan, False)
        assert (len(plan) - 1 in failed, len(plan) - 1 in unmeasured) == (value == 0.4, value != 0.4)
        assert 0 not in (*failed, *unmeasured)
    lost = FaceSimilarity(similarity=np.array([1.0, 1.0, 1.0, 1.0, NONE, NONE, NONE]))
    assert lost.failing(plan_windows(7, length=4, overlap=0), 0.5, False, had_face={1}) == [1]


def test_the_anchor_keeps_its_noise_unless_its_own_window_fails():
    plan = plan_windows(7, length=4, overlap=0)
    assert retry_counts([(1,)], plan) == (0, 0, 0, 0, 1, 1, 1)
    assert retry_counts([(1,), (0,), (1,)], plan) == (2, 2, 2, 2, 3, 3, 3)


def test_frames_that_an_earlier_segment_draws_count_there_alone():
    """To sample the second segment again would not change the frames that it continues."""
    segments = (Window((0, 1, 2, 3), (1.0,) * 4), Window((2, 3, 4), (0.0, 0.0, 1.0)))
    found = FaceSimilarity(similarity=np.array([0.9, 0.9, 0.3, 0.3, 0.9]))
    assert found.failing(WindowPlan(5, segments), 0.5, False) == []
    hidden = FaceSimilarity(similarity=np.array([0.9, 0.9, 0.9, 0.9, NONE]))
    assert hidden.unmeasured(WindowPlan(5, segments), False) == [1]


@pytest.mark.parametrize(
    ("windows", "result", "words"),
    [
        ((NONE, NONE, NONE), "not measurable", ": no frame of the video shows a face"),
        ((0.9, NONE, 0.9), "passed", " in window(s) 2, which show no face"),
        ((0.9, 0.9, 0.9), "passed", None),
    ],
)
def test_what_cannot_be_measured_is_a_warning(monkeypatch, windows, result, words):
    _, gate, heard = gated(monkeypatch, [identity(*windows)], redraw=3)
    record = gate.to_json(0.5)
    assert record is not None
    assert record["result"] == result
    assert record["windows_without_face"] == [index for index, value in enumerate(windows) if np.isnan(value)]
    assert heard.warnings == ([] if words is None else ["--min-csim 0.5 could not be measured" + words])
