"""Caches: made once, gone on with, and never taken for those of something else."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stableanimator_cli import clip_folder
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import carries_mark, natural_key
from stableanimator_cli.records import Face
from stableanimator_cli.train.buckets import Bucket, into_buckets, nearest_size
from stableanimator_cli.train.dataset import open_dataset
from stableanimator_cli.train.latent_cache import Encoders, build_cache, is_cached, latents_file, tokens_file
from tests.train.clip_folders import Networks, level, write_clip, write_upstream

SIZE = (64, 64)


@pytest.fixture
def buckets(tmp_path: Path) -> tuple[Bucket, ...]:
    for name, frames in (("a", 10), ("b", 13)):
        write_clip(tmp_path / name, frames)
    return into_buckets(open_dataset([tmp_path], min_frames=2).clips, [SIZE])


def _latents(buckets: tuple[Bucket, ...], vae: str = "vae", size: tuple[int, int] = SIZE) -> list:
    return [latents_file(clip, size, vae=vae, resize="stretch") for clip in buckets[0].clips]


def test_every_frame_is_in_it(buckets: tuple[Bucket, ...]) -> None:
    networks = Networks()
    report = build_cache(buckets, networks.encoders(), batch=4)
    assert (report.written, report.reused, networks.frames) == (4, 0, 23)
    rows = _latents(buckets)[0].read([9, 0])
    assert rows.shape == (2, 6, 8, 8)
    expected = torch.tensor([level(9), level(0)]) / 127.5 - 1
    torch.testing.assert_close(rows[:, 0, 0, 0], expected, atol=0.02, rtol=0)
    torch.testing.assert_close(rows[:, 3, 0, 0], expected - 3, atol=0.02, rtol=0)
    stored = load_file(tokens_file(buckets[0].clips[1], image_encoder="clip").path)["tokens"]
    assert (stored.dtype, stored.shape) == (torch.float16, (13, 3))
    assert report.bytes == sum(file.stat().st_size for clip in buckets[0].clips for file in clip.path.glob("*.safet*"))


def test_what_is_there_is_kept_and_the_rest_made(buckets: tuple[Bucket, ...]) -> None:
    build_cache(buckets, Networks().encoders())
    files = _latents(buckets)
    files[1].path.unlink()
    before = files[0].path.stat().st_mtime_ns
    networks = Networks()
    report = build_cache(buckets, networks.encoders())
    assert (report.written, report.reused, networks.frames) == (1, 3, 13)
    assert files[0].path.stat().st_mtime_ns == before
    assert is_cached(files)


def test_parts_of_the_work_make_the_whole(buckets: tuple[Bucket, ...]) -> None:
    reports = [build_cache(buckets, Networks().encoders(), shard=(part, 3)) for part in range(3)]
    assert [report.written for report in reports] == [2, 2, 0]
    assert is_cached(_latents(buckets))


def test_none_and_some_are_told_apart(buckets: tuple[Bucket, ...]) -> None:
    assert not is_cached(_latents(buckets))
    build_cache(buckets, Networks().encoders(), shard=(0, 2))
    with pytest.raises(BadInput, match=r"b/latents-64x64.*found no cache, but 1 of 2 clips have one") as caught:
        is_cached(_latents(buckets))
    assert "--cache latents" in str(caught.value.hint)
    assert not is_cached(_latents(buckets, size=(128, 128)))


def test_the_cache_of_another_vae_is_refused_and_replaced_when_asked_for(buckets: tuple[Bucket, ...]) -> None:
    build_cache(buckets, Networks().encoders(vae="0123456789abcdef"))
    with pytest.raises(BadInput, match=r"found latents of vae 0123456789ab, expected vae fedcba987654") as caught:
        is_cached(_latents(buckets, vae="fedcba9876543210"))
    assert "--cache latents replaces it" in str(caught.value.hint)
    report = build_cache(buckets, Networks().encoders(vae="fedcba9876543210"))
    assert (report.written, report.reused) == (2, 2)
    assert is_cached(_latents(buckets, vae="fedcba9876543210"))


def test_a_file_of_others_is_not_taken_for_a_cache(buckets: tuple[Bucket, ...]) -> None:
    path = _latents(buckets)[0].path
    save_file({"moments": torch.zeros(1)}, path, {"format": "pt"})
    before = path.read_bytes()
    with pytest.raises(BadInput, match="it exists and was not written by sa"):
        build_cache(buckets, Networks().encoders())
    assert path.read_bytes() == before
    header = _latents(buckets)[0].header | {"vae": "another"}
    save_file({"moments": torch.zeros(1)}, path, header)  # of a version before the mark
    build_cache(buckets, Networks().encoders())
    assert is_cached(_latents(buckets))
    assert carries_mark(path)


def test_a_clip_that_was_made_again_has_no_cache_yet(buckets: tuple[Bucket, ...], tmp_path: Path) -> None:
    build_cache(buckets, Networks().encoders())
    record = json.loads((tmp_path / "a" / clip_folder.RECORD).read_text())
    (tmp_path / "a" / clip_folder.RECORD).write_text(json.dumps(record | {"key": "another"}))
    again = into_buckets(open_dataset([tmp_path], min_frames=2).clips, [SIZE])
    with pytest.raises(BadInput, match=r"found latents of clip key of a, expected clip another"):
        is_cached(_latents(again))


def _rewrite(file: Path, value: int | None = None) -> None:
    """Store a PNG uncompressed, so that its size does not depend on its pixels; ``value``: of the first pixel."""
    with Image.open(file) as image:
        pixels = np.array(image)
    if value is not None:
        assert (pixels[0, 0] != value).any()
        pixels[0, 0] = value
    Image.fromarray(pixels).save(file, compress_level=0)


def test_a_picture_that_was_edited_in_place_has_no_cache_yet(tmp_path: Path) -> None:
    """The file's name and size are as before."""
    folder = write_upstream(tmp_path / "rec" / "00001", 4)
    image, pose = folder / "images" / "frame_2.png", folder / "poses" / "frame_2.png"
    _rewrite(image)
    _rewrite(pose)
    before = into_buckets(open_dataset([folder], min_frames=2).clips, [SIZE])
    build_cache(before, Networks().encoders())
    assert is_cached(_latents(before))
    sizes = image.stat().st_size, pose.stat().st_size
    _rewrite(image, 201)
    edited = into_buckets(open_dataset([folder], min_frames=2).clips, [SIZE])
    with pytest.raises(BadInput, match=r"latents of clip \w{12}, expected clip \w{12}"):
        is_cached(_latents(edited))
    key = edited[0].clips[0].annotations_key
    _rewrite(pose, 201)
    assert sizes == (image.stat().st_size, pose.stat().st_size)
    assert open_dataset([folder], min_frames=2).clips[0].annotations_key != key


