"""`clip_i`, `dino` and `jedi` from the command to the files, with small random networks in their published layouts."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stableanimator_cli.engine import metric_networks
from stableanimator_cli.evaluate.protocols import PROTOCOLS
from stableanimator_cli.evaluate.run import run
from stableanimator_cli.evaluate.scores import Scores
from stableanimator_cli.media import open_clip, write_image
from tests.engine.test_image_metric_networks import clip_folder, dino_folder, vjepa_folder
from tests.evaluate.samples import changed, drawn, noisy, write
from tests.nets import vit_nets

CLIP = vit_nets.random(vit_nets.clip_shapes(vit_nets.CLIP))
DINO = vit_nets.random(vit_nets.dino_shapes(vit_nets.DINO), seed=1)
ENCODER = vit_nets.random(vit_nets.vjepa_shapes(vit_nets.VJEPA), seed=2)
PROBE = vit_nets.random(vit_nets.probe_shapes(vit_nets.VJEPA), seed=3)
LEARNED = ("clip_i", "dino", "jedi")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three networks are installed."""
    folders = {
        "clip_image": clip_folder(tmp_path / "clip", CLIP),
        "dino": dino_folder(tmp_path / "dino", DINO),
        "vjepa": vjepa_folder(tmp_path / "vjepa", ENCODER, PROBE),
    }
    for name, folder in folders.items():
        source = replace(metric_networks.NETWORKS[name], entry=str(folder))
        monkeypatch.setitem(metric_networks.NETWORKS, name, source)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two figures of 18 frames, twelve rows higher than wide: ground truth, predictions, another system's, pictures."""
    folder = tmp_path_factory.mktemp("sides")
    for figure in range(2):
        name = f"figure_{figure}.mp4"
        write(folder / "truth" / name, drawn(figure, frames=18, size=(52, 64)))
        for system, amount in (("ours", 4), ("others/theirs", 60)):
            (folder / system).mkdir(parents=True, exist_ok=True)
            changed(folder / "truth" / name, folder / system / name, noisy(amount))
    write_image(folder / "ref.png", drawn(7, frames=1, size=(80, 60))[0])
    return folder


def _never(flags: Any, settings: Any) -> None:
    raise AssertionError("nothing is animated here")


def scored(inputs: list[Path], output: Path, **flags: Any) -> Scores:
    """Without a model: nothing is detected."""
    scores = run(flags={"inputs": inputs, "output": output, **flags}, animate=_never)
    assert isinstance(scores, Scores)
    return scores


def frames_of(path: Path) -> list[np.ndarray]:
    return [frame for _, frame in open_clip(path).frames()]


def by_hand(metric: str, frames: list[np.ndarray], reference: np.ndarray) -> np.ndarray:
    """Cosines of embeddings, picture by picture, from the published steps."""
    side, mean, std = {
        "clip_i": (224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        "dino": (256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }[metric]
    rows = []
    for frame in (reference, *frames):
        height, width = frame.shape[:2]
        size = (side, int(side * height / width)) if width < height else (int(side * width / height), side)
        pixels = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
        top, left = (round((n - 224) / 2) for n in pixels.shape[:2])
        x = (pixels[top : top + 224, left : left + 224] / 255.0 - mean) / std
        x = torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32))
        tensors, config = (CLIP, vit_nets.CLIP) if metric == "clip_i" else (DINO, vit_nets.DINO)
        compute = vit_nets.clip_by_hand if metric == "clip_i" else vit_nets.dino_by_hand
        rows.append(compute(tensors, config, x)[0].double().numpy())
    first, *rest = (row / np.linalg.norm(row) for row in rows)
    return np.array([row @ first for row in rest])


