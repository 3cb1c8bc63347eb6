"""Durations as text, short enough for a line of progress.

>>> duration(40), duration(540), duration(9000), duration(1e6)
('40 s', '9 min', '2.5 h', '11.6 days')
"""

from __future__ import annotations

MINUTE, HOUR, DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """A duration of ``seconds`` in a unit of which there are at least one and a half (days: two), 1 s at least."""
    if seconds < 1.5 * MINUTE:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 1.5 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    if seconds < 2 * DAY:
        return f"{seconds / HOUR:.1f} h"
    return f"{seconds / DAY:.1f} days"


def time_left(seconds: float) -> str:
    """An estimate of the remaining ``seconds`` in words."""
    return "under a minute left" if seconds < MINUTE else f"about {duration(seconds)} left"
