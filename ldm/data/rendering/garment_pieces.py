"""Building blocks of rendered garments: outlined pieces of cloth, lines on them, and random numbers to vary both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Points = np.ndarray  # float (K, 2): x to the right, y downwards, in units of the garment


@dataclass(frozen=True)
class Piece:
    """One drawing step, painted over the previous ones.

    Attributes:
        points: corners of a closed area, or of a line.
        tone: brightness relative to the garment's own.
        width: 0 fills the area; above 0 draws a line of this width, in units of the garment.
        cloth: whether the area has the garment's texture.
        hole: whether the area is cut out, so that the background is visible.
    """

    points: Points
    tone: float = 1.0
    width: float = 0.0
    cloth: bool = True
    hole: bool = False


class Dice:
    """Random choices for one garment, from a numpy generator."""

    def __init__(self, random: np.random.Generator):
        self.random = random

    def real(self, low: float, high: float) -> float:
        """Return a uniform number between two bounds."""
        return float(low + (high - low) * self.random.random())

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return bool(self.random.random() < probability)

    def one_of(self, *names: str) -> str:
        """Return one of the names, all equally likely."""
        return names[int(self.random.integers(len(names)))]


def points(*corners: tuple[float, float]) -> Points:
    """Return corners as an array (K, 2)."""
    return np.array(corners, dtype=np.float64)


def mirrored(area: Points) -> Points:
    """Return an area mirrored at x = 0."""
    return area * np.array([-1.0, 1.0])


def both_sides(right: Points) -> Points:
    """Return the closed symmetric outline with the right half ``right``, given from top to bottom."""
    return np.concatenate([right, mirrored(right)[::-1]])


def soft(area: Points, rounds: int = 2, closed: bool = True) -> Points:
    """Return an outline with its corners cut ``rounds`` times (Chaikin, 1974); an open line keeps its ends."""
    for _ in range(rounds):
        after = np.roll(area, -1, axis=0) if closed else area[1:]
        before = area if closed else area[:-1]
        cut = np.stack([0.75 * before + 0.25 * after, 0.25 * before + 0.75 * after], axis=1).reshape(-1, 2)
        area = cut if closed else np.concatenate([area[:1], cut, area[-1:]])
    return area


def ellipse(x: float, y: float, across: float, down: float, corners: int = 20) -> Points:
    """Return an ellipse with half axes ``across`` and ``down``."""
    angle = np.linspace(0.0, 2.0 * np.pi, corners, endpoint=False)
    return np.stack([x + across * np.cos(angle), y + down * np.sin(angle)], axis=1)


def arc(x: float, y: float, across: float, up: float, corners: int = 14) -> Points:
    """Return the upper half of an ellipse as an open line from left to right."""
    angle = np.linspace(np.pi, 2.0 * np.pi, corners)
    return np.stack([x + across * np.cos(angle), y + up * np.sin(angle)], axis=1)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """Return a rectangle."""
    return points((left, top), (right, top), (right, bottom), (left, bottom))


def line(corners: Sequence[tuple[float, float]] | Points, tone: float, width: float = 0.03) -> Piece:
    """Return a line in a tone relative to the garment's, without its texture."""
    return Piece(np.asarray(corners, dtype=np.float64), tone, width, cloth=False)


def dot(x: float, y: float, radius: float, tone: float) -> Piece:
    """Return a button."""
    return Piece(ellipse(x, y, radius, radius, 8), tone, cloth=False)
