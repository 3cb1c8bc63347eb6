"""Render distance fields as images framed like MNIST: warps, pen widths, box, centre of mass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KNOTS = 8  # control points per side of the elastic field
BLOCK = 512  # items whose random numbers are drawn together, so that item i does not depend on the count
SCALARS = 16


@dataclass(frozen=True)
class WarpRange:
    """Public parameters of the distortion; angles in radians, lengths in units of half the image's side.

    ``filled`` is the share of images with filled glyphs; the others are pen strokes along the skeleton.
    """

    filled: float = 0.3
    rotation: float = 0.22
    shear: float = 0.35
    stretch: tuple[float, float] = (0.75, 1.15)
    elastic: tuple[float, float] = (0.05, 0.28)
    pen: tuple[float, float] = (1.4, 3.8)  # full width of a stroke in pixels of the 28x28 image
    embolden: tuple[float, float] = (-0.4, 0.8)  # growth of a filled outline, in the same unit


def random_block(seed: int, stream: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (uniform (BLOCK, SCALARS), normal (BLOCK, 2, KNOTS, KNOTS)) float32, determined by the arguments."""
    random = np.random.Generator(np.random.Philox(key=[seed, stream * (1 << 32) + block]))
    uniform = random.random((BLOCK, SCALARS), dtype=np.float32)
    return uniform, random.standard_normal((BLOCK, 2, KNOTS, KNOTS), dtype=np.float32)


