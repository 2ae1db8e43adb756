"""Images and folders of images: files to uint8 RGB and back (Pillow).

Every file is converted: EXIF orientation is applied, colours of an ICC profile become sRGB, of 16 bits the upper 8
remain, grey is repeated over the channels, transparency is composited on black.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from stableanimator_cli.errors import BadInput, ConfigError, command
from stableanimator_cli.files import MARK, atomic_write, natural_key, require_file, translate_os_errors
from stableanimator_cli.records import Clip

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
Image.init()  # registers the formats beyond the five that Pillow loads by default; some builds lack AVIF
_FORMATS = tuple(name for name in ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF") if name in Image.OPEN)
_WRITTEN: dict[str, Literal["PNG", "JPEG"]] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_IMAGE = "an image (PNG, JPEG, WebP or BMP)"
_CONVERT = "open it in a picture editor and save it as PNG"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112


def read_image(path: Path | str) -> np.ndarray:
    """The image in ``path`` as RGB uint8[h,w,3]; of an animation, its first frame.

    EXIF orientation is applied, 16 bits become 8, transparency is composited on black. Raises ``BadInput`` for a
    damaged or truncated image and for other files.
    """
    path = Path(path)
    with _opened(path) as image:
        return _pixels(path, image)


def pixels_of(image: Image.Image) -> np.ndarray:
    """A Pillow image as ``read_image`` reads it from a file: RGB uint8[h,w,3]."""
    upright = _to_srgb(ImageOps.exif_transpose(image))
    if upright.mode.startswith("I"):
        deep = np.asarray(upright)
        grey = (np.clip(deep, 0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if upright.has_transparency_data:
        return on_black(np.asarray(upright.convert("RGBA")))
    return np.array(upright.convert("RGB"))


def _to_srgb(image: Image.Image) -> Image.Image:
    """The image with the colours of its ICC profile in sRGB; unchanged without one, or if the profile is unusable.

    Phones save Display P3 and cameras Adobe RGB, whose numbers read as sRGB are paler skin and clothes.
    """
    data = image.info.get("icc_profile")
    if not data:
        return image
    from PIL import ImageCms  # heavy, and few images need it

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if "sRGB" in ImageCms.getProfileDescription(profile):  # a conversion would round
            return image
        modes = {"RGB": "RGBA" if image.has_transparency_data else "RGB", "GRAY": "L", "CMYK": "CMYK"}
        mode = modes[data[16:20].decode("latin-1").strip()]  # of the ICC header: the colour space of the numbers
        if mode != image.mode and not (mode.startswith("RGB") and image.mode in ("P", "RGB")):
            return image
        shown = ImageCms.profileToProfile(
            image.convert(mode), profile, ImageCms.createProfile("sRGB"), outputMode=mode if mode == "RGBA" else "RGB"
        )
    except (ImageCms.PyCMSError, OSError, KeyError):
        return image
    return image if shown is None else shown


def unused_content(path: Path) -> list[str]:
    """Content of an image that ``read_image`` drops, one message each: frames behind the first, and transparency."""
    messages = []
    with _opened(path) as image, _decoding(path):
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # phones add previews to JPEG
        if frames > 1:
            messages.append(f"{path.name} has {frames} frames; the first is used")
        if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            messages.append(f"{path.name} is transparent in part; the background becomes black")
    return messages


def write_image(path: Path | str, image: np.ndarray) -> None:
    """Write RGB uint8[h,w,3] as PNG (exact) or JPEG (quality 95, full colour resolution), by the suffix of ``path``.

    Writes atomically. Raises ``ConfigError`` for another suffix, ``BadInput`` if the write fails.
    """
    path = Path(path)
    check_frame(image)
    kind = _WRITTEN.get(path.suffix.lower())
    if kind is None:
        raise ConfigError("image to write", path.name, "a name ending in .png, .jpg or .jpeg")
    settings = {"compress_level": 4} if kind == "PNG" else {"quality": 95, "subsampling": 0}
    save_image(path, Image.fromarray(np.ascontiguousarray(image)), kind, **settings)


def save_image(path: Path, image: Image.Image, kind: Literal["PNG", "JPEG"], **settings: Any) -> None:
    """Write a Pillow image with the mark of our files, atomically.

    ``settings`` are those of Pillow's writer. Raises ``BadInput`` if the write fails or would replace a foreign file.
    """
    if kind == "PNG":
        settings["pnginfo"] = png_mark()
    else:
        settings["comment"] = MARK
    with atomic_write(path, marked=True) as part, translate_os_errors(path):
        image.save(part, format=kind, **settings)


def png_mark() -> PngInfo:
    """The mark of our files for Pillow's PNG writer."""
    info = PngInfo()
    info.add_text("Software", MARK)
    return info


