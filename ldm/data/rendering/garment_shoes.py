"""Pieces of sandals, sneakers and ankle boots, seen from the side, and of bags."""

from __future__ import annotations

import numpy as np

from ldm.data.rendering.garment_pieces import Dice, Piece, Points, arc, box, dot, ellipse, line, points, soft

# Shoes point to the left: toe at x = -1, heel at x = 1, the ground at y = 0 and the leg upwards (negative y).


def sole(dice: Dice, thick: float, heel: float, spring: float) -> Points:
    """Return a sole of thickness ``thick``, raised by ``heel`` under the heel and by ``spring`` under the toe."""
    return points(
        (-1.0, -spring - thick * 0.9),
        (-0.97, -spring - 0.01),
        (-0.75, 0.0),
        (dice.real(-0.1, 0.2), 0.0 if heel < 0.1 else -heel * 0.25),
        (0.55, -heel * 0.9 if heel > 0.1 else 0.0),
        (0.98, -heel if heel > 0.1 else 0.0),
        (1.0, -heel - thick),
        (0.4, -heel * 0.75 - thick),
        (-0.2, -heel * 0.15 - thick),
        (-0.75, -thick),
    )


def laces(dice: Dice, start: tuple[float, float], end: tuple[float, float], count: int) -> list[Piece]:
    """Return short bars across the instep between two points."""
    tone = dice.real(0.3, 0.7) if dice.chance(0.5) else dice.real(1.3, 2.0)
    made = []
    for step in np.linspace(0.0, 1.0, count):
        x = start[0] + (end[0] - start[0]) * step
        y = start[1] + (end[1] - start[1]) * step
        made.append(line([(x - 0.07, y - 0.02), (x + 0.1, y + 0.09)], tone, 0.035))
    return made


def sneaker(dice: Dice) -> list[Piece]:
    """A sneaker: a thick light sole, a low upper with laces, a toe cap, stripes, a padded heel."""
    thick, tall = dice.real(0.1, 0.24), dice.real(0.48, 0.78)
    high = dice.chance(0.12)
    toe, throat = dice.real(0.18, 0.32), dice.real(-0.35, -0.05)
    tongue = (throat + dice.real(0.2, 0.35), -tall - thick - (0.35 if high else dice.real(0.0, 0.1)))
    back = -thick - tall * dice.real(0.85, 1.05) - (0.35 if high else 0.0)
    upper = points(
        (-0.98, -thick * 0.8),
        (-0.97, -thick - toe * 0.6),
        (-0.75, -thick - toe),
        (throat, -thick - tall * 0.62),
        tongue,
        (tongue[0] + 0.15, tongue[1] + 0.03),
        (0.55, back + dice.real(0.08, 0.2)),
        (0.86, back - dice.real(0.0, 0.06)),
        (0.98, back + 0.06),
        (0.94, -thick - 0.25),
        (1.0, -thick * 0.8),
    )
    spring = dice.real(0.0, 0.06)
    ground = sole(dice, thick, dice.real(0.0, 0.06), spring)
    pale = dice.real(1.1, 2.2) if dice.chance(0.6) else dice.real(0.35, 0.9)
    pieces = [Piece(soft(upper, 1)), Piece(ground, pale, cloth=False)]
    if dice.chance(0.5):
        cap = points((-0.98, -thick), (-0.96, -thick - toe * 0.6), (-0.72, -thick - toe), (-0.6, -thick))
        pieces.append(Piece(soft(cap, 1), dice.real(0.6, 1.6), cloth=False))
    if dice.chance(0.6):
        counter = points((0.62, -thick), (0.7, back + 0.2), (0.86, back), (0.97, back + 0.08), (0.98, -thick))
        pieces.append(Piece(counter, dice.real(0.6, 1.5), cloth=False))
    if dice.chance(0.6):
        tone = dice.real(0.35, 0.7) if dice.chance(0.5) else dice.real(1.3, 2.2)
        for number in range(int(dice.real(1, 4))):
            x = -0.05 + 0.2 * number
            pieces.append(
                line([(x + dice.real(-0.2, 0.3), -thick - tall * 0.6), (x, -thick)], tone, dice.real(0.04, 0.1))
            )
    if dice.chance(0.8):
        pieces += laces(
            dice, (throat - 0.15, -thick - tall * 0.5), (tongue[0] - 0.02, tongue[1] + 0.08), int(dice.real(3, 6))
        )
    if dice.chance(0.5):
        pieces.append(line([(-0.98, -thick * 0.9), (1.0, -thick * 0.9)], dice.real(0.4, 0.8), 0.03))
    pieces.append(
        Piece(ellipse((tongue[0] + 0.72) / 2 + 0.1, back + 0.07, 0.22, 0.05), dice.real(0.3, 0.7), cloth=False)
    )
    return pieces


