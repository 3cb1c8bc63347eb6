"""Render garment pieces as grey images with cloth, light, folds and the framing of product photographs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ldm.data.rendering.garment_pieces import Dice, Piece

FINE = 3  # samples a side of a pixel


def painted(pieces: Sequence[Piece], dice: Dice, frame: int = 28, plain: float = 0.55) -> np.ndarray:
    """Return a garment as uint8 (frame, frame) on black, trimmed, scaled to a longer side of ``frame`` and centred.

    Args:
        pieces: pieces in drawing order; the last is on top.
        dice: random source of tone, cloth, light, folds, sharpness and noise.
        frame: side in pixels.
        plain: share of garments without a pattern.
    """
    side = frame * FINE
    pieces = placed(pieces, dice, side)
    base = dice.real(0.12, 1.0) if dice.chance(0.8) else dice.real(0.6, 1.0)
    fabric = cloth(dice, side, plain)
    value = np.zeros((side, side), dtype=np.float32)
    cover = np.zeros((side, side), dtype=np.float32)
    for piece in pieces:
        mask = area_of(piece, side)
        if piece.hole:
            cover[mask] = 0.0
            value[mask] = 0.0
        elif piece.width > 0:  # a line shades the cloth below it; outside the cloth it is a strap
            inside = mask & (cover > 0)
            outside = mask & (cover == 0)
            if piece.tone >= 1.25 or piece.tone < 0.95:
                value[inside] = base * piece.tone
            if abs(piece.tone - 1.0) < 0.25 or piece.width > 0.035:
                value[outside] = base * piece.tone
                cover[outside] = 1.0
        else:
            value[mask] = base * piece.tone * (fabric[mask] if piece.cloth else 1.0)
            cover[mask] = 1.0
    value = np.clip(value * light(cover, dice), 0.02, 1.15) * cover
    small = value.reshape(frame, FINE, frame, FINE).mean((1, 3))
    return finished(small, dice)


def placed(pieces: Sequence[Piece], dice: Dice, side: int) -> list[Piece]:
    """Return the pieces in samples of a square that the longer side of their bounds fills, up to two pixels."""
    solid = [piece for piece in pieces if not piece.hole]
    corners = np.concatenate([p.points + s * p.width / 2 for p in solid for s in (-1, 1)])
    low, high = corners.min(0), corners.max(0)
    scale = (side - FINE * (dice.real(0, 2) if dice.chance(0.3) else 0.0)) / (high - low).max()
    stretch = np.array([dice.real(0.92, 1.08), 1.0]) if high[0] - low[0] < 0.9 * (high[1] - low[1]) else np.ones(2)
    middle = (low + high) / 2
    turn = np.deg2rad(dice.real(-4, 4)) if dice.chance(0.3) else 0.0
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    out = []
    for piece in pieces:
        moved = ((piece.points - middle) @ matrix) * scale * stretch + side / 2
        out.append(Piece(moved, piece.tone, piece.width * scale, piece.cloth, piece.hole))
    return out


def area_of(piece: Piece, side: int) -> np.ndarray:
    """Return the samples (side, side) that a piece covers, bool."""
    image = Image.new("1", (side, side), 0)
    draw = ImageDraw.Draw(image)
    corners = [(float(x), float(y)) for x, y in piece.points]
    if piece.width > 0:
        draw.line(corners, fill=1, width=max(1, round(piece.width)), joint="curve")
    else:
        draw.polygon(corners, fill=1)
    return np.asarray(image)


def smooth_noise(dice: Dice, side: int, knots_down: int, knots_across: int) -> np.ndarray:
    """Return smooth noise (side, side) of mean 0 and deviation about 1; the knots set the bumps down and across."""
    coarse = dice.random.standard_normal((knots_down + 3, knots_across + 3)).astype(np.float32)
    image = Image.fromarray(coarse).resize((side * (knots_across + 3) // knots_across, side), Image.Resampling.BICUBIC)
    return np.asarray(image)[:, :side] * np.float32(1.3)


def cloth(dice: Dice, side: int, plain: float) -> np.ndarray:
    """Return a cloth texture (side, side) around 1: plain, striped, checked, spotted, mottled or two-toned."""
    kind = dice.one_of("across", "across", "down", "check", "spots", "mottled", "mottled", "blocks")
    kind = "plain" if dice.chance(plain) else kind
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    other = dice.real(0.35, 0.92) if dice.chance(0.6) else dice.real(1.1, 1.8)
    period = dice.real(2.0, 8.0) * FINE
    share = dice.real(0.3, 0.7)
    bands_down = ((rows + dice.real(0, period)) % period) / period < share
    bands_across = ((columns + dice.real(0, period)) % period) / period < share
    out = np.ones((side, side), dtype=np.float32)
    if kind == "across":
        out[bands_down] = other
    elif kind == "down":
        out[bands_across] = other
    elif kind == "check":
        out[bands_down] *= np.sqrt(other)
        out[bands_across] *= np.sqrt(other)
    elif kind == "spots":
        bumps = int(dice.real(5, 13))
        out[smooth_noise(dice, side, bumps, bumps) > dice.real(0.3, 1.2)] = other
    elif kind == "mottled":
        fine = ndimage.zoom(dice.random.standard_normal((side // FINE, side // FINE)), FINE, order=0)
        out += np.float32(dice.real(0.08, 0.3)) * fine[:side, :side].astype(np.float32)
    elif kind == "blocks":
        edge = dice.real(0.25, 0.75) * side
        out[rows > edge] = other
    return out


def light(cover: np.ndarray, dice: Dice) -> np.ndarray:
    """Return the light on a garment (side, side) around 1: darker or lighter rims, broad folds, a shaded side."""
    side = len(cover)
    inside = ndimage.uniform_filter(cover, size=round(dice.real(2.0, 5.0) * FINE))
    rim = dice.real(-0.15, 0.5)
    out = 1.0 - rim * (1.0 - np.clip(inside, 0.0, 1.0))
    down, across = int(dice.real(1, 4)), int(dice.real(2, 8))
    out += dice.real(0.0, 0.14) * smooth_noise(dice, side, down, across)
    ramp = np.linspace(-1.0, 1.0, side, dtype=np.float32)
    out += dice.real(-0.12, 0.12) * ramp[None, :] + dice.real(-0.15, 0.15) * ramp[:, None]
    return out.astype(np.float32)


def finished(image: np.ndarray, dice: Dice) -> np.ndarray:
    """Return an image (frame, frame) with values about [0, 1] as uint8, sharpened, with noise on the cloth."""
    if dice.chance(0.6):
        image = image + dice.real(0.1, 0.6) * (image - ndimage.uniform_filter(image, size=3))
    noise = dice.random.standard_normal(image.shape) * dice.real(0.0, 0.05)
    image = np.where(image > 0.02, image + noise, image)
    return np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
