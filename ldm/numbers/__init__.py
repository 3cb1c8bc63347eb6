"""Numbers as text, in one way for every package: bounds rounded to their safe side."""

from ldm.numbers.rounding import rounded_down, rounded_up

__all__ = ["rounded_down", "rounded_up"]
