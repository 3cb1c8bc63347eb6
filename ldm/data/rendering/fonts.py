"""Signed distance fields of font glyphs: the filled glyph and the pen stroke along its skeleton."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from ldm.data.base import data_root
from ldm.errors import UserError
from ldm.files import ZIP_DAMAGE

log = logging.getLogger(__name__)

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FIELD = 64  # side of a distance field, in samples
RASTER = 128  # side of the bitmap a field is computed from
MARGIN = 16  # empty border of the bitmap, so that distances around the glyph are defined
FIELDS_VERSION = 3
UNUSABLE = ("cmsy", "cmex", "cmmi", "STIXSiz", "Display", "STIXNonUni", "LastResort")  # symbol fonts and the like
SUFFIXES = (".ttf", ".otf", ".ttc", ".pfb", ".woff")


def builtin_fonts() -> list[Path]:
    """Return the font files of the installed matplotlib that hold ordinary digits and letters, sorted by name."""
    package = importlib.util.find_spec("matplotlib")
    places = list(package.submodule_search_locations or []) if package else []
    folders = [Path(place) / "mpl-data" / "fonts" / "ttf" for place in places]
    found = sorted((p for d in folders if d.is_dir() for p in d.glob("*.ttf")), key=lambda path: path.name)
    found = [path for path in found if not any(word in path.name for word in UNUSABLE)]
    if not found:
        raise UserError(
            "glyphs: no built-in fonts; type: pip install matplotlib (or give fonts=[folder of .ttf files])"
        )
    return found


def font_files(fonts: str | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return font files of ``"builtin"``, a file, a folder of fonts, or a list of these; sorted, without duplicates.

    A relative path that does not exist here is looked up below the data root.

    Raises:
        UserError: when a path is missing or a folder has no font file.
    """
    files: dict[Path, None] = {}
    for entry in [fonts] if isinstance(fonts, str | os.PathLike) else list(fonts):
        if str(entry) == "builtin":
            found = builtin_fonts()
        else:
            path = Path(os.path.expandvars(entry)).expanduser()
            path = path if path.is_absolute() or path.exists() else data_root() / path
            found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not found:
                raise UserError(f"glyphs: no font file (.ttf, .otf) at {path}; run scripts/fetch_fonts.sh {path}")
        files.update(dict.fromkeys(found))
    if not files:
        raise UserError('glyphs: fonts is empty; give fonts="builtin" or a folder of .ttf files')
    return list(files)


