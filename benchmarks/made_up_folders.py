"""Made-up folders of drawn shapes: stand-ins for somebody's private images, with nobody's data in them.

python benchmarks/made_up_folders.py shapes my-shapes --count 3000
python benchmarks/made_up_folders.py parts my-parts --count 300
python benchmarks/made_up_folders.py cells my-cells --count 3000      # in colour
python benchmarks/made_up_folders.py flowers my-flowers --count 3000  # in colour
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ldm.cli import ArgumentParser, run, seed

SIDE = 48
SCALE = 4  # drawn larger and reduced, so that edges are smooth


def _polygon(corners: int, centre: tuple[float, float], radius: float, turn: float) -> list[tuple[float, float]]:
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    return [(centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)) for angle in angles]


def draw_shape(kind: str, random: np.random.Generator) -> Image.Image:
    """A light shape on a dark ground (grey): circle, cross, square or triangle, filled or as a line."""
    sheet = Image.new("L", (SIDE * SCALE,) * 2, int(random.integers(0, 40)))
    pen = ImageDraw.Draw(sheet)
    tone, unit = int(random.integers(150, 256)), SIDE * SCALE
    centre = tuple(unit * (0.5 + random.uniform(-0.1, 0.1)) for _ in range(2))
    radius, turn = unit * random.uniform(0.22, 0.36), random.uniform(-0.3, 0.3)
    width = int(unit * random.uniform(0.05, 0.11))
    if kind == "cross":
        for angle in (turn + math.pi / 4, turn + 3 * math.pi / 4):
            ends = [
                (centre[0] + s * radius * math.cos(angle), centre[1] + s * radius * math.sin(angle)) for s in (-1, 1)
            ]
            pen.line(ends, fill=tone, width=width)
        return sheet
    corners = {"circle": 60, "square": 4, "triangle": 3}[kind]
    start = turn + {"circle": 0.0, "square": math.pi / 4, "triangle": -math.pi / 2}[kind]
    points = _polygon(corners, (centre[0], centre[1]), radius, start)
    if random.random() < 0.5:
        pen.polygon(points, fill=tone)
    else:
        pen.line([*points, points[0], points[1]], fill=tone, width=width, joint="curve")
    return sheet


def draw_part(kind: str, random: np.random.Generator) -> Image.Image:
    """A grey plate with a hole, as a camera over a belt sees it: good, scratch or stain."""
    unit = SIDE * SCALE
    grain = random.normal(0, 7, (unit // 8, unit // 8)) + random.uniform(110, 150)
    sheet = Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).resize((unit, unit), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(sheet)
    centre, hole = unit / 2 + random.uniform(-6, 6), unit * random.uniform(0.13, 0.17)
    pen.ellipse([centre - hole, centre - hole, centre + hole, centre + hole], fill=25, outline=190, width=6)
    if kind == "scratch":
        angle, place = random.uniform(0, math.pi), unit * random.uniform(0.2, 0.8, 2)
        reach = unit * random.uniform(0.25, 0.4)
        ends = [tuple(place + side * reach * np.array([math.cos(angle), math.sin(angle)])) for side in (-1, 1)]
        pen.line(ends, fill=int(random.integers(215, 256)), width=int(random.integers(7, 13)))
    elif kind == "stain":
        across, down = unit * random.uniform(0.2, 0.8, 2)
        wide, high = unit * random.uniform(0.1, 0.2, 2)
        pen.ellipse([across - wide, down - high, across + wide, down + high], fill=int(random.integers(40, 75)))
    return sheet.filter(ImageFilter.GaussianBlur(3))


def draw_cell(kind: str, random: np.random.Generator) -> Image.Image:
    """A stained cell on a pale ground (colour): healthy (violet, one nucleus), swollen (pink), split (two nuclei)."""
    unit = SIDE * SCALE
    ground = tuple(int(value + random.integers(-8, 9)) for value in (236, 222, 232))
    sheet = Image.new("RGB", (unit, unit), ground)
    pen = ImageDraw.Draw(sheet)
    centre = [unit * (0.5 + random.uniform(-0.07, 0.07)) for _ in range(2)]
    size = unit * (random.uniform(0.38, 0.44) if kind == "swollen" else random.uniform(0.26, 0.34))
    body = {"healthy": (186, 140, 205), "swollen": (226, 150, 170), "split": (170, 150, 215)}[kind]
    shade = tuple(int(np.clip(value + random.integers(-14, 15), 0, 255)) for value in body)
    pen.ellipse([centre[0] - size, centre[1] - 0.9 * size, centre[0] + size, centre[1] + 0.9 * size], fill=shade)
    turn = random.uniform(0, 2 * math.pi)
    places = (-0.4, 0.4) if kind == "split" else (random.uniform(-0.15, 0.15),)
    core = size * (0.28 if kind == "split" else random.uniform(0.34, 0.42))
    dark = tuple(int(value + random.integers(-12, 13)) for value in (92, 48, 128))
    for place in places:
        across, down = centre[0] + place * size * math.cos(turn), centre[1] + place * size * math.sin(turn)
        pen.ellipse([across - core, down - core, across + core, down + core], fill=dark)
    return sheet


#: Petals of a flower: their number, width over length, and the colours (petal, heart).
FLOWERS = {
    "arnica": (13, 0.2, (240, 190, 30), (190, 120, 30)),
    "aster": (13, 0.2, (145, 90, 205), (235, 190, 40)),
    "buttercup": (5, 0.75, (240, 200, 30), (150, 150, 40)),
    "geranium": (5, 0.75, (145, 90, 205), (225, 205, 225)),
}


def _near(colour: tuple[int, int, int], random: np.random.Generator, spread: int) -> tuple[int, ...]:
    return tuple(int(value) for value in np.clip(np.array(colour) + random.integers(-spread, spread + 1, 3), 0, 255))


def draw_flower(kind: str, random: np.random.Generator) -> Image.Image:
    """A flower over grass (colour). A class is known by both the colour of its petals and their form."""
    unit = SIDE * SCALE
    sheet = Image.new("RGB", (unit, unit), _near((70, 120, 50), random, 25))
    pen = ImageDraw.Draw(sheet)
    for _ in range(30):
        foot, tip = unit * random.uniform(0, 1, 2), unit * random.normal(0, 0.12, 2)
        blade = [
            (float(foot[0]), float(foot[1])),
            (float(foot[0] + tip[0]), float(foot[1] - abs(tip[1]) - 0.15 * unit)),
        ]
        pen.line(blade, fill=_near((80, 145, 60), random, 40), width=int(random.integers(4, 10)))
    petals, breadth, tint, heart = FLOWERS[kind]
    across, down = unit * (0.5 + random.uniform(-0.1, 0.1, 2))
    reach, turn = unit * random.uniform(0.26, 0.42), random.uniform(0, 2 * math.pi)
    wide = reach * breadth * random.uniform(0.85, 1.15) / 2
    for angle in turn + np.arange(petals) * 2 * math.pi / petals:
        along, side = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
        outline = [
            (reach / 2) * (1 + math.cos(t)) * along + wide * math.sin(t) * side for t in np.arange(16) * math.pi / 8
        ]
        points = [(float(across + x), float(down + y)) for x, y in outline]
        pen.polygon(points, fill=_near(tint, random, 14))
    core = reach * random.uniform(0.18, 0.28)
    pen.ellipse([across - core, down - core, across + core, down + core], fill=_near(heart, random, 12))
    return sheet.filter(ImageFilter.GaussianBlur(2))


FOLDERS: dict[str, tuple[tuple[str, ...], Callable[[str, np.random.Generator], Image.Image]]] = {
    "shapes": (("circle", "cross", "square", "triangle"), draw_shape),
    "parts": (("good", "scratch", "stain"), draw_part),
    "cells": (("healthy", "split", "swollen"), draw_cell),
    "flowers": (tuple(FLOWERS), draw_flower),
}


def write_folder(name: str, folder: Path, count: int, start: int = 0) -> None:
    """Write ``count`` images of a folder of `FOLDERS`, class by class in turn; ``start`` is the public seed."""
    kinds, draw = FOLDERS[name]
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(start)
    for index in range(count):
        kind = kinds[index % len(kinds)]
        image = draw(kind, random).resize((SIDE, SIDE), Image.Resampling.BOX)
        image.save(folder / kind / f"{index:05}.png")


def main() -> None:
    """Parse the command line and draw."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=tuple(FOLDERS), help="what is drawn")
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--count", type=int, default=3000, help="number of images")
    parser.add_argument("--seed", type=seed, default=0, help="public seed")
    args = parser.parse_args()
    write_folder(args.kind, args.folder, args.count, args.seed)
    print(f"written to {args.folder}: {args.count} images in {len(FOLDERS[args.kind][0])} classes")


if __name__ == "__main__":
    run(main)