def test_a_cache_of_earlier_versions_stays_valid(tmp_path: Path) -> None:
    """They identified pictures by name and size."""
    folder = write_upstream(tmp_path / "rec" / "00001", 4)
    names = sorted((folder / "images").iterdir(), key=lambda file: natural_key(file.name))
    rows = "".join(f"{file.name} {file.stat().st_size}\n" for file in names)
    clip = open_dataset([folder], min_frames=2).clips[0]
    older = replace(clip, key=hashlib.sha256(rows.encode()).hexdigest())
    build_cache([Bucket(size=SIZE, clips=(older,))], Networks().encoders())
    assert older.key != clip.key
    assert is_cached(_latents(into_buckets([clip], [SIZE])))


def test_another_way_of_resizing_is_another_cache(buckets: tuple[Bucket, ...]) -> None:
    build_cache(buckets, Networks().encoders(), resize="crop")
    with pytest.raises(BadInput, match="resize crop, expected resize stretch"):
        is_cached(_latents(buckets))


def test_a_damaged_file_is_named(buckets: tuple[Bucket, ...]) -> None:
    build_cache(buckets, Networks().encoders())
    file = _latents(buckets)[0]
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-10])
    with pytest.raises(BadInput, match=r"a/latents-64x64.safetensors: found a damaged file"):
        file.check()
    assert build_cache(buckets, Networks().encoders()).written == 1
    assert file.path.read_bytes() == whole
    file.path.write_bytes(b"of somebody else")
    with pytest.raises(BadInput, match="was not written by sa, so it is not replaced"):
        build_cache(buckets, Networks().encoders())