def heel_block(dice: Dice, heel: float, kind: str) -> Points:
    """Return a heel of height ``heel``: a block, a thin stiletto, or a wedge that continues under the arch."""
    if kind == "wedge":
        return points((-0.55, 0.0), (0.96, 0.0), (1.0, -heel - 0.04), (0.35, -heel * 0.75), (-0.2, -heel * 0.2))
    wide = dice.real(0.28, 0.5) if kind == "block" else dice.real(0.06, 0.12)
    slope = dice.real(0.0, 0.1)
    left = 0.98 - wide
    return points((left + slope * 0.4, 0.0), (0.98 - slope, 0.0), (1.0, -heel - 0.05), (min(left, 0.62), -heel - 0.02))


def ankle_boot(dice: Dice) -> list[Piece]:
    """An ankle boot: a closed shoe with a shaft over the ankle, on a flat, block or thin heel."""
    kind = dice.one_of("flat", "flat", "block", "block", "stiletto", "wedge")
    heel = dice.real(0.02, 0.14) if kind == "flat" else dice.real(0.25, 0.7)
    thick = dice.real(0.05, 0.14)
    tall = dice.real(1.0, 1.65)
    front, back = dice.real(-0.12, 0.15), dice.real(0.88, 1.06)
    toe = dice.real(0.2, 0.34)
    lift = heel + thick
    upper = points(
        (-1.0, -thick * 0.8),
        (-0.98, -thick - toe * 0.55),
        (-0.78, -thick - toe),
        (-0.4, -thick - toe - heel * 0.3 - dice.real(0.08, 0.2)),
        (front, -lift - dice.real(0.55, 0.7)),
        (front + dice.real(-0.08, 0.06), -lift - tall),
        (back, -lift - tall + dice.real(-0.06, 0.06)),
        (back - dice.real(0.0, 0.1), -lift - tall * 0.5),
        (1.0, -lift - 0.15),
        (0.99, -lift + 0.05),
        (0.4, -heel * 0.75 - thick + 0.05),
        (-0.2, -heel * 0.15 - thick + 0.05),
    )
    dark = dice.real(0.35, 0.85) if dice.chance(0.7) else dice.real(1.1, 1.8)
    pieces = [Piece(soft(upper, 1)), Piece(sole(dice, thick, heel, dice.real(0.0, 0.05)), dark, cloth=False)]
    block = "block" if kind == "flat" else kind
    pieces.append(Piece(heel_block(dice, max(heel, 0.08), block), dark, cloth=False))
    edge = dice.real(0.4, 0.75)
    details = dice.one_of("elastic", "zip", "laces", "strap", "plain")
    if details == "elastic":
        pieces.append(
            Piece(
                points((0.25, -lift - tall * 0.98), (0.7, -lift - tall * 0.98), (0.5, -lift - 0.3)), edge, cloth=False
            )
        )
    elif details == "zip":
        pieces.append(line([(0.45, -lift - tall), (0.4, -lift - 0.1)], edge, 0.04))
    elif details == "laces":
        pieces += laces(dice, (-0.35, -thick - toe - 0.25), (front + 0.02, -lift - tall * 0.9), int(dice.real(4, 8)))
    elif details == "strap":
        at = -lift - dice.real(0.25, 0.6)
        pieces.append(line([(front - 0.1, at), (0.95, at - 0.05)], edge, dice.real(0.06, 0.14)))
        pieces.append(dot(0.3, at - 0.02, 0.07, dice.real(1.3, 2.0)))
    if dice.chance(0.35):
        high = dice.real(0.12, 0.35)
        pieces.append(Piece(box(front - 0.06, -lift - tall, back + 0.03, -lift - tall + high), dice.real(0.6, 1.4)))
    if dice.chance(0.4):
        pieces.append(line([(-0.75, -thick - toe), (-0.55, -thick)], edge, 0.03))
    return pieces


def sandal(dice: Dice) -> list[Piece]:
    """A sandal: a sole, flat or with a heel, and straps with gaps between them."""
    kind = dice.one_of("flat", "flat", "wedge", "block", "stiletto", "platform")
    heel = {"flat": dice.real(0.0, 0.1), "platform": dice.real(0.15, 0.35)}.get(kind, dice.real(0.4, 0.95))
    thick = dice.real(0.15, 0.3) if kind == "platform" else dice.real(0.06, 0.14)
    base = dice.real(0.6, 1.6)
    pieces = [Piece(sole(dice, thick, heel, dice.real(0.0, 0.04)), base, cloth=False)]
    if heel > 0.12:
        block = kind if kind in ("wedge", "block", "stiletto") else "wedge"
        pieces.append(Piece(heel_block(dice, heel, block), dice.real(0.6, 1.1) * base, cloth=False))

    def top(x: float) -> float:
        """Return the height of the sole's upper side at x."""
        return -thick - heel * float(np.interp(x, [-0.75, -0.2, 0.4, 1.0], [0.0, 0.15, 0.75, 1.0]))

    def foot(x: float) -> float:
        """Return the height of the foot's upper side at x."""
        return top(x) - float(np.interp(x, [-1.0, -0.8, -0.3, 0.1, 0.5, 1.0], [0.08, 0.18, 0.34, 0.55, 0.75, 0.6]))

    for _ in range(int(dice.real(1, 4))):
        x, lean, wide = dice.real(-0.8, 0.1), dice.real(-0.25, 0.3), dice.real(0.05, 0.22)
        band = points(
            (x - wide, top(x)), (x - wide + lean, foot(x + lean)), (x + wide + lean, foot(x + lean)), (x + wide, top(x))
        )
        pieces.append(Piece(band, dice.real(0.75, 1.15)))
    if dice.chance(0.65):
        high = top(0.85) - dice.real(0.45, 0.85)
        pieces.append(line([(0.98, top(0.95)), (0.95, high)], 1.0, dice.real(0.06, 0.2)))
        front = np.linspace(0.0, np.pi, 9)
        ring = np.stack([0.62 + 0.35 * np.cos(front), high + 0.04 + 0.09 * np.sin(front)], axis=1)
        pieces.append(line(ring, dice.real(0.8, 1.1), dice.real(0.05, 0.12)))
        if dice.chance(0.5):
            pieces.append(
                line([(0.3, high + 0.05), (-0.45, foot(-0.45)), (-0.55, top(-0.55))], 1.0, dice.real(0.05, 0.1))
            )
    elif dice.chance(0.4):
        pieces.append(
            Piece(points((0.6, top(0.6)), (0.75, top(0.8) - 0.55), (1.0, top(1.0) - 0.6), (1.0, top(1.0))), 0.95)
        )
    if kind == "flat" and dice.chance(0.3):
        pieces.append(line([(-0.75, top(-0.75)), (-0.35, foot(-0.3)), (0.35, top(0.35))], 1.0, dice.real(0.06, 0.12)))
    return pieces


