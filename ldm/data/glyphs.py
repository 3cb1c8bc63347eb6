"""Public images of digits and capital letters, rendered from fonts and framed like MNIST."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from tqdm import tqdm

from ldm.data.base import RecordDataset, RecordOptions, cache_home, digest, whole_number
from ldm.data.rendering.fonts import CHARACTERS, FIELDS_VERSION, file_sha, font_fields, font_files
from ldm.data.rendering.rendered import keep_images, kept_images
from ldm.data.rendering.warps import BLOCK, WarpRange, draw_images, random_block
from ldm.errors import UserError, nearest

log = logging.getLogger(__name__)

RENDER_VERSION = 1
CLASSES = {"all": CHARACTERS, "digits": CHARACTERS[:10], "letters": CHARACTERS[10:]}


class GlyphsTrain(RecordDataset):
    """Images of 0-9 and A-Z (labels 0-9 and 10-35) rendered from fonts; no private data is read.

    Item i depends only on i and on (seed, fonts, classes, size, warp). Images are rendered once and kept as a
    memory-mapped file in the user's cache folder.

    Args:
        count: number of images; classes alternate, so they are balanced. Default 40,000.
        size: 28 (MNIST's frame), or a multiple of 8 (32 = that frame with a border of 2, larger ones in proportion).
        seed: public constant, 0 or more.
        classes: "all", "digits", "letters", or the characters themselves, such as "0123456789X".
        fonts: "builtin" (matplotlib's), a font file, a folder of fonts, or a list of these.
        warp: changes to `ldm.data.rendering.warps.WarpRange`, such as ``{"filled": 0.0}``.
        cache: folder for rendered images; default ``<user cache>/ldm/glyphs``.
        flip_p, options: see `ldm.data.base.RecordDataset`; the default is one channel.

    Raises:
        UserError: for an invalid argument, or when no font contains a required character.
    """

    size: int  # has a default
    mirrorable = False
    default_size = 32
    default_channels = 1
    default_count = 40000
    stream = 0

    def __init__(
        self,
        count: int | None = None,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        seed: int = 0,
        classes: str = "all",
        fonts: str | Sequence[str] = "builtin",
        warp: Mapping[str, Any] | None = None,
        cache: str | os.PathLike[str] | None = None,
        **options: Unpack[RecordOptions],
    ):
        super().__init__(size, flip_p, **options)
        if self.size != 28 and (self.size % 8 or self.size < 8):
            raise UserError(f"glyphs: size={self.size}; give 28 or a multiple of 8")
        self.count = whole_number("glyphs", "count", self.default_count if count is None else count, 1)
        self.seed = whole_number("glyphs", "seed", seed)
        if self.seed >= 2**63:
            raise UserError(f"glyphs: seed={seed}; give a number below 2^63")
        self.characters = characters_of(classes)
        self.num_classes = 1 + max(CHARACTERS.index(c) for c in self.characters)
        self.warp = warp_range(warp)
        self.fonts = font_files(fonts)
        self.cache = Path(cache) if cache is not None else cache_home() / "ldm" / "glyphs"
        self._classes = np.array([CHARACTERS.index(c) for c in self.characters])
        self._images = self._load()

    def __len__(self) -> int:
        return self.count

    def label(self, index: int) -> int:
        return int(self._classes[index % len(self._classes)])

    @property
    def labels(self) -> np.ndarray:
        return self._classes[np.arange(self.count) % len(self._classes)].astype(np.int64)

    def pixels(self, index: int) -> np.ndarray:
        return self._images[index]

    def source_digest(self) -> str:
        inks = [file_sha(path) for path in self.fonts]
        knobs = asdict(self.warp)
        return digest(self.seed, self.stream, self.characters, knobs, inks, self.size, RENDER_VERSION, FIELDS_VERSION)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": None}  # each worker maps the file itself, so the images are not copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._images = self._load()

    def _load(self) -> np.ndarray:
        """Return the images, uint8 (count, size, size), memory-mapped; render them when the file is missing.

        A digest of the content is stored beside the file; a damaged file, or one of another data set, is rendered
        again.
        """
        path = self.cache / f"glyphs-{digest(self.source_digest(), self.count)}.npy"
        images = kept_images(path, (self.count, self.size, self.size))
        return keep_images(path, self._render()) if images is None else images

    def _render(self) -> np.ndarray:
        """Return all images, uint8 (count, size, size)."""
        glyphs, offset, number = self._glyphs()
        images = np.zeros((self.count, self.size, self.size), dtype=np.uint8)
        box, frame = (20, 28) if self.size == 28 else (self.size * 5 // 8, self.size * 7 // 8)
        border = (self.size - frame) // 2
        blocks = range(-(-self.count // BLOCK))
        for block in tqdm(blocks, desc="rendering glyphs", unit_scale=BLOCK, unit="image", leave=False, disable=None):
            start, stop = block * BLOCK, min((block + 1) * BLOCK, self.count)
            uniform, normal = (part[: stop - start] for part in random_block(self.seed, self.stream, block))
            turn = np.arange(start, stop) % len(self._classes)
            which = offset[turn] + (uniform[:, 6] * number[turn]).astype(np.int64)
            drawn = draw_images(glyphs, which, uniform, normal, self.warp, box, frame)
            images[start:stop, border : border + frame, border : border + frame] = drawn
        return images

    def _glyphs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all fields (F, 2, S, S), grouped by class, and each class's first row and number of rows."""
        found = []
        for path in tqdm(self.fonts, desc="reading fonts", unit="font", leave=False, disable=None):
            made = font_fields(path, self.cache)
            if made is not None:
                found.append(made)
        rows, number = [], []
        for kind, character in zip(self._classes, self.characters, strict=True):
            own = [each[kind] for each, present in found if present[kind]]
            if not own:
                raise UserError(f"glyphs: none of the {len(self.fonts)} fonts draws {character!r}; give other fonts")
            rows += own
            number.append(len(own))
        counts = np.array(number)
        return np.stack(rows).astype(np.float32), np.cumsum(counts) - counts, counts


class GlyphsVal(GlyphsTrain):
    """2,000 images of the same fonts with other warps, for validation on public data."""

    default_count = 2000
    stream = 1


def characters_of(classes: str) -> str:
    """Return the characters of "all", "digits", "letters", or a string of characters, in the order of the labels."""
    if not isinstance(classes, str):
        raise UserError(f"glyphs: classes={classes!r} is not text; in YAML put the characters in quotes")
    if classes in CLASSES:
        return CLASSES[classes]
    unknown = [c for c in classes if c not in CHARACTERS]
    if not classes or unknown:
        raise UserError(f"glyphs: classes={classes!r} is neither one of {sorted(CLASSES)} nor characters 0-9, A-Z")
    return "".join(c for c in CHARACTERS if c in classes)


def warp_range(changes: Mapping[str, Any] | None) -> WarpRange:
    """Return the default distortion ranges with ``changes`` applied."""
    known = [field.name for field in fields(WarpRange)]
    values: dict[str, Any] = {}
    for key, value in (changes or {}).items():
        if key not in known:
            raise UserError(f"glyphs: warp has no knob {key!r}{nearest(str(key), known)}; one of {known}")
        is_pair = isinstance(getattr(WarpRange(), key), tuple)
        values[key] = tuple(float(v) for v in value) if is_pair else float(value)
    return replace(WarpRange(), **values)
