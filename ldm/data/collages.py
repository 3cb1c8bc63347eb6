"""Rendered collages: simple forms in random colours on plain, shaded or crowded grounds, grey or in colour.

They show nothing in particular, so that a model of them is a start for colour images of any kind. Crowded grounds are
dead leaves (Baradad et al. 2021, arXiv 2106.05963, section 3.1).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from ldm.data.base import digest
from ldm.data.rendering.rendered import RenderedDataset

RENDER_VERSION = 1
SCALE = 3  # forms are drawn larger and reduced, so that edges are smooth
Colour = tuple[int, int, int]
Form = Callable[[ImageDraw.ImageDraw, np.random.Generator, int, Colour], None]


def _place(random: np.random.Generator, side: int) -> tuple[float, float, float]:
    """Centre and radius of a form, in pixels."""
    return (*(side * random.uniform(0.38, 0.62, 2)), side * random.uniform(0.16, 0.4))


def _round(x: float, y: float, wide: float, high: float) -> list[float]:
    return [x - wide, y - high, x + wide, y + high]


def _corners(x: float, y: float, radii: np.ndarray, turn: float) -> list[tuple[float, float]]:
    angles = turn + np.arange(len(radii)) * 2 * math.pi / len(radii)
    return [(float(x + r * math.cos(a)), float(y + r * math.sin(a))) for r, a in zip(radii, angles, strict=True)]


def _disc(pen: ImageDraw.ImageDraw, random: np.random.Generator, side: int, colour: Colour) -> None:
    x, y, radius = _place(random, side)
    pen.ellipse(_round(x, y, radius, radius * random.uniform(0.6, 1)), fill=colour)


def _ring(pen: ImageDraw.ImageDraw, random: np.random.Generator, side: int, colour: Colour) -> None:
    x, y, radius = _place(random, side)
    width = max(2, int(radius * random.uniform(0.15, 0.5)))
    pen.ellipse(_round(x, y, radius, radius * random.uniform(0.7, 1)), outline=colour, width=width)


def _regular(corners: int) -> Form:
    def form(pen: ImageDraw.ImageDraw, random: np.random.Generator, side: int, colour: Colour) -> None:
        x, y, radius = _place(random, side)
        pen.polygon(_corners(x, y, np.full(corners, radius), random.uniform(0, 2 * math.pi)), fill=colour)

    return form


def _star(pen: ImageDraw.ImageDraw, random: np.random.Generator, side: int, colour: Colour) -> None:
    x, y, radius = _place(random, side)
    tips = int(random.integers(4, 8))
    radii = np.tile([radius, radius * random.uniform(0.3, 0.6)], tips)
    pen.polygon(_corners(x, y, radii, random.uniform(0, 2 * math.pi)), fill=colour)


def _blot(pen: ImageDraw.ImageDraw, random: np.random.Generator, side: int, colour: Colour) -> None:
    x, y, radius = _place(random, side)
    pen.polygon(_corners(x, y, radius * random.uniform(0.5, 1.15, 12), random.uniform(0, 1)), fill=colour)


def _bars(pen: ImageDraw.ImageDraw, random: np.random.Generator, side: int, colour: Colour) -> None:
    for _ in range(int(random.integers(1, 4))):
        ends = [tuple(float(value) for value in side * random.uniform(0.05, 0.95, 2)) for _ in range(2)]
        pen.line(ends, fill=colour, width=int(random.integers(2, 12)))


def _pair(pen: ImageDraw.ImageDraw, random: np.random.Generator, side: int, colour: Colour) -> None:
    x, y, reach = _place(random, side)
    turn, radius = random.uniform(0, 2 * math.pi), reach * random.uniform(0.3, 0.7)
    for sign in (-1, 1):
        place = (x + sign * reach * math.cos(turn), y + sign * reach * math.sin(turn))
        pen.ellipse(_round(*place, radius, radius), fill=colour)


def _dots(pen: ImageDraw.ImageDraw, random: np.random.Generator, side: int, colour: Colour) -> None:
    for x, y in side * random.uniform(0.05, 0.95, (int(random.integers(6, 20)), 2)):
        radius = side * random.uniform(0.02, 0.06)
        pen.ellipse(_round(x, y, radius, radius), fill=colour)


def _stripes(pen: ImageDraw.ImageDraw, random: np.random.Generator, side: int, colour: Colour) -> None:
    step, slope = side * random.uniform(0.12, 0.4), random.uniform(-1, 1)
    for start in np.arange(-side, 2 * side, step):
        ends = [(0.0, float(start)), (float(side), float(start + slope * side))]
        pen.line(ends, fill=colour, width=max(2, int(step * 0.4)))


FORMS: dict[str, Form] = {
    "disc": _disc,
    "ring": _ring,
    "triangle": _regular(3),
    "square": _regular(4),
    "star": _star,
    "blot": _blot,
    "bars": _bars,
    "pair": _pair,
    "dots": _dots,
    "stripes": _stripes,
}


class CollagesTrain(RenderedDataset):
    """Rendered collages with the forms of `FORMS` as classes 0-9, about 1 ms each; no private data is read.

    Arguments and errors as in `ldm.data.rendering.rendered.RenderedDataset`. ``channels``: 3 (colour) without it.
    """

    kind = "collages"
    num_classes = len(FORMS)
    stored_channels = 3

    def __init__(
        self,
        count: int = 40000,
        size: int | None = 32,
        flip_p: float = 0.0,
        *,
        seed: int = 0,
        channels: int = 3,
        cache: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__(count, size, flip_p, seed=seed, channels=channels, cache=cache, config=config)
        self.open_images()

    def source_digest(self) -> str:
        return digest(self.seed, self.stream, self.size, RENDER_VERSION)

    def render(self) -> np.ndarray:
        out = np.empty((self.count, self.size, self.size, 3), dtype=np.uint8)
        for index in tqdm(range(self.count), desc="rendering collages", leave=False, disable=None):
            out[index] = collage(self.label(index), self.seed, self.stream, index, self.size)
        return out


class CollagesVal(CollagesTrain):
    """Rendered collages with other random draws, for validation on public data; arguments as in `CollagesTrain`."""

    stream = 1


def collage(kind: int, seed: int, stream: int, index: int, size: int = 32) -> np.ndarray:
    """Return one collage of class ``kind`` as uint8 (size, size, 3), a deterministic function of the arguments."""
    random = np.random.Generator(np.random.Philox(key=[seed, (stream << 32) + index]))
    side = size * SCALE
    sheet = ground(random, side)
    pen = ImageDraw.Draw(sheet)
    form = list(FORMS.values())[kind]
    colour = _colour(random)
    form(pen, random, side, colour)
    if random.random() < 0.4:  # a smaller form of any kind above it
        other = list(FORMS.values())[int(random.integers(6))]
        inside = Image.new("L", (side, side), 0)
        other(ImageDraw.Draw(inside), random, side, 255)  # type: ignore[arg-type]
        small = inside.resize((side // 2, side // 2))
        sheet.paste(_colour(random), (side // 4, side // 4), small)
    if random.random() < 0.3:
        sheet = sheet.filter(ImageFilter.GaussianBlur(random.uniform(0.5, 4)))
    drawn = np.asarray(sheet.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    image = drawn + random.normal(0, random.uniform(0, 8), drawn.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _colour(random: np.random.Generator) -> Colour:
    """A colour; pale, dark and grey ones are as frequent as strong ones."""
    base = random.uniform(0, 255, 3)
    grey = base.mean()
    mixed = grey + (base - grey) * random.uniform(0, 1.3)
    return tuple(int(value) for value in np.clip(mixed, 0, 255))  # type: ignore[return-value]


def ground(random: np.random.Generator, side: int) -> Image.Image:
    """A ground for forms or drawings (RGB): plain, shaded between four corners, or crowded with discs."""
    kind = random.random()
    if kind < 0.55:
        return Image.new("RGB", (side, side), _colour(random))
    if kind < 0.8:
        corners = np.array([_colour(random) for _ in range(4)], dtype=np.uint8).reshape(2, 2, 3)
        return Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)
    sheet = Image.new("RGB", (side, side), _colour(random))
    pen = ImageDraw.Draw(sheet)
    for _ in range(int(random.integers(10, 40))):
        x, y = side * random.uniform(0, 1, 2)
        radius = side * 0.05 / random.uniform(0.12, 1)
        pen.ellipse(_round(x, y, radius, radius), fill=_colour(random))
    return sheet