def test_a_network_that_fails_leaves_nothing_half_written(buckets: tuple[Bucket, ...]) -> None:
    def broken(pixels: torch.Tensor) -> torch.Tensor:
        return torch.full((len(pixels), 2, 8, 8), torch.inf)

    with pytest.raises(BadInput, match=r"a, frame 0: found numbers that are not finite"):
        build_cache(buckets, Encoders(latents=broken, vae="v"))
    assert not list(buckets[0].clips[0].path.glob("*latents*"))
    assert not list(buckets[0].clips[0].path.glob(".*"))


def test_a_video_that_got_shorter_is_an_error(buckets: tuple[Bucket, ...], tmp_path: Path) -> None:
    (tmp_path / "b/source.mp4").write_bytes((tmp_path / "a/source.mp4").read_bytes())
    with pytest.raises(BadInput, match="found 10 frames in the video, expected 13"):
        build_cache(buckets, Networks().encoders())


def test_faces_are_read_for_clips_that_have_none(tmp_path: Path) -> None:
    write_upstream(tmp_path / "rec/00001", 6)

    class Reader:
        channel_order = "rgb"

        def faces(self, image: np.ndarray) -> tuple[Face, ...]:
            """Two faces, the larger one first, of a vector that is the grey of the picture; none in frame 2."""
            grey = float(image.mean())
            box = np.array([8, 8, 24, 24], np.float32)
            found = [
                Face(box=part, landmarks=np.zeros((5, 2), np.float32), score=1, embedding=np.full(512, v, np.float32))
                for part, v in ((box, grey), (box / 2, -1.0))
            ]
            return () if round(grey) == level(2) else tuple(found)

    bucket = into_buckets(open_dataset([tmp_path], min_frames=2).clips, [SIZE])
    assert build_cache(bucket, Encoders(faces=Reader())).written == 1  # type: ignore[arg-type]
    table = clip_folder.load_faces(tmp_path / "rec/00001/faces.npz")
    assert table.channel_order == "rgb"
    assert table.frame[table.person == 0].tolist() == [0, 1, 3, 4, 5]
    assert table.embeddings[table.person == 0][:, 0].tolist() == [level(n) for n in (0, 1, 3, 4, 5)]
    found = open_dataset([tmp_path], min_frames=2)
    assert found.faceless == ()
    assert build_cache(bucket, Encoders(faces=Reader())).written == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1920, 1080), (512, 512)), ((1080, 1920), (576, 1024)), ((720, 900), (512, 512)), ((600, 900), (576, 1024))],
)
def test_a_clip_goes_where_its_aspect_is_nearest(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert nearest_size(size, [(512, 512), (576, 1024)]) == expected


def test_clips_that_may_not_be_written_have_a_hint_that_works(
    buckets: tuple[Bucket, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their caches and faces have no other place: another -o does not help."""

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    class Reader:
        channel_order = "bgr"

        def faces(self, image: np.ndarray) -> list[Face]:
            return []

    clip = write_upstream(tmp_path / "rec" / "00001", 4)
    monkeypatch.setattr("os.replace", read_only)
    with pytest.raises(BadInput, match=r"latents-64x64\.safetensors: found a folder that may not be written") as caught:
        build_cache(buckets, Networks().encoders())
    assert caught.value.hint == "free some space and make the folder of the clip writable, or use --cache off"
    upstream = into_buckets(open_dataset([clip], min_frames=2).clips, [SIZE])
    with pytest.raises(BadInput, match=r"faces\.npz: found a folder that may not be written") as caught:
        build_cache(upstream, Encoders(faces=Reader()))  # type: ignore[arg-type]
    assert caught.value.hint == "free some space and make the folder of the clip writable, or copy the clips"
