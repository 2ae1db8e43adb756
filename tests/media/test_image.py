"""Pictures: whatever was in the file, RGB uint8 comes out, upright; and a folder is read as people count."""

from __future__ import annotations

import os
from fractions import Fraction

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from stableanimator_cli import media
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.files import carries_mark
from stableanimator_cli.media import image
from stableanimator_cli.media.image import unused_content
from tests.media_samples import corner_names, corners, noise, number_of, numbered

ORIENTATION = 0x0112


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp", "a.jpg", "A.JPEG", "a.tiff"])
def test_formats_of_still_pictures(tmp_path, name):
    settings = {"lossless": True} if name.endswith("webp") else {}
    Image.fromarray(corners()).save(tmp_path / name, **settings)
    seen = media.read_image(tmp_path / name)
    assert seen.dtype == np.uint8
    assert seen.shape == (48, 64, 3)
    assert corner_names(seen) == "rgbk"
    clip = media.open_clip(tmp_path / name)
    [(time, frame)] = clip.frames()
    assert (time, clip.count, clip.fps, clip.size) == (None, 1, None, (64, 48))
    assert np.array_equal(frame, seen)


def test_content_decides_not_the_name(tmp_path):
    Image.fromarray(corners()).save(tmp_path / "really.png")
    path = (tmp_path / "really.png").rename(tmp_path / "picture.mp4")
    assert media.open_clip(path).count == 1
    assert corner_names(media.read_image(path)) == "rgbk"


