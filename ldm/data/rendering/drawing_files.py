"""Public drawings (emoji, clip art and icons) from files, rendered once as small images with transparency."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ldm.data.base import cache_home, content_digests, data_root, digest
from ldm.errors import UserError, nearest
from ldm.files import ZIP_DAMAGE

log = logging.getLogger(__name__)

SIDE = 64  # pixels of a stored drawing
VERSION = 1
RENDER = 2 * SIDE
FOLDER = "drawings"
HOW_TO_FETCH = "type python scripts/fetch_benchmark_data.py drawings"
TONES = ("-skin-tone", "-dark", "-light", "-medium", "-tone")  # variants of a drawing that differ only in colour


@dataclass(frozen=True)
class Shelf:
    """Drawings of one drawing set.

    Attributes:
        name: the set's name.
        images: uint8 (N, SIDE, SIDE, 2), luminance and opacity, or (N, SIDE, SIDE, 4), red, green, blue and opacity;
            the ink touches two opposite borders.
        names: name of each drawing, such as ``people/clothing/t-shirt_01`` or ``high-heeled-shoe``.
    """

    name: str
    images: np.ndarray
    names: tuple[str, ...]


def shelf_names(root: str | os.PathLike[str] | None = None) -> list[str]:
    """Return the names of the drawing sets below the data root: "emoji", "openclipart" and the icon sets."""
    base = data_root(root) / FOLDER
    plain = [name for name in ("emoji", "openclipart") if (base / name).is_dir()]
    return plain + sorted(path.parent.name for path in (base / "icons").glob("*/icons.json"))


def load_shelf(
    name: str,
    root: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    only: str | None = None,
    colour: bool = False,
) -> Shelf:
    """Return the drawings of one set, rendered once and kept in ``cache`` (default: the user's cache folder).

    Args:
        name: one of `shelf_names`.
        root: the data root.
        only: a regular expression; drawings whose names do not match it are left out.
        colour: keep the colours instead of the luminance.

    Raises:
        UserError: for a missing set, or for vector drawings without the resvg-py package.
    """
    known = shelf_names(root)
    if name not in known:
        place = data_root(root) / FOLDER
        raise UserError(f"drawings: no set {name!r} in {place}{nearest(name, known)}; {HOW_TO_FETCH}")
    folder = folder_of(name, root)
    key = digest(VERSION, SIDE, name, only, shelf_digest(name, root), *(["colour"] if colour else []))
    cache = Path(cache) if cache is not None else cache_home() / "ldm" / "drawings"
    kept = cache / f"{name}-{key}.npz"
    try:
        with np.load(kept) as stored:
            return Shelf(name, stored["images"], tuple(stored["names"].tolist()))
    except (*ZIP_DAMAGE, OSError):
        pass
    shelf = _rendered(name, folder, re.compile(only or ""), colour)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f"{kept.stem}.{os.getpid()}.tmp.npz")
    np.savez_compressed(temporary, images=shelf.images, names=np.array(shelf.names))
    temporary.replace(kept)
    return shelf


def folder_of(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of one set of drawings."""
    return data_root(root) / FOLDER / (name if name in ("emoji", "openclipart") else f"icons/{name}")


def shelf_digest(name: str, root: str | os.PathLike[str] | None = None) -> str:
    """Return a digest of the names and contents of the files of one drawing set."""
    folder = folder_of(name, root)
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".svg", ".png") and path.is_file())
    return digest([path.relative_to(folder).as_posix() for path in paths], content_digests(paths))


def _rendered(name: str, folder: Path, only: re.Pattern[str], colour: bool) -> Shelf:
    """Return a set's drawings from its files, without empty or unreadable ones.

    The shelf is empty when no name matches ``only``.
    """
    readers = {"emoji": _emoji, "openclipart": _clip_art}
    images, names = [], []
    for title, image in tqdm(
        readers.get(name, _icons)(folder, only), desc=f"drawing {name}", leave=False, disable=None
    ):
        drawing = normalised(image, colour)
        if drawing is not None:
            images.append(drawing)
            names.append(title)
    if not images and only.pattern:
        return Shelf(name, np.zeros((0, SIDE, SIDE, 4 if colour else 2), dtype=np.uint8), ())
    if not images:
        raise UserError(f"drawings: nothing could be read in {folder}; {HOW_TO_FETCH}")
    return Shelf(name, np.stack(images), tuple(names))


def _emoji(folder: Path, only: re.Pattern[str]) -> Iterator[tuple[str, Image.Image]]:
    for entry in json.loads((folder / "emoji.json").read_text(encoding="utf-8")):
        path = folder / "64" / entry["image"]
        title = f"{entry['subcategory']}/{entry['short_name']}"
        if only.search(title) and path.is_file():
            with Image.open(path) as image:
                yield title, image.convert("RGBA")


def _clip_art(folder: Path, only: re.Pattern[str]) -> Iterator[tuple[str, Image.Image]]:
    for path in sorted(folder.rglob("*.svg")):
        title = path.relative_to(folder).with_suffix("").as_posix()
        if only.search(title) and "duplicates" not in path.parts:
            image = draw_svg(path.read_text(encoding="utf-8", errors="replace"))
            if image is not None:
                yield title, image


def _icons(folder: Path, only: re.Pattern[str]) -> Iterator[tuple[str, Image.Image]]:
    content = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    for title, icon in content["icons"].items():
        if not only.search(title) or any(tone in title for tone in TONES) or icon.get("hidden"):
            continue
        left, top = icon.get("left", 0), icon.get("top", 0)
        width = icon.get("width", content.get("width", 16))
        height = icon.get("height", content.get("height", 16))
        box = f"{left} {top} {width} {height}"
        image = draw_svg(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>')
        if image is not None:
            yield title, image


def draw_svg(text: str) -> Image.Image | None:
    """Return a vector drawing as RGBA, about RENDER pixels wide; None when it cannot be drawn.

    Raises:
        UserError: when the renderer is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise UserError("drawings: vector drawings need a renderer; type pip install resvg-py") from None
    try:
        made = resvg_py.svg_to_bytes(svg_string=text, width=RENDER, skip_system_fonts=True)
        image = Image.open(io.BytesIO(bytes(made)))
        return image.convert("RGBA") if max(image.size) <= 8 * RENDER else None
    except (ValueError, OSError, Image.DecompressionBombError) as error:
        log.debug("a drawing is left out: %s", error)
        return None


def normalised(image: Image.Image, colour: bool = False) -> np.ndarray | None:
    """Return a drawing (RGBA) as uint8 (SIDE, SIDE, 2), cropped to its ink, scaled to a longer side SIDE and centred.

    (SIDE, SIDE, 4) in colour. None when the ink is less than 8 pixels wide or high.
    """
    box = image.getchannel("A").point(lambda value: 255 if value > 24 else 0).getbbox()
    if box is None or box[2] - box[0] < 8 or box[3] - box[1] < 8:
        return None
    image = image.crop(box)
    scale = SIDE / max(image.size)
    target = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.asarray(image.convert("RGBa").resize(target, Image.Resampling.BOX).convert("RGBA"), dtype=np.float32)
    if not colour:
        luminance = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        pixels = np.stack([np.rint(luminance), pixels[..., 3]], axis=-1)
    out = np.zeros((SIDE, SIDE, pixels.shape[-1]), dtype=np.uint8)
    top, left = (SIDE - target[1]) // 2, (SIDE - target[0]) // 2
    out[top : top + target[1], left : left + target[0]] = pixels
    return out