def check_frame(frame: np.ndarray) -> None:
    """Raise ``ValueError`` unless ``frame`` is RGB uint8[h,w,3]."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(f"a frame is uint8[h,w,3], got {frame.dtype}{list(frame.shape)}")


def is_image(path: Path) -> bool:
    """Whether ``open_image`` reads this file, by its content. The video reader reads animated GIFs."""
    if path.is_file():  # opening a pipe would block
        with suppress(Exception), _quiet(), Image.open(path, formats=_FORMATS) as image:
            return not (image.format == "GIF" and getattr(image, "is_animated", False))
    return path.suffix.lower() in SUFFIXES


def open_image(path: Path) -> Clip:
    """An image as a clip of one frame without a clock; an animated WebP, PNG or AVIF as a clip with its own times."""
    with _opened(path) as image, _decoding(path):
        size = _turned_size(image)
        # Several images in one file are an animation only in these formats: phones add previews to JPEG (MPO).
        stop = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP", "AVIF") else 1
        # A PNG may begin with an image for viewers that know no animations, which is none of its frames.
        numbers = range(int(getattr(image, "default_image", False)), stop)
    count = len(numbers)
    if count == 1:
        return Clip(
            path=path, size=size, fps=None, count=1, audio=False, frames=lambda: iter([(None, read_image(path))])
        )
    spans = dict(zip(numbers, _spans(path, numbers), strict=True))
    fps = count / sum(spans.values(), Fraction(0))
    return Clip(path=path, size=size, fps=fps, count=count, audio=False, frames=lambda: _animation(path, spans))


def open_folder(path: Path) -> Clip:
    """The images of a folder in natural order, as a clip without a clock. Hidden and other files are ignored.

    Raises ``BadInput`` for a folder without images and, before anything is decoded, for images of different sizes.
    """
    images = sorted(
        (file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")),
        key=lambda file: natural_key(file.name),
    )
    if not images:
        raise BadInput(
            path,
            "a folder without images",
            f"files ending in {', '.join(SUFFIXES)}",
            hint=f"look with: {command('ls', path)}",
        )
    sizes = [image_size_of(file) for file in images]
    for index, (file, size) in enumerate(zip(images, sizes, strict=True)):
        if size != sizes[0]:
            raise _other_size(file, size, sizes[0], index)

    def frames() -> Iterator[tuple[Fraction | None, np.ndarray]]:
        for index, file in enumerate(images):
            pixels = read_image(file)
            if pixels.shape[1::-1] != sizes[0]:
                raise _other_size(file, (pixels.shape[1], pixels.shape[0]), sizes[0], index)
            yield None, pixels

    return Clip(path=path, size=sizes[0], fps=None, count=len(images), audio=False, frames=frames)


def image_size_of(path: Path) -> tuple[int, int]:
    """(width, height) after EXIF orientation, from the header alone."""
    with _opened(path) as image, _decoding(path):
        return _turned_size(image)


def on_black(rgba: np.ndarray) -> np.ndarray:
    """Composite RGBA uint8[h,w,4] (alpha not premultiplied) on black: RGB uint8[h,w,3], rounded."""
    product = rgba[..., :3].astype(np.uint16) * rgba[..., 3:]
    return ((product + 127) // 255).astype(np.uint8)


def _opened(path: Path) -> Image.Image:
    require_file(path, _IMAGE)
    try:
        with _quiet():
            return Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError as error:
        found = "a HEIC image, which is not read" if _is_heic(path) else "data that is no image"
        raise BadInput(path, found, _IMAGE, hint=_CONVERT) from error
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        found, expected = f"an image of more than {limit:.4g} megapixels", "a smaller image"
        raise BadInput(
            path, found, expected, hint="reduce it in a picture editor; 4096 pixels per side are enough"
        ) from None
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise BadInput(path, f"an image that cannot be opened ({error})", _IMAGE, hint=_CONVERT) from error


def _is_heic(path: Path) -> bool:
    """Whether a file is an image as phones write them: ISO media whose brand is one of HEIF."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Pillow's warnings, as of large images. Images above twice Pillow's limit and damage remain errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _decoding(path: Path, kind: str = "image", frame: int | None = None) -> Iterator[None]:
    """Turn errors while Pillow reads from an open image into ``BadInput``.

    Its decoders raise many kinds for damaged files, and read parts of a file (EXIF after the pixels) on access.
    """
    try:
        with _quiet():
            yield
    except Exception as error:
        found = f"a damaged {kind} ({error or type(error).__name__})"
        raise BadInput(path, found, "a complete image", frame=frame, hint="copy or download it again") from error


def _pixels(path: Path, image: Image.Image, frame: int | None = None) -> np.ndarray:
    if image.mode == "F":
        raise BadInput(
            path, "an image of floating-point values", "8 or 16 bits per channel", frame=frame, hint=_CONVERT
        )
    with _decoding(path, frame=frame):
        return pixels_of(image)


def _turned_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if image.format == "TIFF":  # of which Pillow gives the size after orientation
        return width, height
    return (height, width) if image.getexif().get(_ORIENTATION, 1) in _TURNED else (width, height)


def _spans(path: Path, numbers: Iterable[int]) -> Iterator[Fraction]:
    """Duration of each frame of an animation in seconds; 0.1 if it has none, as in browsers."""
    with _opened(path) as image:
        for number in numbers:
            _seek(path, image, number)
            milliseconds = Fraction(image.info.get("duration") or 100)
            yield milliseconds.limit_denominator(1000) / 1000


def _animation(path: Path, spans: Mapping[int, Fraction]) -> Iterator[tuple[Fraction | None, np.ndarray]]:
    time = Fraction(0)
    with _opened(path) as image:
        for number, span in spans.items():
            _seek(path, image, number)
            yield time, _pixels(path, image, number)
            time += span


def _seek(path: Path, image: Image.Image, index: int) -> None:
    with _decoding(path, "animation", index):
        image.seek(index)
        image.load()


def _other_size(file: Path, size: tuple[int, int], first: tuple[int, int], index: int) -> BadInput:
    return BadInput(
        file,
        f"{size[0]}x{size[1]} pixels",
        f"{first[0]}x{first[1]} as the first image of the folder",
        frame=index,
        hint="make all images the same size, or move this one out of the folder",
    )
