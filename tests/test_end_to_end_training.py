"""The whole way through ``sa`` alone: drawn videos become clips, clips a training that is killed and goes on, its
checkpoint a video, and the video scores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from stableanimator_cli.media import open_clip
from stableanimator_cli.train import checkpoint
from stableanimator_cli.train.metrics_log import read_metrics
from tests.conftest import ROOT, Run

STEPS = 4
FRAMES = 4


def killed_after_its_first_checkpoint(words: list[str], run: Path) -> int:
    """The step that a training had saved when SIGKILL took it."""
    child = subprocess.Popen(
        [sys.executable, "-m", "stableanimator_cli", *words],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    limit = time.monotonic() + 280
    while not checkpoint.list_checkpoints(run) and child.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    said = child.communicate()[1]
    assert child.returncode == -signal.SIGKILL, said
    return checkpoint.list_checkpoints(run)[-1][0]


def test_videos_to_clips_to_a_model_to_a_video_to_scores(sa: Run, tmp_path: Path) -> None:
    figures, clips, run = tmp_path / "figures", tmp_path / "clips", tmp_path / "run"
    made, scores = tmp_path / "made.mp4", tmp_path / "scores"
    here = ("--device", "cpu", "--quiet")

    def go(*words: object) -> str:
        done = sa(*map(str, words))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    go("puppets", figures, "--videos", 2, "--frames", FRAMES, "--size", "128x128", "--quiet")
    assert go("preprocess", figures / "videos", "-o", clips, "--model", "puppet", *here) == str(clips)
    training = (
        "train", clips, "-o", run, "--model", "puppet", "--sizes", "64x64", "--frames", 2, "--steps", STEPS,
        "--train", "adapters", "--stride", 1, "--warmup", 0, "--save-every", 1, "--cache", "latents,embeddings",
        "--workers", 0, "--validate", clips, "--validate-clips", 1, "--checkpointing", "off", *here,
    )  # fmt: skip
    reached = killed_after_its_first_checkpoint([str(word) for word in training], run)
    assert 1 <= reached < STEPS
    assert go("train", "--resume", run, "--quiet") == str(run / "model")
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert -1 < rows[-1]["csim"] < 1  # validation follows the last step
    assert 0 < rows[-1]["keypoint_error"] < 1
    assert "csim" not in rows[0]
    assert checkpoint.list_checkpoints(run)[-1][0] == STEPS

    picture, motion = figures / "references" / "00001.png", clips / "00001" / "motion.npz"
    rendering = ("--model", run / "model", "--steps", 2, "--size", "128x128", *here)
    assert go("animate", picture, motion, "-o", made, *rendering) == str(made)
    assert open_clip(made).count == FRAMES
    told = json.loads(made.with_suffix(".json").read_text())
    assert f"step-{STEPS}" in told["model"]["name"]

    truth = figures / "videos" / "00001.mp4"
    report = json.loads(go("evaluate", made, truth, "-o", scores, "--model", "puppet", "--json", *here))
    assert json.loads((scores / "scores.json").read_text())["metrics"].keys() == report["metrics"].keys()
    found = {name: metric["value"] for name, metric in report["metrics"].items()}
    assert found["psnr"] > 12  # even noise beside plain grey has no more than 10 log10(12), 10.8
    assert -1 <= found["csim_ref"] <= 1
    assert 0 < found["keypoint_error"] < 1
