"""Range of stored pixels; every reader of sample files, caches and training files uses these rules.

=====================================  ==================================================================
uint8                                  0 is black and 255 is white; images of 0 and 1 only are refused
floats of any precision                in [-1, 1] when the file says so (our own), or has a negative value
floats without a negative value        in [0, 1] without such metadata, as in older files, with one log line
NaN, infinite values, other ranges     refused, with the range that was found
=====================================  ==================================================================

The whole file is examined, never single batches, because the values of one batch may lie in [0, 1] by chance.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.errors import UserError

logger = logging.getLogger(__name__)

# Decoders slightly overshoot [-1, 1], and older samplers saved their output without clamping. A larger share of values
# beyond this bound means another scale (0-255, standardised); clamping would silently saturate such images.
OVERSHOOT_BOUND, OVERSHOOT_SHARE = 1.5, 0.01


@dataclass(frozen=True)
class PixelRange:
    """The range of a file's pixels: stored values divided by ``half``, minus ``shift``, are in [-1, 1]."""

    half: float
    shift: float

    def to_signed(self, images: Tensor) -> Tensor:
        """Stored pixels as float32 clamped to [-1, 1], with the same shape."""
        return (images.float() / self.half - self.shift).clamp(-1, 1)


BYTES = PixelRange(127.5, 1.0)
UNIT = PixelRange(0.5, 1.0)
SIGNED = PixelRange(1.0, 0.0)


def require_levels(blocks: Iterable[Tensor], where: str) -> None:
    """Raise UserError for uint8 images that hold 0 and 1 only: masks, which would be read as black.

    Reads until the first pixel above 1, which is in the first block of other images.
    """
    ones = False
    for block in blocks:
        most = int(block.max())
        if most > 1:
            return
        ones |= most == 1
    if ones:
        raise UserError(f"{where}: uint8 images of 0 and 1 only, where white is 255; multiply them by 255")


def find_range(blocks: Iterable[Tensor], where: str, *, is_signed: bool) -> PixelRange:
    """The range of float images in blocks (B, ...), found in one pass over all blocks.

    Args:
        where: names the file in messages.
        is_signed: whether the file says that its range is [-1, 1].

    Raises:
        UserError: for NaN or infinite values, and for ranges that are neither [-1, 1] nor [0, 1].
    """
    low, high = float("inf"), float("-inf")
    bad = beyond = count = total = 0
    for block in blocks:
        count, total = count + len(block), total + block.numel()
        least, most = (float(bound) for bound in torch.aminmax(block))
        if least >= -OVERSHOOT_BOUND and most <= OVERSHOOT_BOUND:  # false for NaN
            low, high = min(low, least), max(high, most)
            continue
        finite = torch.isfinite(block)
        bad += int((~finite.flatten(1).all(dim=1)).sum())
        beyond += int((block.abs() > OVERSHOOT_BOUND).sum())
        if finite.any():
            low, high = min(low, float(block[finite].min())), max(high, float(block[finite].max()))
    if bad:
        raise UserError(f"{where}: {bad} of {count} images hold NaN or infinite values")
    if beyond > OVERSHOOT_SHARE * total:
        raise UserError(f"{where}: pixel values lie in [{low:.3g}, {high:.3g}]; expected [-1, 1], [0, 1] or uint8")
    if is_signed or low < 0:
        return SIGNED
    logger.warning("%s: no negative pixel, and nothing says the range: read as an older file in [0, 1]", where)
    return UNIT
