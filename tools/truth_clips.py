"""Write clip folders of puppets from their ground truth: only the face recogniser runs, no detector.

``python -m tools.truth_clips PUPPETS OUT`` reads a folder of ``sa puppets`` and writes one clip folder per video, as
``sa preprocess`` would, with the drawn keypoints, boxes and landmarks. The puppet model gets thousands of clips in
minutes this way (``make puppet``). From the clip folders on, nothing differs from other videos.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
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
from tools.command import exit_code_of

_WHAT = "the ground truth of a puppet"


def write_clips(puppets: Path, out: Path, reader: FaceReader, reporter: Reporter | None = None) -> int:
    """Write one clip folder per video of ``puppets`` below ``out``, except finished ones; returns their number.

    Raises ``BadInput`` if ``puppets`` is no folder of ``sa puppets``, or a clip is of another video or recogniser.
    """
    records = sorted((puppets / "truth").glob("*.json"))
    if not records:
        raise BadInput(puppets, "no truth/*.json", "a folder of `sa puppets`", hint="sa puppets DIR --videos N")
    reporter = reporter or NullReporter()
    remove_leftovers(out / path.stem for path in records)
    network = sha256_of(reader.recogniser_file)
    with reporter.progress(len(records), "clips", "clip") as bar:
        for path in records:
            folder = out / path.stem
            truth = Fields.of(read_json(path, _WHAT), path, _WHAT)
            files = {name: puppets / truth.fields("files").text(name) for name in ("video", "motion", "faces")}
            digest = sha256_of(files["video"])
            key = hashlib.sha256(f"truth {clip_folder.FORMAT} {digest} {network}".encode()).hexdigest()
            if not (folder / clip_folder.RECORD).exists():
                _write_clip(files, truth.text("fps"), folder, reader, digest, key)
            elif clip_folder.open_folder(folder).record.get("key") != key:
                problem = f"it is not the clip of {files['video']} with this recogniser"
                raise BadInput.because(folder, problem, hint="choose another folder for the clips")
            bar.update(1)
    return len(records)


def _write_clip(files: Mapping[str, Path], fps: str, folder: Path, reader: FaceReader, digest: str, key: str) -> None:
    video, motion = files["video"], load_motion(files["motion"])
    check_clip_replaceable(folder)
    temp = temporary_path(folder)
    temp.mkdir(parents=True)
    truth_faces = read_npz(files["faces"], "the faces of a puppet")
    boxes, landmarks = truth_faces["boxes"], truth_faces["landmarks"]
    faces: list[tuple[int, int, Face]] = []
    for t, (_, image) in enumerate(open_clip(video).frames()):
        for p in np.flatnonzero(np.isfinite(landmarks[t]).all(axis=(1, 2))):
            embedding = reader.recognise(image, landmarks[t, p])
            faces.append((t, int(p), Face(box=boxes[t, p], landmarks=landmarks[t, p], score=1.0, embedding=embedding)))
    link_source(video, temp, folder, copy=False)
    save_motion(temp / clip_folder.MOTION, motion)
    clip_folder.save_faces(temp / clip_folder.FACES, clip_folder.FaceTable.of(faces, reader.channel_order))
    record = {
        "format": clip_folder.FORMAT,
        "name": folder.name,
        "frames": len(motion),
        "size": list(motion.size),
        "fps": fps,
        "audio": False,
        "source": {"path": str(video.resolve()), "name": video.name, "sha256": digest, "bytes": video.stat().st_size},
        "options": {"frames": None, "fps": None},
        "truth": True,
        "people": {"kept": motion.track.tolist(), "strangers": 0},
        "faces": {"found": len(faces), "channel_order": reader.channel_order},
        "versions": {MARK: __version__},
        "key": key,
    }
    write_json(temp / clip_folder.RECORD, record)
    replace_clip(temp, folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("puppets", type=Path, help="a folder of `sa puppets`")
    parser.add_argument("out", type=Path, help="folder of the clip folders; finished ones stay")
    parser.add_argument("--model", default="puppet", help="model whose recogniser computes the embeddings")
    options = parser.parse_args(arguments)
    model = catalogue.open_model(options.model, require=("face",))
    reader = FaceReader(model.files["face"], model.face_channel_order, "cpu")
    print(f"{options.out}: {write_clips(options.puppets, options.out, reader)} clips")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
