"""Digits as pen strokes in several writing habits, with random jitter, slant and pen width."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ldm.data.rendering.warps import centred, spread

BLOCK = 512  # items whose random numbers are drawn together, so that item i does not depend on the count
STEPS = 5  # samples between two points of a stroke
UNIFORMS = 12
PLACES = 20  # maximum number of random shifts per item, one for each point of its strokes

# A habit is a list of strokes; a stroke is a string of points "xy", each 0-9 to the right and 0-9 downwards, which is
# precise enough at this size. A repeated point is a corner; a curve runs through the others.
HABITS: dict[int, tuple[tuple[float, tuple[str, ...]], ...]] = {
    0: (
        (3, ("50 20 03 06 28 59 77 84 72 50",)),
        (2, ("60 31 04 07 39 68 85 83 61 40",)),
        (1, ("72 50 21 04 07 39 69 87 83 61 30",)),
    ),
    1: (
        (5, ("50 49",)),
        (2, ("52 50 50 49",)),
        (2, ("23 50 50 59",)),
        (1, ("23 50 50 59", "29 89")),
    ),
    2: (
        (3, ("12 20 50 72 64 37 09 09 49 89",)),
        (2, ("12 30 60 73 55 18 07 27 48 89",)),
        (2, ("02 20 60 73 46 09 09 38 69 97",)),
        (1, ("11 40 71 73 46 19 19 88",)),
    ),
    3: (
        (3, ("11 40 71 63 34 34 66 78 59 29 08",)),
        (2, ("10 50 72 44 44 76 68 39 08",)),
        (1, ("10 70 70 34 34 65 77 49 18",)),
        (2, ("12 30 61 62 44 24 24 65 77 59 19 07",)),
    ),
    4: (
        (4, ("10 05 05 45 85", "70 64 69")),
        (2, ("20 16 16 55 85", "72 59")),
        (2, ("60 60 06 06 46 86", "60 60 69")),
        (2, ("50 05 06 46 65 61 65 69",)),
        (1, ("10 04 25 64 71 71 65 59",)),
    ),
    5: (
        (3, ("70 20 20 14 14 43 66 68 49 19 07",)),
        (3, ("20 14 14 53 76 68 39 08", "20 50 80")),
        (2, ("80 30 30 24 24 64 76 58 29 08",)),
    ),
    6: (
        (4, ("60 33 16 18 39 69 77 65 35 17",)),
        (2, ("50 24 07 19 49 68 66 45 16",)),
        (2, ("80 42 15 08 39 68 66 45 27",)),
    ),
    7: (
        (4, ("10 50 80 80 54 39",)),
        (2, ("11 40 80 80 64 49", "34 74")),
        (2, ("12 10 10 80 80 54 29",)),
        (1, ("00 40 71 73 56 49",)),
    ),
    8: (
        (4, ("71 40 12 34 65 77 49 18 26 54 72 70",)),
        (2, ("50 22 33 55 77 59 28 17 35 63 71 50",)),
        (1, ("40 22 34 62 50 40", "44 16 18 49 68 66 44")),
    ),
    9: (
        (4, ("71 40 12 14 35 63 71 70 65 59",)),
        (2, ("72 50 21 14 35 64 72 72 69",)),
        (2, ("70 40 12 24 54 71 67 49 18",)),
    ),
}


@dataclass(frozen=True)
class HandRange:
    """Public parameters of the handwriting; angles in radians, lengths as fractions of a digit's height."""

    slant: tuple[float, float] = (-0.15, 0.55)
    rotation: float = 0.12
    width: tuple[float, float] = (0.55, 1.25)  # horizontal stretch
    jitter: tuple[float, float] = (0.015, 0.07)  # standard deviation of a stroke's points
    sway: float = 0.1  # largest bend of the whole digit
    pen: tuple[float, float] = (1.2, 4.2)  # full width of the line, pixels of the 28x28 image


@dataclass(frozen=True)
class Habit:
    """One way to write a digit, prepared for drawing.

    Attributes:
        places: float (K, 2), x and y in [0, 1].
        curve: float (S, K), weights of the points in each sample of the curve.
        joined: bool (S - 1,), False where the pen is lifted.
    """

    places: np.ndarray
    curve: np.ndarray
    joined: np.ndarray


