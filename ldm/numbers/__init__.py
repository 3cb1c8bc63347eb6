"""Numbers as text, in one way for every package: bounds rounded to their safe side, and durations."""

from ldm.numbers.durations import duration, time_left
from ldm.numbers.rounding import rounded_down, rounded_up

__all__ = ["duration", "rounded_down", "rounded_up", "time_left"]
