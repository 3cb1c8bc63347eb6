"""Images of public drawings (emoji, clip art, icons), labelled by their names.

Grey ones have a plain background, those in colour a ground of `ldm.data.collages`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ldm.data.base import digest, whole_number
from ldm.data.collages import SCALE, ground
from ldm.data.rendering.drawing_files import Shelf, load_shelf, shelf_digest
from ldm.data.rendering.rendered import RenderedDataset
from ldm.errors import UserError

RENDER_VERSION = 1
BLOCK = 512
COLOURED = ("emoji", "openclipart", "fluent-emoji", "fluent-emoji-flat", "fxemoji", "noto-v1", "twemoji")


class DrawingsTrain(RenderedDataset):
    """Images of public drawings, scaled, mirrored and rotated at random; no private data is read.

    Args:
        count, size, flip_p, seed, channels, cache, config: as in `ldm.data.rendering.rendered.RenderedDataset`.
        sets: names of drawing sets (`ldm.data.rendering.drawing_files.shelf_names`).
        words: one list of regular expressions per class; a drawing belongs to the first class with an expression that
            matches its name. None: every drawing, all with ``only_label``.
        dark_ground: share of images with a black background; the others have a grey one, or a ground of collages.
        only_label: the label without ``words``, for a mixture in which other sets have the labels below it.
        channels: 1 (luminance) or 3 (the drawings' colours).
        root: folder with the drawings; default ``$LDM_DATA_ROOT`` or the user's cache folder.

    Raises:
        UserError: for an invalid argument, or when a class has no drawing.
    """

    kind = "drawings"

    def __init__(
        self,
        count: int = 40000,
        size: int | None = 32,
        flip_p: float = 0.0,
        *,
        seed: int = 0,
        sets: Sequence[str] = COLOURED,
        words: Sequence[Sequence[str]] | None = None,
        dark_ground: float = 0.75,
        only_label: int = 0,
        channels: int = 1,
        root: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__(count, size, flip_p, seed=seed, channels=channels, cache=cache, config=config)
        if not 0.0 <= dark_ground <= 1.0:
            raise UserError(f"drawings: dark_ground={dark_ground}; give a share from 0 to 1")
        self.dark_ground = float(dark_ground)
        self.sets = tuple(sets)
        self.words = None if words is None else tuple(tuple(each) for each in words)
        self.only_label = whole_number(self.kind, "only_label", only_label)
        self.num_classes = self.only_label + 1 if self.words is None else len(self.words)
        self.stored_channels = self.channels
        self.root = root
        self.open_images()

    def source_digest(self) -> str:
        contents = [shelf_digest(name, self.root) for name in self.sets]
        settings = (self.words, self.dark_ground, self.size, RENDER_VERSION)
        colour = ["colour"] if self.channels == 3 else []
        return digest(self.seed, self.stream, self.sets, contents, *settings, *colour)

    def label(self, index: int) -> int:
        return self.only_label if self.words is None else super().label(index)

    @property
    def labels(self) -> np.ndarray:
        return super().labels if self.words is not None else np.full(self.count, self.only_label, dtype=np.int64)

    def render(self) -> np.ndarray:
        drawings, classes = self._drawings()
        names = self.words or ((),)
        members = [np.flatnonzero(classes == kind) for kind in range(len(names))]
        for kind, own in enumerate(members):
            if len(own) == 0:
                raise UserError(f"drawings: no drawing of {self.sets} has a name like {names[kind]}")
        place = placed if self.channels == 1 else placed_in_colour
        out = np.zeros((self.count, self.size, self.size, *([3] if self.channels == 3 else [])), dtype=np.uint8)
        for index in tqdm(range(self.count), desc="placing drawings", leave=False, disable=None):
            if index % BLOCK == 0:
                block = (self.stream << 32) + index // BLOCK
                random = np.random.Generator(np.random.Philox(key=[self.seed, block]))
            own = members[index % len(members)]
            which = own[int(random.integers(1 << 62) % len(own))]
            out[index] = place(drawings[which], self.size, self.dark_ground, random)
        return out

    def _drawings(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the drawings (N, SIDE, SIDE, 2 or 4) of this split and their classes (N,)."""
        images, classes = [], []
        only = None if self.words is None else "|".join(f"(?:{word})" for each in self.words for word in each)
        for name in self.sets:
            shelf = load_shelf(name, self.root, only=only, colour=self.channels == 3)
            labels = classes_of(shelf, self.words)
            chosen = np.flatnonzero((labels >= 0) & self._in_split(shelf))
            images.append(shelf.images[chosen])
            classes.append(labels[chosen])
        return np.concatenate(images), np.concatenate(classes)

    def _in_split(self, shelf: Shelf) -> np.ndarray:
        """Return a mask (N,) of the drawings in this split; a digest of the name holds out one in ten."""
        held = np.array([int(digest(name.split("/")[-1])[:6], 16) % 10 == 0 for name in shelf.names], dtype=bool)
        return held if self.stream == 1 else ~held


class DrawingsVal(DrawingsTrain):
    """Images of the drawings that `DrawingsTrain` holds out (one name in ten); same arguments."""

    stream = 1


def classes_of(shelf: Shelf, words: Sequence[Sequence[str]] | None) -> np.ndarray:
    """Return the class (N,) of each drawing: the first whose words match its name, -1 for none; 0 without words."""
    labels = np.full(len(shelf.names), -1 if words else 0, dtype=np.int64)
    for kind, expressions in reversed(list(enumerate(words or ()))):
        found = re.compile("|".join(f"(?:{expression})" for expression in expressions))
        labels[[bool(found.search(name.lower())) for name in shelf.names]] = kind
    return labels


def placed(drawing: np.ndarray, size: int, dark_ground: float, random: np.random.Generator) -> np.ndarray:
    """Return a drawing uint8 (S, S, 2) at random scale, angle and tone on a plain background, uint8 (size, size)."""
    u = random.random(10)
    frame = size * 7 // 8 if size % 8 == 0 else size
    side = max(8, round(frame * (1.0 - 0.35 * u[0] ** 2)))
    grey, alpha = (Image.fromarray(np.ascontiguousarray(drawing[..., k])) for k in (0, 1))
    if u[1] < 0.4:
        angle = 50.0 * (u[2] - 0.5)
        grey, alpha = (layer.rotate(angle, Image.Resampling.BILINEAR) for layer in (grey, alpha))
    target = (side, max(6, round(side * (0.8 + 0.2 * u[3])))) if u[4] < 0.3 else (side, side)
    value, cover = (
        np.asarray(layer.resize(target, Image.Resampling.BOX), dtype=np.float32) / 255.0 for layer in (grey, alpha)
    )
    if u[5] < 0.5:
        value, cover = value[:, ::-1], cover[:, ::-1]
    inked = cover > 0.5
    low, high = np.percentile(value[inked], (2, 98)) if inked.any() else (0.0, 1.0)
    if high - low < 0.15:  # a silhouette needs its own tone to be visible
        value = np.full_like(value, 0.25 + 0.75 * u[6])
    else:
        value = np.clip((value - low) / (high - low), 0.0, 1.0)
        value = 1.0 - value if u[6] < 0.4 else value
        value = (0.05 + 0.45 * u[7]) + value * (0.5 + 0.5 * u[8] - 0.45 * u[7])
    ground = 0.0 if u[9] < dark_ground else (u[9] - dark_ground) / max(1e-6, 1.0 - dark_ground)
    out = np.full((size, size), ground, dtype=np.float32)
    top, left = (size - target[1]) // 2, (size - target[0]) // 2
    box = out[top : top + target[1], left : left + target[0]]
    box += cover * (np.clip(value, 0.0, 1.0) - box)
    return np.rint(out * 255.0).astype(np.uint8)


def placed_in_colour(drawing: np.ndarray, size: int, dark_ground: float, random: np.random.Generator) -> np.ndarray:
    """Return a drawing uint8 (S, S, 4) at random scale, angle and place on a ground, uint8 (size, size, 3).

    Colours are kept, apart from a random order of red, green and blue in a third of the images. A drawing without
    contrast, such as a black icon, gets a random colour.
    """
    u = random.random(8)
    image = Image.fromarray(np.ascontiguousarray(drawing))
    if u[0] < 0.4:
        image = image.rotate(50.0 * (u[1] - 0.5), Image.Resampling.BILINEAR)
    side = max(8, round(size * (1.1 - 0.5 * u[2])))
    pixels = np.asarray(image.convert("RGBa").resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255.0
    if u[3] < 0.5:
        pixels = pixels[:, ::-1]
    colour, cover = pixels[..., :3], pixels[..., 3:]
    if u[4] < 1 / 3:
        colour = colour[..., random.permutation(3)]
    inked = colour[cover[..., 0] > 0.5]
    if len(inked) and np.ptp(np.percentile(inked.mean(axis=1), (2, 98))) < 0.15 and np.ptp(inked.mean(axis=0)) < 0.15:
        colour = cover * random.random(3).astype(np.float32)
    sheet = Image.new("RGB", (size, size))
    if u[5] >= dark_ground:
        sheet = ground(random, size * SCALE).resize((size, size), Image.Resampling.BOX)
    out = np.pad(np.asarray(sheet, dtype=np.float32) / 255.0, ((side, side), (side, side), (0, 0)))
    slack = size - side
    top, left = (side + round(slack / 2 + (v - 0.5) * (abs(slack) + 2)) for v in u[6:])
    box = out[top : top + side, left : left + side]
    box += colour - cover * box
    return np.rint(np.clip(out[side : side + size, side : side + size], 0.0, 1.0) * 255.0).astype(np.uint8)
