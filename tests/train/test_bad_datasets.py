"""Data sets with damaged records, faces, keypoints, lists and caches: one error that names the file, or a clip that is
left out with a reason; never anything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stableanimator_cli import clip_folder
from stableanimator_cli.errors import BadInput
from stableanimator_cli.train.buckets import into_buckets
from stableanimator_cli.train.dataset import open_dataset
from stableanimator_cli.train.latent_cache import build_cache, is_cached, latents_file, tokens_file
from stableanimator_cli.train.loader import Loader, LoaderSettings
from tests.train.clip_folders import SIZE, Networks, write_clip, write_upstream


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip", 6)


def first_batch(folder: Path) -> None:
    dataset = open_dataset([folder], min_frames=2)
    Loader(dataset, LoaderSettings(sizes=(SIZE,), frames=2, stride=1), seed=0, batch=1).batch(0)


def refused(folder: Path) -> str:
    """The one line with which a data set of this one clip is refused."""
    with pytest.raises(BadInput) as caught:
        first_batch(folder)
    assert caught.value.exit_code == 3
    assert "\n" not in caught.value.message
    return f"{caught.value.message} {caught.value.hint}"


RECORDS: dict[str, Any] = {
    "frames as text": {"frames": "six"}, "no frames": {"frames": 0}, "half a frame": {"frames": 5.5},
    "true frames": {"frames": True}, "many frames": {"frames": 2**40}, "frames missing": {"frames": None},
    "one side": {"size": [64]}, "negative size": {"size": [-64, 64]}, "huge size": {"size": [2**40, 64]},
    "size as text": {"size": "64x64"}, "floating size": {"size": [64.0, 64.0]}, "name is a list": {"name": []},
    "source is text": {"source": "clip.mp4"}, "source without path": {"source": {}}, 
    "path is a number": {"source": {"path": 7}},
    "options is a list": {"options": []}, "range of three": {"options": {"frames": [0, 1, 2], "fps": None}},
    "range of text": {"options": {"frames": ["a", "b"], "fps": None}},
    "rate of zero": {"options": {"frames": None, "fps": "25/0"}}, 
    "rate is a word": {"options": {"frames": None, "fps": "fast"}},
    "rate is a number": {"options": {"frames": None, "fps": 25}}, "format": {"format": "1"}, "key": {"key": None},
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_wrong_types_is_one_error(clip, tmp_path, name):
    folder = shutil.copytree(clip, tmp_path / "clip")
    record = json.loads((folder / clip_folder.RECORD).read_text()) | RECORDS[name]
    (folder / clip_folder.RECORD).write_text(json.dumps(record))
    assert "clip.json" in refused(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"frames": ' + "9" * 5000 + "}", "\0", "null", "1e999"]
)
def test_a_record_that_is_no_record_is_one_error(clip, tmp_path, text):
    folder = shutil.copytree(clip, tmp_path / "clip")
    (folder / clip_folder.RECORD).write_text(text)
    assert "clip.json" in refused(folder)


def _set(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(arrays: dict[str, Any]) -> None:
        arrays[name] = change(arrays[name])

    return apply


FACES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "frames as text": _set("frame", lambda a: a.astype("U3")),
    "frames with fractions": _set("frame", lambda a: a + 0.5),
    "frames below zero": _set("frame", lambda a: a - 9),
    "frames beyond the clip": _set("frame", lambda a: a + 6),
    "frame numbers of 2^40": _set("frame", lambda a: a + 2**40),
    "persons as numbers": _set("person", lambda a: a.astype(float)),
    "two axes": _set("scores", lambda a: a[:, None]),
    "one row less": _set("scores", lambda a: a[1:]),
    "boxes of three": _set("boxes", lambda a: a[:, :3]),
    "boxes of NaN": _set("boxes", lambda a: a * np.nan),
    "boxes of 1e30": _set("boxes", lambda a: a + 1e30),
    "infinite scores": _set("scores", lambda a: a + np.inf),
    "short embeddings": _set("embeddings", lambda a: a[:, :128]),
    "infinite embeddings": _set("embeddings", lambda a: a * np.inf),
    "half an embedding": _set("embeddings", lambda a: np.where(np.arange(512) < 5, np.nan, a)),
    "embeddings as text": _set("embeddings", lambda a: a.astype("U9")),
    "complex landmarks": _set("landmarks", lambda a: a.astype(complex)),
    "a scalar": _set("frame", lambda _: np.int64(3)),
    "version of text": _set("version", lambda _: np.array("one")),
    "channel order": _set("channel_order", lambda _: np.array("xyz")),
    "no embeddings": lambda arrays: arrays.pop("embeddings"),
}


@pytest.mark.parametrize("layout", ["ours", "upstream"])
@pytest.mark.parametrize("name", FACES)
def test_faces_of_wrong_types_are_one_error(clip, tmp_path, name, layout):
    folder = shutil.copytree(clip, tmp_path / "clip")
    if layout == "upstream":
        written = write_upstream(tmp_path / "theirs", 6)
        folder = Path(shutil.copy(folder / clip_folder.FACES, written / clip_folder.FACES)).parent
    with np.load(folder / clip_folder.FACES) as file:
        arrays = dict(file)
    FACES[name](arrays)
    np.savez(folder / clip_folder.FACES, **arrays)
    assert "faces.npz" in refused(folder)


def test_a_pickle_in_place_of_faces_is_not_run(clip, tmp_path):
    folder = shutil.copytree(clip, tmp_path / "clip")
    np.savez(folder / clip_folder.FACES, frame=np.array([{}], dtype=object))
    assert "faces.npz" in refused(folder)


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "3", '{"status": "ok"}', '{"status": 1, "clip": "clip", "source": "a"}', "[" * 9999,
     '{"status": "ok", "clip": "../clip", "source": "a"}', '{"status": "ok", "clip": 7, "source": "a"}',
     '{"status": "ok", "clip": "/clip", "source": "a"}', '{"status": "ok", "clip": "a\\u0000b", "source": "a"}',
     '{"status": "failed", "clip": "a", "source": "a", "error": "text"}',
     '{"status": "lost", "clip": "a", "source": "a"}'],
)  # fmt: skip
def test_an_index_of_wrong_lines_is_one_error(clip, tmp_path, line):
    shutil.copytree(clip, tmp_path / "data" / "clip")
    good = '{"status": "ok", "clip": "clip", "source": "a"}'
    (tmp_path / "data" / "index.jsonl").write_text(f"{good}\n{line}\n")
    assert "index.jsonl: line 2" in refused(tmp_path / "data")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a\0b\n", b"nowhere\n", b"x" * 5000 + b"\n"])
def test_a_list_of_wrong_lines_is_one_error(tmp_path, content):
    (tmp_path / "video_rec_path.txt").write_bytes(content)
    assert refused(tmp_path)


@pytest.mark.parametrize(
    ("array", "shape", "dtype"),
    [("latents", (5, 8, 8, 8), torch.float16), ("latents", (6, 8, 4, 8), torch.float16),
     ("latents", (6,), torch.float16), ("latents", (6, 8, 8, 8), torch.float32),
     ("tokens", (6, 3, 1), torch.float16), ("tokens", (6, 3), torch.int64)],
)  # fmt: skip
def test_caches_of_other_shapes_are_not_read(clip, tmp_path, array, shape, dtype):
    shutil.copytree(clip, tmp_path / "clip")
    dataset = open_dataset([tmp_path / "clip"], min_frames=2)
    (one,) = dataset.clips
    file = latents_file(one, SIZE, vae="vae", resize="stretch")
    if array == "tokens":
        file = tokens_file(one, image_encoder="clip")
    save_file({file.array: torch.zeros(shape, dtype=dtype)}, file.path, metadata=dict(file.header))
    with pytest.raises(BadInput, match="do not fit the clip"):
        is_cached([file])
    build_cache(into_buckets(dataset.clips, [SIZE]), Networks().encoders())  # asked for, they are replaced
    assert is_cached([file])


def test_a_picture_with_a_number_without_end_is_named(tmp_path):
    folder = write_upstream(tmp_path / "clip", 4)
    (folder / "images" / "frame_0.png").rename(folder / "images" / f"frame_{'9' * 200}.png")
    assert "200 digits" in refused(folder)