def jedi_by_hand(sides: Path) -> float:
    """The published kernel over one clip per video: the first 16 of its 18 frames."""
    rows = []
    for side in ("ours", "truth"):
        clips = []
        for path in sorted((sides / side).iterdir()):
            planes = [[Image.fromarray(frame[..., c].astype(np.float32)).resize((224, 224), Image.Resampling.BILINEAR)
                       for c in range(3)] for frame in frames_of(path)[:16]]  # fmt: skip
            x = np.stack([np.stack([np.asarray(p) for p in frame], -1) for frame in planes]) / 255.0
            clips.append(((x - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(3, 0, 1, 2))
        x = torch.from_numpy(np.stack(clips).astype(np.float32))
        rows.append(vit_nets.vjepa_by_hand(ENCODER, PROBE, vit_nets.VJEPA, x).double().numpy())
    a, b = rows
    kernel = [np.mean((x @ y.T / x.shape[1]) ** 2) for x, y in ((a, a), (b, b), (a, b))]
    return float(100 * (kernel[0] + kernel[1] - 2 * kernel[2]))


def test_videos_are_compared_with_the_first_frame_of_the_ground_truth_and_with_other_systems(weights, sides, tmp_path):
    scores = scored([sides / "ours", sides / "truth"], tmp_path / "s", baselines=sides / "others")
    for video in scores.videos:
        reference = frames_of(sides / "truth" / f"{video.name}.mp4")[0]
        for metric in ("clip_i", "dino"):
            expected = by_hand(metric, frames_of(sides / "ours" / f"{video.name}.mp4"), reference)
            assert video.values[metric] == pytest.approx(expected.mean(), abs=1e-4)
            assert video.curves[metric] == pytest.approx(expected, abs=1e-4)
            assert video.counts[metric] == 18
    assert jedi_by_hand(sides) > 1e-4
    assert scores.rows["jedi"].shown == pytest.approx(jedi_by_hand(sides), rel=1e-2)
    told = json.loads((tmp_path / "s/scores.json").read_text())
    assert not set(LEARNED) & {one["metric"] for one in told["missing"]}
    row = told["metrics"]["clip_i"]
    assert row["value"] == pytest.approx(np.mean([video.values["clip_i"] for video in scores.videos]))
    assert list(row["about"]["files"]) == ["pytorch_model.bin"]
    assert told["metrics"]["jedi"]["about"]["clips_predicted"] == 2
    ahead = [ours.values["clip_i"] - theirs["values"]["clip_i"]
             for ours, theirs in zip(scores.videos, told["rival_videos"]["theirs"], strict=True)]  # fmt: skip
    difference = told["paired_differences"]["theirs"]["clip_i"]
    assert difference["mean"] == pytest.approx(np.mean(ahead), abs=1e-9)
    assert difference["wins"] == sum(value > 0 for value in ahead)  # higher is better
    lines = list(csv.reader((tmp_path / "s/scores.csv").read_text().splitlines()))
    assert {"clip_i", "dino", "jedi", "clip_i difference"} <= {line[1] for line in lines}
    printed = (tmp_path / "s/scores.tex").read_text()
    assert all(title in printed for title in (r"CLIP-I$\uparrow$", r"DINO$\uparrow$", r"JEDi$\downarrow$"))
    assert "CLIP-I" in (tmp_path / "s/report.html").read_text()


def test_the_protocols_crop_is_not_seen(weights, sides, tmp_path):
    pair = [sides / side / "figure_0.mp4" for side in ("ours", "truth")]
    native, cropped = (scored(pair, tmp_path / name, protocol=name).videos[0] for name in ("native", "disco256"))
    assert native.values["psnr"] != cropped.values["psnr"]
    for metric in ("clip_i", "dino"):
        assert native.values[metric] == cropped.values[metric]


def test_any_video_is_compared_with_its_picture_alone(weights, sides, tmp_path):
    video = sides / "ours/figure_0.mp4"
    reference = np.asarray(Image.open(sides / "ref.png").convert("RGB"))
    scores = scored([video], tmp_path / "s", reference_picture=sides / "ref.png")
    write(tmp_path / "still.mp4", [reference] * 3)
    still = scored([tmp_path / "still.mp4"], tmp_path / "still", reference_picture=sides / "ref.png")
    for metric in ("clip_i", "dino"):
        expected = by_hand(metric, frames_of(video), reference)
        assert scores.videos[0].values[metric] == pytest.approx(expected.mean(), abs=1e-4)
        assert still.videos[0].values[metric] == pytest.approx(1, abs=1e-5)
    assert "jedi" not in scores.rows
    curves = [json.loads(line) for line in (tmp_path / "s/curves.jsonl").read_text().splitlines()]
    assert len(curves[0]["dino"]) == 18


def test_truncated_frames_do_not_count(weights, sides, tmp_path):
    write(tmp_path / "long.mp4", [*frames_of(sides / "ours/figure_0.mp4"), *drawn(1, frames=3, size=(52, 64))])
    scores = scored([tmp_path / "long.mp4", sides / "truth/figure_0.mp4"], tmp_path / "s", truncate=True)
    assert scores.videos[0].counts["dino"] == len(scores.videos[0].curves["dino"]) == 18
    exact = scored([sides / "ours/figure_0.mp4", sides / "truth/figure_0.mp4"], tmp_path / "t").videos[0]
    assert scores.videos[0].values["dino"] == pytest.approx(exact.values["dino"], abs=1e-6)


def test_absent_weights_are_said_and_give_no_number(sides, tmp_path):
    with_truth = scored([sides / "ours", sides / "truth"], tmp_path / "s")
    alone = scored([sides / "ours/figure_0.mp4"], tmp_path / "t", reference_picture=sides / "ref.png")
    for scores, names in ((with_truth, LEARNED), (alone, LEARNED[:2])):
        missing = {one.metric: one for one in scores.missing}
        for name in names:
            assert "lacks" in missing[name].reason
            assert missing[name].command.startswith("sa models pull ")
            assert name not in scores.rows
            assert not any(name in video.values for video in scores.videos)
    assert {"clip_i", "dino"} <= {*PROTOCOLS["native"].table, *PROTOCOLS["native"].networks}