def spread(uniform: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map numbers in [0, 1) linearly to [low, high)."""
    return np.float32(low) + uniform * np.float32(high - low)


def spline_weights(position: np.ndarray) -> np.ndarray:
    """Return cubic B-spline weights (..., KNOTS) of positions in [-1, 1] over evenly spaced knots."""
    t = (position[..., None] + 1.0) * ((KNOTS - 3) / 2.0) + 1.0 - np.arange(KNOTS, dtype=np.float32)
    t = np.abs(t)
    near = 2.0 / 3.0 - t * t * (1.0 - t / 2.0)
    far = np.clip(2.0 - t, 0.0, None) ** 3 / 6.0
    return np.where(t < 1.0, near, far).astype(np.float32)


@dataclass
class Warp:
    """Inverse maps of a batch, affine then elastic, from image positions (x, y), about [-1, 1], to field positions."""

    matrix: np.ndarray  # (N, 2, 2)
    knots: np.ndarray  # (N, 2, KNOTS, KNOTS), already scaled by the amplitude

    def field_positions(self, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return field x and y, (N, H, W), of image columns ``xs`` (N, W) and rows ``ys`` (N, H)."""
        across = spline_weights(np.clip(xs, -1.0, 1.0)).transpose(0, 2, 1)  # (N, KNOTS, W)
        down = spline_weights(np.clip(ys, -1.0, 1.0))  # (N, H, KNOTS)
        shift = down[:, None] @ self.knots @ across[:, None]  # (N, 2, H, W)
        grid_x, grid_y = xs[:, None, :], ys[:, :, None]
        m = self.matrix[:, :, :, None, None]
        return (
            m[:, 0, 0] * grid_x + m[:, 0, 1] * grid_y + shift[:, 0],
            m[:, 1, 0] * grid_x + m[:, 1, 1] * grid_y + shift[:, 1],
        )


def draw_warp(uniform: np.ndarray, normal: np.ndarray, knobs: WarpRange) -> Warp:
    """Return the warps of a batch from its random numbers: uniform (N, SCALARS), normal (N, 2, KNOTS, KNOTS)."""
    angle = spread(uniform[:, 0], -knobs.rotation, knobs.rotation)
    shear = spread(uniform[:, 1], -knobs.shear, knobs.shear)
    stretch = spread(uniform[:, 2], *knobs.stretch)
    cos, sin = np.cos(angle), np.sin(angle)
    # forward map: rotation @ shear @ stretch; the inverse is applied to image positions
    forward = np.empty((len(uniform), 2, 2), dtype=np.float32)
    forward[:, 0, 0], forward[:, 0, 1] = cos * stretch, cos * shear - sin
    forward[:, 1, 0], forward[:, 1, 1] = sin * stretch, sin * shear + cos
    amplitude = spread(uniform[:, 3], *knobs.elastic)[:, None, None, None]
    return Warp(np.linalg.inv(forward).astype(np.float32), normal * amplitude * np.float32(0.5))


def sample_fields(fields: np.ndarray, which: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return fields (F, S, S) interpolated bilinearly at x, y (N, H, W) in [-1, 1]; ``which`` (N,) picks the field.

    Outside a field the value is that of the border plus the distance to the border.
    """
    side = fields.shape[-1]
    inside_x, inside_y = np.clip(x, -1.0, 1.0), np.clip(y, -1.0, 1.0)
    outside = np.abs(x - inside_x) + np.abs(y - inside_y)
    column = (inside_x + 1.0) * (side / 2.0) - 0.5
    row = (inside_y + 1.0) * (side / 2.0) - 0.5
    np.clip(column, 0.0, side - 1.001, out=column)
    np.clip(row, 0.0, side - 1.001, out=row)
    left, top = column.astype(np.int32), row.astype(np.int32)
    column -= left
    row -= top
    start = which[:, None, None].astype(np.int64) * (side * side) + top * side + left
    flat = fields.reshape(-1)
    upper = flat[start] * (1.0 - column) + flat[start + 1] * column
    lower = flat[start + side] * (1.0 - column) + flat[start + side + 1] * column
    return upper * (1.0 - row) + lower * row + outside


def ink_box(ink: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (left, right, top, bottom), each (N,), of bool images (N, P, P) whose samples lie at ``places`` (P,)."""
    step = places[1] - places[0]
    edges = []
    for axis in (1, 2):  # over rows: columns with ink; over columns: rows with ink
        has = np.asarray(ink.any(axis))
        first = has.argmax(1)
        last = has.shape[1] - 1 - has[:, ::-1].argmax(1)
        edges += [places[first] - step / 2, places[last] + step / 2]
    return edges[0], edges[1], edges[2], edges[3]


def centred(box: np.ndarray, frame: int) -> np.ndarray:
    """Return images (N, B, B) in frames (N, frame, frame), shifted by whole pixels to centre their mass."""
    count, side = box.shape[:2]
    mass = box.sum((1, 2)) + 1e-6
    places = np.arange(side, dtype=np.float32) + 0.5
    top = np.rint(frame / 2 - (box.sum(2) @ places) / mass).astype(np.int64)
    left = np.rint(frame / 2 - (box.sum(1) @ places) / mass).astype(np.int64)
    top, left = np.clip(top, 0, frame - side), np.clip(left, 0, frame - side)
    out = np.zeros((count, frame, frame), dtype=box.dtype)
    rows, columns = top[:, None] + np.arange(side), left[:, None] + np.arange(side)
    out[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]] = box
    return out


def draw_images(
    fields: np.ndarray,
    which: np.ndarray,
    uniform: np.ndarray,
    normal: np.ndarray,
    knobs: WarpRange,
    box: int = 20,
    frame: int = 28,
) -> np.ndarray:
    """Return images uint8 (N, frame, frame) framed like MNIST: ink fits a ``box`` square, centre of mass in the middle.

    Args:
        fields: float32 (F, 2, S, S), the filled and the stroke field of each glyph.
        which: (N,) the glyph of each image.
        uniform, normal: the random numbers of `random_block` for these items.
    """
    filled = uniform[:, 4] < knobs.filled
    warp = draw_warp(uniform, normal, knobs)
    flat = fields.reshape(-1, *fields.shape[2:])
    layer = which * 2 + ~filled
    grow = np.where(filled, spread(uniform[:, 5], *knobs.embolden), spread(uniform[:, 5], *knobs.pen) / 2)
    grow = (grow * np.float32(box / 20)).astype(np.float32)[:, None, None]

    places = np.linspace(-1.6, 1.6, 56, dtype=np.float32)
    coarse = np.broadcast_to(places, (len(which), len(places)))
    distance = sample_fields(flat, layer, *warp.field_positions(coarse, coarse))
    ink = distance < grow * np.float32(1.5 / box)  # an undistorted glyph is 1.5 long, so this is about a pixel
    left, right, top, bottom = ink_box(ink, places)
    side = np.maximum(np.maximum(right - left, bottom - top), 0.2) / box  # a pixel's side in field units
    steps = np.arange(box, dtype=np.float32) + 0.5 - box / 2
    xs = ((left + right) / 2)[:, None] + steps * side[:, None]
    ys = ((top + bottom) / 2)[:, None] + steps * side[:, None]
    distance = sample_fields(flat, layer, *warp.field_positions(xs, ys)) / side[:, None, None]
    ink = np.clip(0.5 + grow - distance, 0.0, 1.0)
    return centred(np.rint(ink * 255.0), frame).astype(np.uint8)
