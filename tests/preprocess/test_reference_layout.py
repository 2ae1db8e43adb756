"""The reference implementation's layout: names, pixels, masks, lists."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from stableanimator_cli import clip_folder
from stableanimator_cli.motion.skeleton import draw_frame
from stableanimator_cli.preprocess.reference_layout import folder_name
from tests.preprocess import drawn


def test_folders_pictures_masks_and_lists(preprocess, tmp_path):
    walks = {"a": drawn.walk(5, missing=(0,)), "b": drawn.walk(4)}
    drawn.write_video(tmp_path / "v" / "a.mp4", walks["a"])
    drawn.write_video(tmp_path / "v" / "b.mp4", walks["b"], size=(96, 170))
    (tmp_path / "v" / "broken.mp4").write_bytes(b"no" * 500)
    out = tmp_path / "set"
    assert preprocess(tmp_path / "v", output=out, layout="upstream").exit_code == 7
    assert (out / "video_rec_path.txt").read_text() == f"{out.resolve() / 'rec' / '00001'}\n"
    assert (out / "video_vec_path.txt").read_text() == f"{out.resolve() / 'vec' / '00002'}\n"
    folder = out / "rec" / "00001"
    for name in ("images", "poses", "faces"):
        assert sorted(file.name for file in (folder / name).iterdir()) == [f"frame_{k}.png" for k in range(5)]
    motion = clip_folder.open_folder(folder).motion()
    for index in range(5):
        with Image.open(folder / "images" / f"frame_{index}.png") as image:
            assert np.abs(np.asarray(image).astype(int) - drawn.frame(walks["a"][index])).mean() < 4  # H.264
        with Image.open(folder / "poses" / f"frame_{index}.png") as pose:
            np.testing.assert_array_equal(np.asarray(pose), draw_frame(motion, index))
        with Image.open(folder / "faces" / f"frame_{index}.png") as mask:
            assert mask.mode == "L"
            lit = np.asarray(mask) == 255
            box = walks["a"][index]
            if box is None:
                assert lit.all()  # the original's convention where no face was found
            else:
                assert lit.sum() == pytest.approx((box[2] - box[0]) * (box[3] - box[1]), rel=0.1)
    again = preprocess(tmp_path / "v", output=out, layout="upstream")
    assert (again.made, again.cached) == (0, 2)


def test_a_video_of_another_shape_moves_and_its_old_folder_goes(preprocess, tmp_path):
    video, out = tmp_path / "v" / "a.mp4", tmp_path / "set"
    drawn.write_video(video, drawn.walk(3))
    preprocess(tmp_path / "v", output=out, layout="upstream")
    drawn.write_video(video, drawn.walk(3), size=(96, 170))
    preprocess(tmp_path / "v", output=out, layout="upstream")
    assert not (out / "rec" / "00001").exists()
    line = json.loads((out / "index.jsonl").read_text())
    assert line["clip"] == "vec/00001"


@pytest.mark.parametrize(
    ("size", "kind"), [((512, 512), "rec"), ((576, 1024), "vec"), ((1024, 576), "rec"), ((400, 500), "rec")]
)
def test_square_is_rec_and_tall_is_vec(size, kind):
    assert folder_name(7, size) == f"{kind}/00007"