def file_sha(path: Path) -> str:
    """Return the SHA-256 of a font file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bitmap(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    """Return a character as bool (RASTER, RASTER), scaled to fill it up to the margin; None when it has no ink."""
    left, top, right, bottom = map(int, font.getbbox(character))  # of the basic layout, whose numbers are whole
    if right - left < 2 or bottom - top < 2:
        return None
    canvas = Image.new("L", (right - left + 2, bottom - top + 2), 0)
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), character, fill=255, font=font)
    box = canvas.getbbox()
    if box is None:
        return None
    canvas = canvas.crop(box)
    scale = (RASTER - 2 * MARGIN) / max(canvas.size)
    width, height = (max(1, round(side * scale)) for side in canvas.size)
    small = np.asarray(canvas.resize((width, height), Image.Resampling.BICUBIC)) > 127
    out = np.zeros((RASTER, RASTER), dtype=bool)
    y, x = (RASTER - small.shape[0]) // 2, (RASTER - small.shape[1]) // 2
    out[y : y + small.shape[0], x : x + small.shape[1]] = small
    return out if out.any() else None


def font_bitmaps(path: Path) -> dict[str, np.ndarray]:
    """Return the bitmaps of the characters in a font, without empty or missing glyphs; {} if more than 3 coincide."""
    font = ImageFont.truetype(str(path), 2 * RASTER, layout_engine=ImageFont.Layout.BASIC)
    missing = [bitmap(font, character) for character in "\ufffe\U0010fffe"]
    drawn: dict[str, np.ndarray] = {}
    for character in CHARACTERS:
        image = bitmap(font, character)
        if image is not None and not any(m is not None and np.array_equal(m, image) for m in missing):
            drawn[character] = image
    distinct = {image.tobytes() for image in drawn.values()}
    return drawn if len(distinct) >= len(drawn) - 3 else {}  # pairs such as 0/O and 1/I may be identical


def _removable() -> np.ndarray:
    """Return the two tables (2, 256) of Zhang and Suen (1984): whether a pixel with these 8 neighbours is deleted."""
    tables = np.zeros((2, 256), dtype=bool)
    for code in range(256):
        p = [code >> bit & 1 for bit in range(8)]  # N, NE, E, SE, S, SW, W, NW
        rises = sum(p[k] == 0 and p[(k + 1) % 8] == 1 for k in range(8))
        if not (2 <= sum(p) <= 6 and rises == 1):
            continue
        n, e, s, w = p[0], p[2], p[4], p[6]
        tables[0, code] = n * e * s == 0 and e * s * w == 0
        tables[1, code] = n * e * w == 0 and n * s * w == 0
    return tables


def skeleton(image: np.ndarray) -> np.ndarray:
    """Return the one-pixel-wide skeleton of a bool image (H, W) by the parallel thinning of Zhang and Suen (1984).

    Every connected component keeps at least one pixel; the original algorithm does not guarantee this.
    """
    tables = _removable()
    padded = np.pad(image, 1)
    width = padded.shape[1]
    flat = padded.ravel().astype(np.uint8)
    steps = np.array([-width, -width + 1, 1, width + 1, width, width - 1, -1, -width - 1])
    weights = (1 << np.arange(8)).astype(np.uint8)
    active = np.flatnonzero(flat)
    while True:
        before = len(active)
        for table in tables:
            codes = flat[active[:, None] + steps] @ weights
            gone = table[codes]
            flat[active[gone]] = 0
            active = active[~gone]
        if len(active) == before:
            line = flat.reshape(padded.shape)[1:-1, 1:-1].astype(bool)
            return line | vanished(image, line)


def vanished(image: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Return the innermost pixel of each component that thinning has deleted completely (such as a dot)."""
    parts, count = ndimage.label(image, np.ones((3, 3)))
    lost = np.setdiff1d(np.arange(1, count + 1), parts[line])
    out = np.zeros_like(line)
    if len(lost):
        depth = ndimage.distance_transform_edt(image)
        for place in ndimage.maximum_position(depth, parts, lost):
            out[place] = True
    return out


def distance_fields(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (filled, stroke) fields, float32 (FIELD, FIELD), in units of the half image side.

    ``filled`` is the signed distance to the outline, negative inside; ``stroke`` the distance to the skeleton.
    """
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 1.5) > 0.5  # rough outlines cause spurious branches
    line = skeleton(smooth if smooth.any() else image)
    filled = ndimage.distance_transform_edt(~image) - ndimage.distance_transform_edt(image)
    stroke = ndimage.distance_transform_edt(~line)
    half = RASTER // FIELD
    scale = np.float32(2.0 / RASTER)
    shrink = [f.reshape(FIELD, half, FIELD, half).mean((1, 3)).astype(np.float32) * scale for f in (filled, stroke)]
    return shrink[0], shrink[1]


def font_fields(path: Path, cache: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (fields float16 (36, 2, FIELD, FIELD), present bool (36,)) of a font, kept on disk under ``cache``.

    None for a file that is not a font or contains none of the characters.
    """
    kept = cache / f"font-{file_sha(path)[:24]}-{FIELDS_VERSION}.npz"
    try:
        with np.load(kept) as stored:
            fields, present = stored["fields"], stored["present"]
        if fields.shape == (len(CHARACTERS), 2, FIELD, FIELD) and present.shape == (len(CHARACTERS),):
            return (fields, present) if present.any() else None
    except (*ZIP_DAMAGE, OSError):
        pass
    fields = np.ones((len(CHARACTERS), 2, FIELD, FIELD), dtype=np.float16)
    present = np.zeros(len(CHARACTERS), dtype=bool)
    try:
        drawn = font_bitmaps(path)
    except (OSError, ValueError) as error:
        log.warning("font %s is left out: %s", path.name, error)
        drawn = {}
    for number, character in enumerate(CHARACTERS):
        if character in drawn:
            fields[number] = distance_fields(drawn[character])
            present[number] = True
    cache.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f"{kept.stem}.{os.getpid()}.tmp.npz")
    np.savez(temporary, fields=fields, present=present)
    temporary.replace(kept)
    return (fields, present) if present.any() else None