def bag(dice: Dice) -> list[Piece]:
    """A bag: a body with one or two handles, a flap, a zip, pockets or a buckle; a clutch has no handle."""
    wide, high = dice.real(0.7, 1.0), dice.real(0.5, 1.2)
    narrow = dice.real(0.7, 1.12)
    body = points((-wide * narrow, 0.0), (wide * narrow, 0.0), (wide, high), (-wide, high))
    body = soft(body, int(dice.real(0, 3))) if dice.chance(0.7) else body
    pieces = []
    kind = dice.one_of("handles", "handles", "shoulder", "short", "clutch", "rucksack")
    tone = dice.real(0.6, 1.2)
    grip = dice.real(0.04, 0.1)
    if kind in ("handles", "short"):
        across = wide * (dice.real(0.3, 0.6) if kind == "handles" else dice.real(0.2, 0.35))
        up = dice.real(0.35, 0.8) if kind == "handles" else dice.real(0.12, 0.3)
        pieces.append(line(arc(0.0, 0.05, across, up), tone, grip))
        if dice.chance(0.4):
            pieces.append(line(arc(0.06, 0.1, across * 0.95, up * 0.85), tone * 0.8, grip))
    elif kind == "shoulder":
        pieces.append(line(arc(0.0, 0.05, wide * dice.real(0.75, 0.98), dice.real(0.6, 1.3)), tone, grip * 0.8))
    elif kind == "rucksack":
        pieces.append(line(arc(0.0, 0.02, 0.18, 0.16), tone, grip))
    pieces.append(Piece(body))
    edge = dice.real(0.4, 0.75)
    detail = dice.one_of("flap", "zip", "pocket", "quilt", "band", "plain")
    if detail == "flap":
        low = high * dice.real(0.35, 0.7)
        flap = points(
            (-wide * narrow, 0.0), (wide * narrow, 0.0), (wide * 0.97, low * 0.8), (0.0, low), (-wide * 0.97, low * 0.8)
        )
        pieces.append(Piece(flap, dice.real(0.8, 1.2)))
        pieces.append(line(flap[2:], edge, 0.035))
        pieces.append(Piece(box(-0.08, low - 0.08, 0.08, low + 0.07), dice.real(1.3, 2.2), cloth=False))
    elif detail == "zip":
        pieces.append(line([(-wide * 0.9, 0.1 * high), (wide * 0.9, 0.1 * high)], edge, 0.04))
    elif detail == "pocket":
        low = high * 0.88
        pieces.append(line(box(-wide * 0.6, high * 0.4, wide * 0.6, low)[[0, 1, 2, 3, 0]], edge, 0.035))
    elif detail == "quilt":
        for x in np.arange(-2.0, 2.0, dice.real(0.25, 0.4)):
            ends = ((x, 0.0), (x + high, high))
            pieces += [line(list(ends), edge, 0.025), line([(-x, 0.0), (-x - high, high)], edge, 0.025)]
        pieces = [
            p
            for p in pieces
            if p.width == 0 or abs(p.points[:, 0]).max() <= wide or (p.points[0, 1] < 0.04 and len(p.points) > 4)
        ]
    elif detail == "band":
        pieces.append(
            Piece(
                box(-wide * 0.97, high * 0.7, wide * 0.97, high * dice.real(0.8, 0.95)),
                dice.real(0.5, 1.5),
                cloth=False,
            )
        )
    if dice.chance(0.3):
        pieces.append(dot(dice.real(-0.3, 0.3), high * 0.45, dice.real(0.05, 0.1), dice.real(1.3, 2.0)))
    return pieces
