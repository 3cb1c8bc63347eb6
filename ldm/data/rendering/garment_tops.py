"""Pieces of T-shirts, pullovers, dresses, coats, shirts and trousers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldm.data.rendering.garment_pieces import (
    Dice,
    Piece,
    Points,
    both_sides,
    box,
    dot,
    ellipse,
    line,
    mirrored,
    points,
    soft,
)


@dataclass(frozen=True)
class Cut:
    """Measures of a garment with shoulders: half widths, shoulders at y = 0, in units of about the chest width."""

    neck: float
    shoulder: float
    drop: float  # height of the neck above the end of the shoulder
    armpit: float
    chest: float
    waist: float
    waist_at: float
    hem: float
    length: float
    sleeve: float = 0.0  # length; 0 for none
    angle: float = 45.0  # of the sleeve, degrees below the horizontal
    cuff: float = 0.2  # width of the sleeve's end


def body_cut(dice: Dice, length: float, **changes: float) -> Cut:
    """Return random measures of an upper body of a given length; ``changes`` override them."""
    chest = dice.real(0.42, 0.56)
    shoulder = chest * dice.real(0.88, 1.08)
    measures = {
        "neck": shoulder * dice.real(0.3, 0.48),
        "shoulder": shoulder,
        "drop": dice.real(0.06, 0.18),
        "armpit": dice.real(0.38, 0.52),
        "chest": chest,
        "waist": chest * dice.real(0.84, 1.02),
        "waist_at": min(length * 0.62, 0.85),
        "hem": chest * dice.real(0.92, 1.12),
        "length": length,
    }
    return Cut(**{**measures, **changes})


def torso(cut: Cut, hem_curve: float = 0.0) -> Piece:
    """Return the body without sleeves; a positive ``hem_curve`` lets the hem hang lower in the middle."""
    right = points(
        (cut.neck, 0.0),
        (cut.shoulder, cut.drop),
        (cut.chest * 0.97, cut.armpit * 0.7),
        (cut.chest, cut.armpit),
        (cut.waist, cut.waist_at),
        (cut.hem, cut.length * 0.97),
        (cut.hem * 0.98, cut.length),
        (0.02, cut.length + hem_curve),
    )
    return Piece(both_sides(right))


def sleeve_area(cut: Cut) -> Points:
    """Return the right sleeve: shoulder, outer edge, cuff, inner edge, armpit."""
    angle = np.deg2rad(cut.angle)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    top = np.array([cut.shoulder, cut.drop])
    end = top + cut.sleeve * along
    inner = end + cut.cuff * across
    armpit = np.array([cut.chest * 0.98, cut.armpit])
    bulge = top + 0.45 * cut.sleeve * along - 0.05 * across
    under = 0.55 * armpit + 0.45 * inner + 0.02 * across
    start = np.array([cut.shoulder * 0.9, cut.drop * 0.8])
    return np.stack([start, top, bulge, end, inner, under, armpit])


def sleeves(cut: Cut, dice: Dice, hang: float = 0.0) -> list[Piece]:
    """Return both sleeves with their inner edges, drawn over the body; ``hang`` varies each angle, in degrees."""
    if cut.sleeve <= 0:
        return []
    made, tone, edge = [], dice.real(0.88, 1.02), dice.real(0.45, 0.8)
    for side in (1, -1):
        area = sleeve_area(Cut(**{**vars(cut), "angle": cut.angle + dice.real(-hang, hang)}))
        area = area if side > 0 else mirrored(area)
        made.append(Piece(area, tone))
        made.append(line(np.stack([area[0], area[-1], area[-2], area[-3]]), edge, 0.025))
    return made


def neckline(cut: Cut, dice: Dice, kind: str) -> list[Piece]:
    """Return the neck opening (round, vee, boat or square) with the visible inside of the back."""
    depth = {"round": dice.real(0.08, 0.28), "vee": dice.real(0.2, 0.5), "boat": 0.06, "square": dice.real(0.15, 0.35)}
    low, neck = depth[kind], cut.neck
    if kind == "vee":
        area = points((-neck, -0.02), (neck, -0.02), (0.0, low))
    elif kind == "square":
        area = box(-neck, -0.02, neck, low)
    else:
        half = np.linspace(0.0, np.pi, 12)
        area = np.stack([neck * np.cos(half), low * np.sin(half)], axis=1)
        area = np.concatenate([area, points((-neck, -0.03), (neck, -0.03))])
    pieces = [Piece(area, hole=True)]
    if dice.chance(0.6):
        back = area.copy()
        back[:, 1] = np.where(back[:, 1] < 0.02, min(0.05, low / 2), back[:, 1])
        pieces.append(Piece(back, dice.real(0.35, 0.75), cloth=False))
    if dice.chance(0.6):
        rim = area[area[:, 1] >= -0.01] if kind != "vee" else points((-neck, 0.0), (0.0, low), (neck, 0.0))
        pieces.append(line(rim, dice.real(0.6, 1.25), 0.04))
    return pieces


def print_on(cut: Cut, dice: Dice) -> list[Piece]:
    """Return a print on the chest: a block, a disc, lines of writing, or nothing."""
    kind = dice.one_of("block", "disc", "writing", "none", "none", "none")
    tone = dice.real(0.25, 0.7) if dice.chance(0.5) else dice.real(1.3, 2.2)
    half, top = cut.chest * dice.real(0.3, 0.7), dice.real(0.3, 0.45)
    low = min(cut.length * 0.85, top + dice.real(0.15, 0.55))
    if kind == "block":
        return [Piece(box(-half, top, half, low), tone, cloth=False)]
    if kind == "disc":
        return [Piece(ellipse(0.0, (top + low) / 2, half * 0.8, (low - top) / 2), tone, cloth=False)]
    if kind == "writing":
        rows = np.arange(top, low, 0.12)
        return [line([(-half * dice.real(0.5, 1), y), (half * dice.real(0.5, 1), y)], tone, 0.05) for y in rows]
    return []


def folds(cut: Cut, dice: Dice, count: int) -> list[Piece]:
    """Return a few soft lines of folding cloth below the chest."""
    made = []
    for _ in range(count):
        x, top = dice.real(-0.8, 0.8) * cut.waist, dice.real(0.4, 0.8) * cut.length
        end = (x + dice.real(-0.12, 0.12), min(cut.length * 0.98, top + dice.real(0.15, 0.6)))
        made.append(line([(x, top), end], dice.real(0.7, 1.2), dice.real(0.02, 0.05)))
    return made


def t_shirt(dice: Dice) -> list[Piece]:
    """A T-shirt or top: short sleeves, or none; no opening in front."""
    cut = body_cut(dice, dice.real(1.05, 1.5))
    kind = dice.one_of("short", "short", "short", "sleeveless", "cap")
    if kind == "sleeveless":
        strap = cut.shoulder * dice.real(0.55, 0.85)
        cut = Cut(**{**vars(cut), "shoulder": strap, "neck": strap * dice.real(0.55, 0.85), "drop": 0.04})
    else:
        long = (0.3, 0.55) if kind == "short" else (0.12, 0.25)
        measures = {"sleeve": dice.real(*long), "angle": dice.real(25, 65), "cuff": dice.real(0.24, 0.36)}
        cut = Cut(**{**vars(cut), **measures})
    neck = neckline(cut, dice, dice.one_of("round", "round", "round", "vee", "boat"))
    return [torso(cut), *sleeves(cut, dice, 4), *folds(cut, dice, 2), *print_on(cut, dice), *neck]


def long_sleeves(dice: Dice, cut: Cut) -> Cut:
    """Return a cut with sleeves down to the hip or the hand, hanging or slightly spread."""
    measures = {"sleeve": dice.real(0.95, 1.25), "angle": dice.real(66, 84), "cuff": dice.real(0.14, 0.22)}
    return Cut(**{**vars(cut), **measures})


def ribs(cut: Cut, dice: Dice) -> list[Piece]:
    """Return the knitted band at the hem."""
    high, tone = dice.real(0.06, 0.16), dice.real(0.7, 0.95)
    return [Piece(box(-cut.hem * 0.99, cut.length - high, cut.hem * 0.99, cut.length), tone, cloth=False)]


def pullover(dice: Dice) -> list[Piece]:
    """A pullover: long sleeves, closed in front, often knitted, with a round or V neck, a roll collar or a hood."""
    cut = long_sleeves(dice, body_cut(dice, dice.real(1.1, 1.45)))
    pieces = [torso(cut)]
    if dice.chance(0.5):
        pieces += ribs(cut, dice)
    pieces += sleeves(cut, dice, 3) + folds(cut, dice, 2)
    kind = dice.one_of("round", "round", "vee", "boat", "roll", "hood")
    if kind == "roll":
        high = dice.real(0.08, 0.22)
        pieces.append(Piece(box(-cut.neck, -high, cut.neck, 0.05), dice.real(0.8, 1.05)))
        pieces.append(line([(-cut.neck, 0.04), (0, 0.08), (cut.neck, 0.04)], 0.6))
    elif kind == "hood":
        pieces.append(Piece(soft(ellipse(0, 0.0, cut.neck * 1.35, dice.real(0.18, 0.3))), dice.real(0.8, 1.0)))
        pieces.append(Piece(ellipse(0, 0.02, cut.neck * 0.8, 0.14), dice.real(0.3, 0.6), cloth=False))
        if dice.chance(0.6):
            pieces.append(Piece(box(-0.28, cut.length * 0.62, 0.28, cut.length * 0.86), dice.real(0.8, 0.95)))
    else:
        pieces += neckline(cut, dice, kind)
    if dice.chance(0.25):
        pieces += print_on(cut, dice)
    return pieces


def dress(dice: Dice) -> list[Piece]:
    """A dress: one long piece from the shoulders or straps over the waist to a skirt."""
    length = dice.real(1.7, 2.6)
    chest = dice.real(0.34, 0.46)
    cut = body_cut(
        dice,
        length,
        chest=chest,
        shoulder=chest * dice.real(0.8, 1.02),
        waist=chest * dice.real(0.68, 0.95),
        waist_at=dice.real(0.75, 0.95),
        hem=chest * (dice.real(0.75, 1.15) if dice.chance(0.6) else dice.real(1.2, 1.9)),
    )
    kind = dice.one_of("straps", "none", "none", "short", "long", "bandeau")
    top = []
    if kind in ("straps", "bandeau"):
        strap, high = cut.chest * dice.real(0.4, 0.75), dice.real(0.25, 0.4)
        cut = Cut(
            **{**vars(cut), "shoulder": cut.chest * 0.95, "neck": cut.chest * 0.6, "drop": high, "armpit": high + 0.1}
        )
        top.append(Piece(box(-0.7, -0.1, 0.7, high), hole=True))
        if kind == "straps":
            top += [line([(x, 0.0), (x * 1.1, high + 0.06)], 1.0, dice.real(0.03, 0.08)) for x in (-strap, strap)]
    elif kind != "none":
        long = dice.real(0.25, 0.5) if kind == "short" else dice.real(0.8, 1.1)
        steep = dice.real(40, 70) if kind == "short" else dice.real(68, 84)
        cut = Cut(**{**vars(cut), "sleeve": long, "angle": steep, "cuff": dice.real(0.14, 0.24)})
    pieces = [torso(cut, dice.real(0.0, 0.06)), *sleeves(cut, dice, 3)]
    for x in np.linspace(-0.8, 0.8, 5):
        if dice.chance(0.45):
            low = (x * cut.hem * dice.real(0.8, 1.05), length * dice.real(0.85, 0.99))
            pieces.append(line([(x * cut.waist, cut.waist_at + 0.1), low], dice.real(0.65, 1.2), dice.real(0.02, 0.05)))
    if dice.chance(0.4):
        at, high = cut.waist_at, dice.real(0.04, 0.1)
        pieces.append(
            Piece(box(-cut.waist * 1.01, at - high, cut.waist * 1.01, at + high), dice.real(0.4, 1.4), cloth=False)
        )
    neck = neckline(cut, dice, dice.one_of("round", "vee", "boat", "square")) if not top else []
    return pieces + top + neck


def front_line(cut: Cut, dice: Dice, top: float, tone: float, buttons: bool) -> list[Piece]:
    """Return the opening down the middle, with buttons beside or on it."""
    aside = dice.real(-0.05, 0.05)
    made = [line([(aside, top), (aside, cut.length)], tone, dice.real(0.025, 0.06))]
    if buttons:
        light = dice.real(0.3, 0.7) if dice.chance(0.5) else dice.real(1.3, 1.9)
        for y in np.linspace(top + 0.1, cut.length * 0.9, int(dice.real(3, 8))):
            made.append(dot(aside + 0.035, float(y), dice.real(0.02, 0.04), light))
    return made


def collar(cut: Cut, dice: Dice, depth: float) -> list[Piece]:
    """Return two flaps that meet below the neck, with the inside of the back between them."""
    outer, tone = cut.neck * dice.real(1.1, 1.5), dice.real(0.85, 1.15)
    inside = points((-cut.neck * 0.9, -0.03), (cut.neck * 0.9, -0.03), (0.0, depth * 0.8))
    flap = points((cut.neck * 0.85, -0.07), (outer, 0.05), (outer * 0.6, depth * 1.15), (0.01, depth * 0.75))
    pieces = [Piece(inside, dice.real(0.35, 0.75), cloth=False)]
    for area in (flap, mirrored(flap)):
        pieces.append(Piece(area, tone))
        pieces.append(line(area[1:], dice.real(0.5, 0.75), 0.025))
    return pieces


def coat(dice: Dice) -> list[Piece]:
    """A coat: long sleeves, open down the front, with lapels, a hood or a high collar, and longer than a shirt."""
    length = dice.real(1.3, 2.0)
    cut = long_sleeves(dice, body_cut(dice, length, chest=dice.real(0.46, 0.6)))
    cut = Cut(**{**vars(cut), "cuff": dice.real(0.16, 0.26)})
    pieces = [torso(cut), *sleeves(cut, dice, 3), *folds(cut, dice, 1)]
    edge = dice.real(0.3, 0.65)
    kind = dice.one_of("lapels", "lapels", "hood", "high")
    pieces += front_line(cut, dice, 0.25 if kind == "lapels" else 0.02, edge, dice.chance(0.6))
    if dice.chance(0.3):
        gap = dice.real(0.03, 0.12)
        pieces.append(
            Piece(points((-0.01, 0.3), (gap, length), (-gap, length)), hole=dice.chance(0.5), tone=0.3, cloth=False)
        )
    if kind == "lapels":
        pieces += collar(cut, dice, dice.real(0.35, 0.75))
    elif kind == "hood":
        pieces.append(Piece(soft(ellipse(0, 0.0, cut.neck * 1.5, dice.real(0.2, 0.34))), dice.real(0.75, 1.05)))
        pieces.append(Piece(ellipse(0, 0.03, cut.neck * 0.8, 0.15), dice.real(0.25, 0.6), cloth=False))
    else:
        pieces.append(Piece(box(-cut.neck, -dice.real(0.06, 0.16), cut.neck, 0.08), dice.real(0.8, 1.05)))
    if dice.chance(0.4):
        at = cut.waist_at
        pieces.append(Piece(box(-cut.waist, at - 0.05, cut.waist, at + 0.05), dice.real(0.5, 0.9), cloth=False))
    if dice.chance(0.6):
        at = dice.real(0.6, 0.75) * length
        for side in (-1, 1):
            pieces.append(line([(side * 0.18, at + 0.06), (side * 0.4, at)], edge, 0.04))
    return pieces


def shirt(dice: Dice) -> list[Piece]:
    """A shirt or blouse: a collar, a row of buttons, long sleeves more often than short ones, thin cloth."""
    cut = body_cut(dice, dice.real(1.15, 1.55))
    kind = dice.one_of("long", "long", "long", "short", "sleeveless")
    if kind == "long":
        cut = long_sleeves(dice, cut)
    elif kind == "short":
        measures = {"sleeve": dice.real(0.35, 0.6), "angle": dice.real(35, 68), "cuff": dice.real(0.22, 0.34)}
        cut = Cut(**{**vars(cut), **measures})
    pieces = [torso(cut, dice.real(0.0, 0.12)), *sleeves(cut, dice, 4), *folds(cut, dice, 2)]
    edge = dice.real(0.5, 0.8)
    if dice.chance(0.8):
        pieces += front_line(cut, dice, 0.1, edge, dice.chance(0.8))
        pieces += collar(cut, dice, dice.real(0.12, 0.3))
    else:
        pieces += neckline(cut, dice, dice.one_of("round", "vee"))
    if dice.chance(0.4):
        side = 0.22 * cut.chest / 0.5
        pieces.append(
            line([(side, 0.42), (side, 0.6), (side * 1.9, 0.6), (side * 1.9, 0.42), (side, 0.42)], edge, 0.025)
        )
    return pieces


def trouser(dice: Dice) -> list[Piece]:
    """Trousers: a waistband and two legs with a gap between them."""
    length, waist = dice.real(1.9, 2.5), dice.real(0.28, 0.4)
    hip, crotch = waist * dice.real(1.02, 1.3), dice.real(0.5, 0.72)
    out = hip * dice.real(0.75, 1.2)
    gap = dice.real(0.0, 0.16)
    wide = hip * dice.real(0.35, 0.62) if dice.chance(0.8) else hip * dice.real(0.65, 0.95)
    knee = 0.5 * (crotch + length)
    right = points(
        (0.0, 0.0),
        (waist, 0.0),
        (hip, crotch * 0.75),
        ((hip + out) / 2 * dice.real(0.92, 1.02), knee),
        (out if out > gap + wide else gap + wide, length),
        (max(gap, out - wide), length),
        (gap * 0.6 + 0.02, knee),
        (0.0, crotch),
    )
    edge = dice.real(0.4, 0.8)
    pieces = [Piece(right, dice.real(0.94, 1.0)), Piece(mirrored(right), dice.real(0.94, 1.0))]
    pieces.append(Piece(box(-waist, 0.0, waist, dice.real(0.06, 0.14)), dice.real(0.7, 1.1), cloth=False))
    pieces.append(line([(0, 0.05), (0, crotch)], edge, 0.03))
    if dice.chance(0.6):
        for side in (-1, 1):
            pieces.append(line([(side * waist * 0.4, 0.1), (side * hip * 0.9, 0.32)], edge, 0.03))
    if dice.chance(0.5):
        middle, tone = (out + gap) / 2, dice.real(0.75, 1.35)
        for side in (-1, 1):
            pieces.append(
                line([(side * hip * 0.5, crotch * 0.8), (side * middle, length * 0.97)], tone, dice.real(0.03, 0.14))
            )
    return pieces