@pytest.mark.parametrize(
    ("orientation", "seen"),
    [(1, "rgbk"), (2, "grkb"), (3, "kbgr"), (4, "bkrg"), (5, "rbgk"), (6, "brkg"), (7, "kgbr"), (8, "gkrb")],
)
def test_exif_orientation(tmp_path, orientation, seen):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "photo.jpg"
    Image.fromarray(corners()).save(path, exif=exif, quality=95, subsampling=0)
    turned = media.read_image(path)
    assert corner_names(turned) == seen
    assert media.open_clip(path).size == turned.shape[1::-1] == ((64, 48) if orientation < 5 else (48, 64))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_the_size_is_that_of_the_pixels_after_exif_orientation(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(corners((16, 8))).save(tmp_path / name, exif=exif)
    clip = media.open_clip(tmp_path / name)
    (_, picture), *_ = clip.frames()
    assert clip.size == picture.shape[1::-1] == (8, 16)


def test_sixteen_bits_become_eight(tmp_path):
    grey = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "colour.png"), np.stack([grey, grey // 2, grey // 4], axis=2))  # BGR
    assert np.array_equal(media.read_image(tmp_path / "grey.png"), np.repeat((grey >> 8)[..., None], 3, axis=2))
    colour = media.read_image(tmp_path / "colour.png").astype(int)
    expected = np.stack([grey // 4, grey // 2, grey], axis=2) / 257
    assert np.abs(colour - expected).max() <= 1


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_other_colour_modes(tmp_path, mode):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.fromarray(np.full((20, 30, 3), 255, np.uint8)).convert(mode).save(tmp_path / name)
    assert media.read_image(tmp_path / name).min() >= 250


def _red_and_blue_exchanged() -> bytes:
    """An ICC profile whose first number is the light of blue and whose last is that of red."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    table = srgb[128:].replace(b"rXYZ", b"....", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"....", b"bXYZ", 1)
    return srgb[:128] + table.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", "RGB"), ("a.jpg", "RGB"), ("a.webp", "RGB"), ("a.tiff", "RGB"), ("a.png", "RGBA"), ("a.png", "P")],
)
def test_colours_of_a_profile_become_srgb(tmp_path, name, mode):
    picture = Image.fromarray(np.full((20, 30, 3), (204, 102, 51), np.uint8)).convert(mode)
    for profile, expected in ((None, (204, 102, 51)), (_red_and_blue_exchanged(), (51, 102, 204))):
        picture.save(tmp_path / name, icc_profile=profile)
        assert np.abs(media.read_image(tmp_path / name).astype(int) - expected).max() <= 4


@pytest.mark.parametrize("mode", ["RGB", "L", "LA"])
def test_profiles_that_change_nothing_or_do_not_fit_leave_the_numbers(tmp_path, mode):
    numbers = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([numbers, numbers.T, numbers], axis=2)).convert(mode)
    picture.save(tmp_path / "plain.png")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile", *(() if mode == "RGB" else (_red_and_blue_exchanged(),))):
        picture.save(tmp_path / "a.png", icc_profile=profile)
        assert np.array_equal(media.read_image(tmp_path / "a.png"), media.read_image(tmp_path / "plain.png"))


def test_floating_point_values_are_refused(tmp_path):
    Image.fromarray(np.full((20, 30), 0.5, np.float32)).save(tmp_path / "depth.tiff")
    with pytest.raises(BadInput, match=r"depth.tiff.*floating-point values.*expected 8 or 16 bits"):
        media.read_image(tmp_path / "depth.tiff")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_black(tmp_path, mode):
    pixels = np.full((20, 30, 4), 200, np.uint8)
    pixels[:, :10, 3], pixels[:, 10:20, 3], pixels[:, 20:, 3] = 0, 128, 255
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture = picture.quantize(8)
    elif mode == "LA":
        picture = picture.convert("LA")
    picture.save(tmp_path / "t.png")
    seen = media.read_image(tmp_path / "t.png")[10].astype(int)
    assert np.abs(seen[[5, 15, 25]] - [[0], [100], [200]]).max() <= 2


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif"])
def test_animations_are_videos_with_their_own_times(tmp_path, name):
    pictures = [Image.fromarray(frame) for frame in numbered(4)]
    settings = {"lossless": True} if name.endswith("webp") else {}
    pictures[0].save(
        tmp_path / name, save_all=True, append_images=pictures[1:], duration=[100, 200, 300, 100], **settings
    )
    clip = media.open_clip(tmp_path / name)
    assert clip.count == 4
    assert [(round(time * 10), number_of(image)) for time, image in clip.frames()] == [(0, 0), (1, 1), (3, 2), (6, 3)]
    assert media.resample(clip, 10).fps == 10
    assert [number_of(image) for _, image in media.resample(clip, 10).frames()][:7] == [0, 1, 1, 2, 2, 2, 3]


def test_the_picture_before_an_animated_png_is_no_frame_of_it(tmp_path):
    pictures = [Image.fromarray(frame) for frame in numbered(4)]
    pictures[0].save(
        tmp_path / "a.png", save_all=True, append_images=pictures[1:], default_image=True, duration=[100, 200, 300]
    )
    clip = media.open_clip(tmp_path / "a.png")
    assert (clip.count, clip.fps) == (3, 5)
    assert [(round(time * 10), number_of(image)) for time, image in clip.frames()] == [(0, 1), (1, 2), (3, 3)]


def test_one_pixel(tmp_path):
    media.write_image(tmp_path / "dot.png", np.uint8([[[1, 2, 3]]]))
    assert media.open_clip(tmp_path / "dot.png").size == (1, 1)
    assert media.read_image(tmp_path / "dot.png").tolist() == [[[1, 2, 3]]]


def test_folder_in_natural_order(tmp_path):
    order = ["frame_1.png", "frame_2.jpg", "Frame_3.PNG", "frame_10.png", "frame_11.bmp"]
    for name, pixels in zip(order, numbered(5), strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    for other in (".hidden.png", "notes.txt", "poses.npz"):
        (tmp_path / other).write_bytes(b"no picture")
    (tmp_path / "folder.png.d").mkdir()
    clip = media.open_clip(tmp_path)
    assert (clip.count, clip.size, clip.fps, clip.audio) == (5, (64, 48), None, False)
    assert [(time, number_of(image)) for time, image in clip.frames()] == [(None, index) for index in range(5)]
    assert [number_of(image) for _, image in media.take(clip, -2).frames()] == [3, 4]


def test_folder_of_mixed_sizes_names_the_odd_one(tmp_path):
    for index, size in enumerate([(64, 48), (64, 48), (60, 48)]):
        media.write_image(tmp_path / f"{index}.png", corners(size))
    with pytest.raises(BadInput, match=r"2\.png, frame 2: found 60x48 pixels, expected 64x48"):
        media.open_clip(tmp_path)


@pytest.mark.parametrize("others", [[], ["readme.txt", ".shy.png"]])
def test_folder_without_pictures(tmp_path, others):
    for name in others:
        (tmp_path / name).write_text("x")
    with pytest.raises(BadInput, match=r"folder without images, expected files ending in \.png"):
        media.open_clip(tmp_path)


def test_folder_where_a_picture_is_needed(tmp_path):
    with pytest.raises(BadInput, match="found a folder, expected an image"):
        media.read_image(tmp_path)


def test_text_called_picture(tmp_path):
    (tmp_path / "face.png").write_text("not a face")
    for read in (media.read_image, media.open_clip):
        with pytest.raises(BadInput, match=r"face\.png: found data that is no image") as caught:
            read(tmp_path / "face.png")
        assert "save it as PNG" in caught.value.hint


def test_the_photograph_of_a_phone_is_called_by_its_format(tmp_path):
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(64))
    with pytest.raises(BadInput, match=r"IMG_1\.HEIC: found a HEIC image, which is not read, expected") as caught:
        media.read_image(tmp_path / "IMG_1.HEIC")
    assert "save it as PNG" in caught.value.hint


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_truncated_picture(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(noise(1, (64, 64))[0]).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadInput, match=rf"{name}: found a damaged image"):
        media.read_image(path)


def test_write_png_is_exact_and_jpeg_close(tmp_path):
    picture = noise(1, (31, 17))[0]
    media.write_image(tmp_path / "new" / "a.png", picture)
    assert np.array_equal(media.read_image(tmp_path / "new" / "a.png"), picture)
    smooth = np.broadcast_to(np.uint8([200, 40, 90]), (32, 32, 3))
    media.write_image(str(tmp_path / "b.jpg"), smooth)
    assert np.abs(media.read_image(tmp_path / "b.jpg").astype(int) - smooth).max() <= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.jpg", "new"]


def test_write_image_leaves_the_old_one_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    media.write_image(path, corners())

    def full(self, fp, **settings):
        fp.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(BadInput, match="no room left to write"):
        media.write_image(path, noise(1, (64, 48))[0])
    assert corner_names(media.read_image(path)) == "rgbk"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_write_image_refuses_other_suffixes_and_shapes(tmp_path):
    with pytest.raises(ConfigError, match=r"found 'a\.gif', expected a name ending in \.png"):
        media.write_image(tmp_path / "a.gif", corners())
    for wrong in (corners()[..., 0], corners().astype(np.float32), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="a frame is uint8"):
            media.write_image(tmp_path / "a.png", wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tiff", "a.gif"])
def test_a_picture_cut_anywhere_is_one_error_that_names_it(tmp_path, name):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(noise(1, (40, 24))[0]).save(tmp_path / name, exif=exif)
    whole = (tmp_path / name).read_bytes()
    path = tmp_path / f"cut.{name}"
    for length in range(1, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        for read in (media.read_image, image.image_size_of, image.open_image):
            try:
                read(path)
            except BadInput as error:
                assert str(path) in error.message  # noqa: PT017  whichever of them are read, no other error comes


def test_a_pipe_is_no_picture_and_is_not_waited_for(tmp_path):
    path = tmp_path / "a.png"
    os.mkfifo(path)
    with pytest.raises(BadInput, match="found a pipe"):
        media.read_image(path)
    assert image.is_image(path)
    with pytest.raises(BadInput, match="found a pipe"):
        media.open_clip(tmp_path)


def test_a_gif_repeats_keeps_its_rate_and_carries_the_mark(tmp_path):
    frames = [np.full((10, 12, 3), (200, 40 * n, 30), np.uint8) for n in range(4)]
    media.write_animation(tmp_path / "a.gif", frames, 8)
    clip = media.open_clip(tmp_path / "a.gif")
    assert clip.size == (12, 10)
    shown = [picture for _, picture in clip.frames()]
    assert all(np.abs(picture.astype(int) - frame).max() <= 8 for picture, frame in zip(shown, frames, strict=True))
    assert [time for time, _ in clip.frames()][:2] == [0, Fraction(12, 100)]
    assert carries_mark(tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as opened:
        assert opened.info["loop"] == 0


def test_a_webp_repeats_and_carries_the_mark(tmp_path):
    frames = [np.full((10, 12, 3), (200, 40 * n, 30), np.uint8) for n in range(4)]
    media.write_animation(tmp_path / "a.webp", frames, Fraction(30000, 1001))
    assert carries_mark(tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as opened:
        opened.load()
        assert (opened.n_frames, opened.info["loop"], opened.info["duration"]) == (4, 0, 33)
        opened.seek(2)
        assert np.abs(np.asarray(opened.convert("RGB")).astype(int) - frames[2]).max() <= 12


@pytest.mark.parametrize(("name", "fps", "shown"), [("a.gif", 30, 30), ("a.webp", 60, 60), ("a.gif", 120, 50)])
def test_an_animation_lasts_as_long_as_its_video(tmp_path, name, fps, shown):
    frames = [np.full((8, 8, 3), (8 * n, 255 - 8 * n, 30), np.uint8) for n in range(31)]
    media.write_animation(tmp_path / name, frames, fps)
    *_, (last, _) = media.open_clip(tmp_path / name).frames()
    assert abs(last - Fraction(30, shown)) <= Fraction(1, 100)
    assert media.AnimationWriter(tmp_path / name, (8, 8), fps).duration == pytest.approx(1000 / shown)


def test_an_animation_that_fails_or_has_another_frame_is_not_written(tmp_path):
    frame = np.zeros((8, 8, 3), np.uint8)
    with media.AnimationWriter(tmp_path / "a.gif", (8, 8), 8) as writer, pytest.raises(ValueError, match="4x8"):
        writer.write(frame[:, :4])
    with pytest.raises(KeyboardInterrupt):
        _interrupted(media.AnimationWriter(tmp_path / "a.gif", (8, 8), 8), frame)
    assert list(tmp_path.iterdir()) == []


def _interrupted(writer, frame):
    with writer:
        writer.write(frame)
        raise KeyboardInterrupt


def test_a_gif_needs_its_suffix_and_replaces_no_file_of_others(tmp_path):
    frame = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ConfigError, match="a name ending in"):
        media.write_animation(tmp_path / "a.png", [frame], 8)
    (tmp_path / "a.gif").write_bytes(b"mine")
    with pytest.raises(BadInput, match="not written by sa"):
        media.write_animation(tmp_path / "a.gif", [frame], 8)


def test_a_picture_with_too_many_pixels_says_so(tmp_path, monkeypatch):
    Image.fromarray(corners()).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadInput, match=r"large\.png: found an image of more than 0\.002 megapixels") as caught:
        media.read_image(tmp_path / "large.png")
    assert "reduce it" in caught.value.hint


def test_frames_and_transparency_that_are_not_used_are_named(tmp_path):
    solid, clear = Image.new("RGB", (8, 8), "red"), Image.new("RGBA", (8, 8), (255, 0, 0, 100))
    solid.save(tmp_path / "a.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 255)).save(tmp_path / "b.png")
    clear.save(tmp_path / "c.png")
    solid.save(tmp_path / "d.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    clear.save(tmp_path / "e.webp", save_all=True, append_images=[solid.convert("RGBA")], lossless=True)
    indexed = Image.new("P", (8, 8), 1)
    indexed.putpalette([0, 0, 0, 255, 0, 0])
    indexed.save(tmp_path / "f.png", transparency=1)
    black = "is transparent in part; the background becomes black"
    assert {path.name: unused_content(path) for path in sorted(tmp_path.iterdir())} == {
        "a.png": [],
        "b.png": [],
        "c.png": [f"c.png {black}"],
        "d.gif": ["d.gif has 2 frames; the first is used"],
        "e.webp": ["e.webp has 2 frames; the first is used", f"e.webp {black}"],
        "f.png": [f"f.png {black}"],
    }