@lru_cache(maxsize=64)
def habit(strokes: tuple[str, ...]) -> Habit:
    """Return a habit from the text of its strokes."""
    places, blocks = [], []
    for text in strokes:
        stroke = np.array([(int(place[0]), int(place[1])) for place in text.split()], dtype=np.float32) / 9.0
        places.append(stroke)
        blocks.append(spline(len(stroke)))
    total = sum(len(stroke) for stroke in places)
    curve = np.zeros((sum(len(block) for block in blocks), total), dtype=np.float32)
    joined = np.ones(len(curve) - 1, dtype=bool)
    row = column = 0
    for block in blocks:
        curve[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
        if row < len(curve):
            joined[row - 1] = False
    return Habit(np.concatenate(places), curve, joined)


def spline(count: int) -> np.ndarray:
    """Return weights (S, count) of a Catmull-Rom curve through ``count`` points (Catmull and Rom, 1974)."""
    rows = []
    for start in range(count - 1):
        for t in np.arange(STEPS + (start == count - 2)) / STEPS:
            row = np.zeros(count, dtype=np.float32)
            cubic = (
                -0.5 * t + t * t - 0.5 * t**3,
                1.0 - 2.5 * t * t + 1.5 * t**3,
                0.5 * t + 2.0 * t * t - 1.5 * t**3,
                -0.5 * t * t + 0.5 * t**3,
            )
            for offset, weight in enumerate(cubic, -1):
                row[min(max(start + offset, 0), count - 1)] += weight
            rows.append(row)
    return np.stack(rows)


def random_hands(seed: int, stream: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (uniform (BLOCK, UNIFORMS), normal (BLOCK, PLACES, 2)) float32, determined by the arguments."""
    random = np.random.Generator(np.random.Philox(key=[seed, (stream << 32) + block]))
    uniform = random.random((BLOCK, UNIFORMS), dtype=np.float32)
    return uniform, random.standard_normal((BLOCK, PLACES, 2), dtype=np.float32)


def chosen_habits(digit: int, uniform: np.ndarray) -> np.ndarray:
    """Return the index (N,) of each item's habit for a digit, chosen by numbers (N,) in [0, 1)."""
    shares = np.array([share for share, _ in HABITS[digit]], dtype=np.float64)
    return np.searchsorted(np.cumsum(shares / shares.sum())[:-1], uniform, side="right")


def write(
    digits: np.ndarray, uniform: np.ndarray, normal: np.ndarray, knobs: HandRange, box: int = 20, frame: int = 28
) -> np.ndarray:
    """Return images uint8 (N, frame, frame) framed like MNIST: ink fits a ``box`` square, centre of mass in the middle.

    Args:
        digits: (N,) 0 to 9.
        uniform, normal: the random numbers of `random_hands` for these items.
    """
    out = np.zeros((len(digits), frame, frame), dtype=np.uint8)
    for digit in np.unique(digits):
        own = np.flatnonzero(digits == digit)
        which = chosen_habits(int(digit), uniform[own, 0])
        for number, (_, strokes) in enumerate(HABITS[int(digit)]):
            rows = own[which == number]
            if len(rows):
                curve, joined = curves(habit(strokes), uniform[rows], normal[rows], knobs)
                out[rows] = inked(curve, joined, uniform[rows], knobs, box, frame)
    return out


def curves(way: Habit, uniform: np.ndarray, normal: np.ndarray, knobs: HandRange) -> tuple[np.ndarray, np.ndarray]:
    """Return the items' curves (N, S, 2), about [-0.5, 0.5], and a mask (S - 1,) of the segments with the pen down."""
    amount = spread(uniform[:, 1], *knobs.jitter)[:, None, None]
    shifts = normal[:, : len(way.places)] * amount
    repeated = np.flatnonzero((np.diff(way.places, axis=0) == 0).all(1)) + 1
    shifts[:, repeated] = shifts[:, repeated - 1]  # both points of a corner must shift together
    places = way.places[None] - 0.5 + shifts
    curve = np.einsum("sk,nkc->nsc", way.curve, places)
    bend = knobs.sway * (2.0 * uniform[:, 2:4] - 1.0)
    x, y = curve[..., 0], curve[..., 1]
    x = x + bend[:, :1] * (4.0 * y * y - 0.3)
    y = y + bend[:, 1:] * (4.0 * curve[..., 0] ** 2 - 0.3) * 0.6
    x = x * spread(uniform[:, 4], *knobs.width)[:, None] - spread(uniform[:, 5], *knobs.slant)[:, None] * y
    angle = spread(uniform[:, 6], -knobs.rotation, knobs.rotation)[:, None]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1).astype(np.float32), way.joined


def inked(
    curve: np.ndarray, joined: np.ndarray, uniform: np.ndarray, knobs: HandRange, box: int, frame: int
) -> np.ndarray:
    """Return curves (N, S, 2) as uint8 (N, frame, frame), drawn with varying pen pressure."""
    pen = spread(uniform[:, 7] ** 1.3, *knobs.pen) * np.float32(box / 20)
    low, high = curve.min(1), curve.max(1)
    scale = (box - pen) / np.maximum((high - low).max(1), 0.1)
    curve = (curve - ((low + high) / 2)[:, None]) * scale[:, None, None] + box / 2
    start, along = curve[:, :-1][:, joined], np.diff(curve, axis=1)[:, joined]
    along = along + np.float32(1e-4)
    places = np.arange(box, dtype=np.float32) + np.float32(0.5)
    grid = np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)
    away = grid[None, :, None, :] - start[:, None]  # (N, box * box, segments, 2)
    length = (along**2).sum(-1)[:, None]
    share = np.clip((away * along[:, None]).sum(-1) / length, 0.0, 1.0)
    gap = np.sqrt(((away - share[..., None] * along[:, None]) ** 2).sum(-1))
    phase = np.linspace(0.0, 1.0, gap.shape[-1], dtype=np.float32)
    press = 1.0 + 0.3 * (uniform[:, 8:9] - 0.5) * np.cos(2 * np.pi * (phase[None] * 1.5 + uniform[:, 9:10]))
    distance = (gap - (pen / 2)[:, None, None] * press[:, None]).min(-1)
    soft = spread(uniform[:, 10], 0.9, 1.6)[:, None]
    ink = np.clip(0.5 - distance / soft, 0.0, 1.0).reshape(-1, box, box)
    return centred(np.rint(ink * 255.0), frame).astype(np.uint8)
