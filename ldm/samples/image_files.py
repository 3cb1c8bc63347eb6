"""Decoding of image files; every reader of images uses these rules.

Pixels are decoded to uint8, the input of all data sets and metrics. Files with more bits are scaled by a fixed white
level, never by their own brightest pixel, so that the scale does not depend on other images or on the content:

=============================  =========================================================================
8 bits, black and white        as they are
16-bit grey (PNG, TIFF, PGM)   divided by 257, so that 65535 is white; TIFF that states 12 bits, by 4095/255
16-bit colour                  the upper 8 bits
floats (TIFF)                  0 is black and 1 is white; other ranges are refused
other 32-bit whole numbers     refused: the file does not say which value is white
palette                        its colours
transparency                   laid on white
EXIF orientation               turned upright
several images in one file     refused
DICOM                          by its window, with the pydicom package; see `ldm.samples.dicom_files`
=============================  =========================================================================
"""

from __future__ import annotations

import contextlib
import io
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from ldm.cli import is_out_of_memory
from ldm.errors import UserError, first_line
from ldm.files import require_regular_file
from ldm.samples.dicom_files import SUFFIX as DICOM
from ldm.samples.dicom_files import dicom_size, person, read_dicom

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", DICOM})
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
DEEP_GREY = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
SIXTEEN_BIT_FORMATS = frozenset({"PNG", "PPM"})  # formats whose 32-bit integer mode ("I") has the maximum 65535
BITS_PER_SAMPLE, ORIENTATION = 258, 0x0112
SIDEWAYS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap height and width
FLOAT_SLACK = 1e-3  # rounding of a resampled image in [0, 1]
SHOWN = 5
MAX_LISTED = 100
PATIENCE = 60.0  # seconds
THREADS = 8
Found = TypeVar("Found")
#: What Pillow's readers raise for damaged files; a reader that meets an impossible header raises almost anything.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image file: displayed height and width, whether it is grey, whether it exceeds 8 bits.

    ``person`` is a digest of the patient's identifier in a DICOM file, "" elsewhere.
    """

    height: int
    width: int
    is_grey: bool
    is_deep: bool = False
    person: str = ""


def read_image(path: str | Path) -> np.ndarray:
    """Return an image file as uint8: (H, W) when it is grey, else (H, W, 3).

    Raises UserError about a file that cannot be read, and MemoryError where the memory is too little for its pixels,
    both with its name.
    """
    if not _is_dicom(path):
        return _opened(path, decode)
    with _memory_for(path):
        return read_dicom(path)


def read_header(path: str | Path) -> ImageHeader:
    """Return the header of an image file without decoding its pixels. Raises UserError, naming the file."""
    return ImageHeader(*dicom_size(path), person(path)) if _is_dicom(path) else _opened(path, _header)


def decode(image: Image.Image) -> np.ndarray:
    """Return an opened image as uint8: (H, W) when it is grey, else (H, W, 3).

    Raises ValueError, without the file's name, for pixels with an unknown white level.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's MPO file is one image with previews
        raise ValueError(f"it holds {frames} images; write each into a file of its own")
    if image.mode in DEEP_GREY or image.mode in ("I", "F"):
        return _scaled_grey(image)
    image = ImageOps.exif_transpose(image)
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        return _on_white(image)
    return np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"))


def unreadable(paths: Iterable[str | Path]) -> list[str]:
    """Return one line per file that cannot be decoded, at most `MAX_LISTED`, within `PATIENCE` seconds.

    A file for whose pixels the memory is too little may be whole, and is not listed.
    """

    def problem(path: str | Path) -> str:
        try:
            read_image(path)
        except UserError as error:
            return str(error)
        except MemoryError:
            pass
        return ""

    waiting, found = iter(paths), list[str]()
    end = time.monotonic() + PATIENCE
    with ThreadPoolExecutor(THREADS) as pool:
        while len(found) < MAX_LISTED and time.monotonic() < end and (part := list(islice(waiting, 256))):
            found += filter(None, pool.map(problem, part))
    return found[:MAX_LISTED]


def all_problems(first: UserError, paths: Iterable[str | Path]) -> UserError:
    """Return one error about all unreadable files among ``paths``; ``first`` is the error of one of them."""
    lines = unreadable(paths)
    if len(lines) < 2:
        return first
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return UserError(f"{len(lines)} files cannot be read: {'; '.join(lines[:SHOWN])}{more}")


def decode_bytes(content: bytes, where: str) -> np.ndarray:
    """Return an encoded image as `read_image` does. Raises UserError and MemoryError, naming ``where``."""
    try:
        with _memory_for(where), Image.open(io.BytesIO(content)) as image:
            return decode(image)
    except _UNREADABLE as error:
        raise UserError(f"{where}: cannot be read as an image ({first_line(error)})") from None


def _opened(path: str | Path, use: Callable[[Image.Image], Found]) -> Found:
    try:
        require_regular_file(path)
        with _memory_for(path), Image.open(path) as image:
            return use(image)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such image; check the folder") from None
    except _UNREADABLE as error:
        raise UserError(
            f"{path}: cannot be read as an image ({first_line(error)}); remove it or fetch it again"
        ) from None


@contextlib.contextmanager
def _memory_for(image: str | Path) -> Iterator[None]:
    """Raise MemoryError that names the image for any exception about memory, as the decoders have several."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"reading the image {image}: {first_line(error)}") from None


def _is_dicom(path: str | Path) -> bool:
    return Path(path).suffix.lower() == DICOM


def _header(image: Image.Image) -> ImageHeader:
    width, height = image.size
    if image.getexif().get(ORIENTATION) in SIDEWAYS:
        height, width = width, height
    return ImageHeader(height, width, image.mode in GREY_MODES, image.mode in DEEP_GREY | {"I", "F"})


def _scaled_grey(image: Image.Image) -> np.ndarray:
    """Grey pixels with more than 8 bits as uint8 (H, W); see the table of this module."""
    if image.mode == "F":
        values = np.asarray(ImageOps.exif_transpose(image), np.float64)
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if not (low >= -FLOAT_SLACK and high <= 1 + FLOAT_SLACK):  # NaN fails as well
            raise ValueError(f"float pixels from {low:.4g} to {high:.4g}; expected 0 (black) to 1 (white)")
        return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    if image.mode == "I" and image.format not in SIXTEEN_BIT_FORMATS:
        raise ValueError("32-bit whole numbers, whose white is not known; save it with 8 or 16 bits")
    white = 65535
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        bits = tags.get(BITS_PER_SAMPLE, (16,))
        white = 2 ** int(bits[0] if isinstance(bits, tuple) else bits) - 1
    values = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)
    if values.size and not (values.min() >= 0 and values.max() <= white):
        raise ValueError(f"pixels from {values.min()} to {values.max()}; expected 0 to {white}")
    return np.rint(values * (255.0 / white)).astype(np.uint8)


def _on_white(image: Image.Image) -> np.ndarray:
    grey = image.mode in GREY_MODES
    layered = image.convert("RGBA")
    sheet = Image.new("RGBA", layered.size, "white")
    sheet.alpha_composite(layered)
    return np.asarray(sheet.convert("L" if grey else "RGB"))
