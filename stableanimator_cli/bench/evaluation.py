"""Cost of evaluation: networks in frames per second, pixel metrics per frame, and memory of metrics by video length.

Networks that are not installed have a row with the command that installs them.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.bench.context import BenchRun
from stableanimator_cli.bench.results import Table
from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.engine.metric_networks import features
from stableanimator_cli.errors import ModelMissing
from stableanimator_cli.metrics.accumulators import RunningMean
from stableanimator_cli.metrics.flicker import Changes
from stableanimator_cli.metrics.perceptual import PREPARE
from stableanimator_cli.metrics.pixel import FRAME_METRICS
from stableanimator_cli.metrics.result import METRICS, Missing
from stableanimator_cli.metrics.video import STYLES, ClipFeatures

BATCH = 8  # pairs of frames per call of LPIPS
LENGTHS = (32, 160)  # frames of videos whose memory is measured


def noise_pair(size: tuple[int, int], index: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame uint8[h,w,3] of noise, and a similar one."""
    rng = np.random.default_rng(index)
    frame = rng.integers(0, 246, (size[1], size[0], 3), dtype=np.uint8)
    return frame, frame + rng.integers(0, 10, frame.shape, dtype=np.uint8)


def time_metric_networks(bench: BenchRun, size: tuple[int, int]) -> Table:
    """Every network that a metric looks through, in the batches that ``sa evaluate`` gives it, preparation included;
    and the face detector and recogniser of a model."""
    pairs = [noise_pair(size, index) for index in range(max(BATCH, *(style.length for style in STYLES.values())))]
    variants: dict[str, Callable[[], object]] = {}
    frames: dict[str, int] = {}
    rows: list[dict[str, Any]] = []

    def enter(name: str, count: int, run: Callable[[], object]) -> None:
        variants[name], frames[name] = run, count

    for metric in (*PREPARE, *STYLES):
        network = features(str(METRICS[metric].network), bench.plan, metric=metric)
        if isinstance(network, Missing):
            rows.append({"what": metric, "not here": network.command})
        elif metric in PREPARE:
            prepare = PREPARE[metric]
            enter(
                metric,
                BATCH,
                lambda n=network, p=prepare: n(*(np.stack([p(pair[k]) for pair in pairs[:BATCH]]) for k in (0, 1))),
            )
        else:
            style = STYLES[metric]
            frames_of_clip = [frame for frame, _ in pairs[: style.length]]
            enter(
                metric,
                style.length,
                lambda n=network, s=style, clip=frames_of_clip: n(np.stack([s.prepare(f) for f in clip])[None]),
            )
    try:
        folder = catalogue.open_model(bench.detector_model(), ("face",))
    except ModelMissing as error:
        rows.append({"what": "faces", "not here": error.hint})
    else:
        reader = FaceReader(folder.files["face"], "bgr", str(bench.plan.device))
        enter(f"faces of {folder.name}", 1, lambda: reader.faces(pairs[0][0]))
    timed = bench.time(variants)
    for name in variants:
        seconds = timed.median(name)
        rows.append({"what": name, "ms": 1e3 * seconds, "frames per second": frames[name] / seconds})
    columns = ("what", "ms", "frames per second", "not here")
    return Table(
        title=f"Networks of metrics, frames of {size[0]}x{size[1]}",
        rows=[{name: row.get(name) for name in columns if name in row} for row in reversed(rows)],
        note=f"{bench.rounds} round(s), interleaved, preparation of frames included; pairs in batches of {BATCH}, "
        f"clips of {max(style.length for style in STYLES.values())} frames. "
        "What is not here comes with the command beside it.",
    )


def time_pixel_metrics(bench: BenchRun, size: tuple[int, int]) -> Table:
    """Time each metric of a pair of frames."""
    made, truth = noise_pair(size, 0)
    variants: dict[str, Callable[[], object]] = {
        name: lambda metric=metric: metric(made, truth) for name, metric in FRAME_METRICS.items()
    }

    def changes() -> None:
        seen = Changes()
        for frame in (made, truth, made):
            seen.add(frame)

    variants["flicker and seams, three frames"] = changes
    timed = bench.time(variants)
    total = sum(timed.median(name) for name in variants)
    rows = [
        {"metric": name, "ms per frame": 1e3 * timed.median(name), "% of all": 100 * timed.median(name) / total}
        for name in variants
    ]
    return Table(
        title=f"Metrics of pixels, a pair of {size[0]}x{size[1]}",
        rows=rows,
        note=f"{bench.rounds} round(s), interleaved, one thread.",
    )


def count_metric_memory(bench: BenchRun, size: tuple[int, int]) -> Table:
    """Bytes that stay after a video has gone by, by length: metrics of pixels, flicker, and a clip metric's features,
    whose network is taken to answer 400 numbers."""
    style = next(iter(STYLES.values()))
    rows = []
    for length in LENGTHS:
        row: dict[str, Any] = {"frames": length}
        for name, watch in _streaming_metrics(style.metric).items():
            for index in range(3):  # libraries load parts of themselves, which is no cost of a video
                watch()[0](index, *noise_pair(size, index))
            gc.collect()
            tracemalloc.start()
            try:
                add, state = watch()
                for index in range(length):
                    add(index, *noise_pair(size, index))
                gc.collect()
                row[f"KiB in use, {name}"] = tracemalloc.get_traced_memory()[0] / 2**10
                del state, add
            finally:
                tracemalloc.stop()
            bench.tick()
        rows.append(row)
    return Table(
        title=f"What metrics keep of a video of {size[0]}x{size[1]}",
        rows=rows,
        note="Counted by Python's tracemalloc, the same everywhere: numbers grow with the length, pictures do not.",
    )


def _streaming_metrics(clip_metric: str) -> dict[str, Callable[[], tuple[Callable[..., None], object]]]:
    """Streaming metrics: a function that takes the next pair of frames, and the state it updates."""

    def of_pixels() -> tuple[Callable[..., None], object]:
        means = {name: RunningMean() for name in FRAME_METRICS}

        def add(index: int, made: np.ndarray, truth: np.ndarray) -> None:
            for name, running in means.items():
                running.add(FRAME_METRICS[name](made, truth))

        return add, means

    def of_changes() -> tuple[Callable[..., None], object]:
        seen = Changes()
        return lambda index, made, truth: seen.add(made), seen

    def of_clips() -> tuple[Callable[..., None], object]:
        clips = ClipFeatures(STYLES[clip_metric], lambda batch: np.zeros((len(batch), 400), np.float32))
        return lambda index, made, truth: clips.add("video", index, made), clips

    return {"pixels": of_pixels, "flicker": of_changes, clip_metric: of_clips}
