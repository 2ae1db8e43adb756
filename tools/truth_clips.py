"""Clip folders of puppets from what is known about them: no detector looks, only the recogniser sees the faces.

``python -m tools.truth_clips PUPPETS OUT`` takes a folder of ``sa puppets`` and writes for each video
the clip folder that ``sa preprocess`` would, with the drawn key points, boxes and landmarks. It is how the puppet model
gets thousands of clips in minutes (``make puppet``); everything from the clip folders on is the way of any video.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stableanimator_cli import __version__, catalogue, clip_folder
from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import MARK, sha256_of, temporary_path
from stableanimator_cli.media import open_clip
from stableanimator_cli.motion.motion_file import load_motion, save_motion
from stableanimator_cli.preprocess.clip import link_source, write_json
from stableanimator_cli.preprocess.clip_entries import check_clip_replaceable, remove_leftovers, replace_clip
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.readers import read_json, read_npz
from stableanimator_cli.readers_fields import Fields
from stableanimator_cli.records import Face


def write_clips(puppets: Path, out: Path, reader: FaceReader, reporter: Reporter | None = None) -> int:
    """One clip folder a video of ``puppets`` below ``out``; those that are there stay. Returns how many there are.

    Raises ``BadInput`` where ``puppets`` is no folder of ``sa puppets``.
    """
    records = sorted((puppets / "truth").glob("*.json"))
    if not records:
        raise BadInput(puppets, "no truth/*.json", "a folder of `sa puppets`", hint="sa puppets DIR --videos N")
    reporter = reporter or NullReporter()
    remove_leftovers(out / path.stem for path in records)
    network = sha256_of(reader.recogniser_file)
    with reporter.progress(len(records), "clips", "clip") as bar:
        for path in records:
            place = out / path.stem
            if not (place / clip_folder.RECORD).exists():
                _write_clip(puppets, path, place, reader, network)
            bar.update(1)
    return len(records)


def _write_clip(puppets: Path, path: Path, place: Path, reader: FaceReader, network: str) -> None:
    what = "the truth of a puppet"
    truth = Fields.of(read_json(path, what), path, what)
    files = {name: puppets / truth.fields("files").text(name) for name in ("video", "motion", "faces")}
    video, motion = files["video"], load_motion(files["motion"])
    check_clip_replaceable(place)
    part = temporary_path(place)
    part.mkdir(parents=True)
    known = read_npz(files["faces"], "faces of a puppet")
    boxes, landmarks = known["boxes"], known["landmarks"]
    found: list[tuple[int, int, Face]] = []
    for t, (_, picture) in enumerate(open_clip(video).frames()):
        for p in np.flatnonzero(np.isfinite(landmarks[t]).all(axis=(1, 2))):
            vector = reader.recognise(picture, landmarks[t, p])
            found.append((t, int(p), Face(box=boxes[t, p], landmarks=landmarks[t, p], score=1.0, embedding=vector)))
    digest = sha256_of(video)
    link_source(video, part, place, copy=False)
    save_motion(part / clip_folder.MOTION, motion)
    clip_folder.save_faces(part / clip_folder.FACES, clip_folder.FaceTable.of(found, reader.channel_order))
    record = {
        "format": clip_folder.FORMAT,
        "name": path.stem,
        "frames": len(motion),
        "size": list(motion.size),
        "fps": truth.text("fps"),
        "audio": False,
        "source": {"path": str(video.resolve()), "name": video.name, "sha256": digest, "bytes": video.stat().st_size},
        "options": {"frames": None, "fps": None},
        "truth": True,
        "people": {"kept": motion.track.tolist(), "strangers": 0},
        "faces": {"found": len(found), "channel_order": reader.channel_order},
        "versions": {MARK: __version__},
        "key": hashlib.sha256(f"truth {clip_folder.FORMAT} {digest} {network}".encode()).hexdigest(),
    }
    write_json(part / clip_folder.RECORD, record)
    replace_clip(part, place)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("puppets", type=Path, help="a folder of `sa puppets`")
    parser.add_argument("out", type=Path, help="the folder of clip folders to write or to go on with")
    parser.add_argument("--model", default="puppet", help="whose recogniser sees the faces")
    options = parser.parse_args(arguments)
    model = catalogue.open_model(options.model, require=("face",))
    reader = FaceReader(model.files["face"], model.face_channel_order, "cpu")
    print(f"{options.out}: {write_clips(options.puppets, options.out, reader)} clips")


if __name__ == "__main__":
    main()
