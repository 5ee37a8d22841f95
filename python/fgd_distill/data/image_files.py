"""An image file as RGB of 8 bits: the one place where files are decoded, in training, prediction and pictures alike."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

log = logging.getLogger("fgd_distill.data")
MAX_PIXELS = 100_000_000
PROGRAMS = ("EPS", "WMF", "EMF")  # Pillow hands EPS to Ghostscript, a program on a program of someone else's
ORIENTATION, BITS, PHOTOMETRIC = 0x0112, 258, 262  # tags of EXIF and TIFF
WHITE_IS_ZERO = 0  # of PHOTOMETRIC
UNTURN = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_270}  # fmt: skip
_told: set[str] = set()


class UnreadableImageError(Exception):
    """An image file that cannot be decoded, or whose size is not what the annotations say."""


def read_image(
    path: str | Path, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Image.Image:
    """Decodes an image file.

    EXIF orientation, as cameras write it: with ``size``, the image is turned where that makes its size the stated one;
    without, or where both ways have that size, it is turned as every viewer turns it.

    12- and 16-bit greyscale is scaled by its type's range; an alpha channel is left out. Of several frames the first is
    read.

    Args:
        path: the file, of any format of pixels that Pillow opens.
        size: (width, height) in pixels that the annotations state; None where they state none.
        max_pixels: width x height above which a file is refused before it is decoded.
        name: what messages call it; None for its path.

    Returns:
        the image in mode RGB.

    Raises:
        UnreadableImageError: it cannot be decoded, is too large, has another size, a pixel type without a
            range, or is no file of pixels.
    """
    name = str(path) if name is None else name
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise UnreadableImageError(f"{name}: expected a file, got a folder, a pipe or a device")
        with _opened(path, max_pixels) as image:
            if image.format in PROGRAMS:
                raise UnreadableImageError(f"{name}: expected pixels, got {image.format}, which a program has to draw")
            if image.width * image.height > max_pixels:
                raise UnreadableImageError(
                    f"{name}: expected at most {max_pixels} pixels (data.max_pixels), "
                    f"got {image.width} x {image.height}"
                )
            scale = _full_scale(image)
            return _rgb(_oriented(image, name, size), name, *scale)
    except UnreadableImageError:
        raise
    except Exception as error:  # PIL raises a dozen types for files that are cut or damaged
        raise UnreadableImageError(f"{name}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _opened(path: str | Path, max_pixels: int) -> Iterator[Image.Image]:
    """The file, opened without Pillow's own limit where ``max_pixels`` allows more than that."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = None if limit is None or max_pixels > limit else limit
        with Image.open(path) as image:
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _full_scale(image: Image.Image) -> tuple[int, bool]:
    """Of greyscale with more than 8 bits the largest value that its type has, else 0, and whether 0 is white."""
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))):
        return 0, False
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    return 2 ** tags.get(BITS, (16,))[0] - 1, tags.get(PHOTOMETRIC) == WHITE_IS_ZERO


def _oriented(image: Image.Image, name: str, size: tuple[int, int] | None) -> Image.Image:
    orientation = image.getexif().get(ORIENTATION, 1)
    if image.format == "TIFF":  # Pillow turns those by itself, and has so told the turned size
        image.load()
        turned_back = size not in (None, image.size) and size == image.size[::-1] and orientation in UNTURN
        image, orientation = image.transpose(UNTURN[orientation]) if turned_back else image, 1
    turned_size = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
    if size is not None and size not in (image.size, turned_size):
        raise UnreadableImageError(
            f"{name}: expected {size[0]} x {size[1]} pixels, as the annotations say, got {image.width} x {image.height}"
            "; the boxes belong to another image or to a resized one"
        )
    if orientation not in range(2, 9) or (size is not None and size != turned_size):
        return image
    if size is not None and turned_size == image.size and "ambiguous" not in _told:
        _told.add("ambiguous")
        log.warning(
            "%s: EXIF orientation %d and a size that is the same either way; this image, and others like it, are "
            "turned as viewers turn them, and boxes are taken to count in what a viewer shows",
            name,
            orientation,
        )
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image, name: str, full_scale: int, white_is_zero: bool) -> Image.Image:
    mode = image.mode
    if full_scale:  # by the type's range: a file does not say that a camera filled 12 of its 16 bits
        values = np.asarray(image).astype(np.uint32)
        if white_is_zero:
            values = full_scale - values
        return Image.fromarray(((values * 255 + full_scale // 2) // full_scale).astype(np.uint8), "L").convert("RGB")
    if mode in ("I", "F"):
        raise UnreadableImageError(
            f"{name}: expected 8 or 16 bits a channel, got Pillow's mode {mode}, 32-bit numbers without a range of "
            "brightness; save it as 8 or 16 bits"
        )
    if mode == "LAB":
        profiles = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
        transform = ImageCms.buildTransform(*profiles, "LAB", "RGB")
        return transform.apply(image)
    if mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    return image.convert("RGB")
