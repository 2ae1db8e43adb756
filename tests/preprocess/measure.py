"""How fast, how much memory, how much disk: ``sa preprocess`` beside the way of one frame at a time with PNG files.

``python -m tests.preprocess.measure MODEL VIDEO [PAIRS]`` runs both by turns in processes of their own and prints a
table. The other way is that of the reference implementation's scripts: frames to PNG, then for each file a detector, a
pose network and a face reader called once a frame, skeletons and masks to PNG.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def ours(model: str, video: Path, out: Path) -> None:
    from stableanimator_cli.preprocess.run import run

    run(flags={"input": (video,), "model": model, "device": "cpu", "output": out})


def one_by_one(model: str, video: Path, out: Path) -> None:
    from stableanimator_cli.catalogue import open_model
    from stableanimator_cli.detect.capture import Detectors
    from stableanimator_cli.media import open_clip, read_image, write_image
    from stableanimator_cli.motion.masks import face_mask
    from stableanimator_cli.motion.skeleton import draw_skeleton

    detectors = Detectors.open(open_model(model), "cpu")
    if detectors.faces is None:
        raise SystemExit("the model needs a face detector for this comparison")
    for index, (_, frame) in enumerate(open_clip(video).frames()):
        write_image(out / "images" / f"frame_{index}.png", frame)
    for index in range(len(list((out / "images").iterdir()))):
        frame = read_image(out / "images" / f"frame_{index}.png")
        size = frame.shape[1], frame.shape[0]
        boxes = detectors.people.detect([frame])
        (people,) = detectors.points.estimate([frame], boxes)
        write_image(out / "poses" / f"frame_{index}.png", draw_skeleton(people, size))
        faces = detectors.faces.faces(frame)
        mask = face_mask([face.box for face in faces], size, missing="full")
        write_image(out / "faces" / f"frame_{index}.png", mask[..., None].repeat(3, 2))


def trial(way: str, model: str, video: Path) -> tuple[float, float, int]:
    """Seconds, peak MiB and bytes on disk of one run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.preprocess.measure", way, model, str(video), folder],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        seconds, peak = map(float, done.stdout.split()[-2:])
        files = (file for file in Path(folder).rglob("*") if file.is_file() and not file.is_symlink())
        return seconds, peak, sum(file.stat().st_size for file in files)


def main(words: list[str]) -> None:
    if words[0] in ("ours", "one_by_one"):
        way, model, video, out = words
        started = time.perf_counter()
        {"ours": ours, "one_by_one": one_by_one}[way](model, Path(video), Path(out))
        seconds = time.perf_counter() - started
        print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    model, video = words[0], Path(words[1])
    pairs = [
        (trial("ours", model, video), trial("one_by_one", model, video))
        for _ in range(int(words[2]) if len(words) > 2 else 3)
    ]
    for name, column in (("batched and overlapped", 0), ("one by one with PNG", 1)):
        runs = [pair[column] for pair in pairs]
        seconds, peak = (statistics.median(run[k] for run in runs) for k in (0, 1))
        print(f"| {name} | {seconds:.1f} s | {peak:.0f} MiB | {runs[0][2] / 2**20:.2f} MiB |")
    ratios = sorted(slow[0] / fast[0] for fast, slow in pairs)
    print(f"ratio of seconds: median {statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
