"""The form of a privacy card: the entries it may have, and texts that a reader sees as they are.

An entry that nothing checks could claim anything, and a text of several lines could look like a part of the card.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ldm.privacy.validate import is_line

if TYPE_CHECKING:
    from ldm.privacy.card import ReleaseCard

#: What the mechanism covers in every private run of this program.
COVERED = (
    "every checkpoint of the run: its trained parameters, their moving averages and the optimizer state",
    "everything computed from those checkpoints without the private records: samples, grids, scores on public data",
)

#: Entries that a card has only where there is something to say.
OPTIONAL = ("others", "audit")
#: Entries of a released statistic (`ldm.privacy.statistics.Release.summary`).
STATISTIC = frozenset({"name", "noise_multiplier", "relation", "noise_std", "numbers", "constants", "count"})
#: Entries that are written back exactly as they were read; the others are compared by rules of their own.
_EXACT = ("version", "not_covered", "public_data", "left_out", "trained", "statistics", "weights", "versions")


def form_finding(values: Mapping[str, Any], card: ReleaseCard) -> str:
    """The first entry of ``values`` that no card has, or that is not written as cards write it; or "".

    ``card`` was made from ``values``.
    """
    now = card.to_dict()
    for key in values:
        if key not in now and key not in OPTIONAL:
            return f"it has an entry {key!r}, which no card has"
    if card.covered != COVERED:
        return "what it covers is not what this program covers"
    for key in _EXACT:
        if key in values and _as_text(values[key]) != _as_text(now[key]):
            return f"{key} is not written as cards write it: {_as_text(values[key])[:80]}"
    for account in values.get("others", ()):
        if set(account) != {"plan", "ledger"}:
            return "the account of another run has other entries than plan and ledger"
    return _text_finding(card) or _statistic_finding(card)


def _text_finding(card: ReleaseCard) -> str:
    """The first text on the card that is no line."""
    shown: Iterable[object] = (
        *(card.record, *card.public_data, *card.left_out, *card.not_covered),
        *(*card.versions, *card.versions.values()),
    )
    return next((f"{str(text)[:60]!r} is not one line of text" for text in shown if not is_line(text)), "")


def _statistic_finding(card: ReleaseCard) -> str:
    """The first statistic without the entries of one."""
    for statistic in card.statistics:
        name, count = statistic.get("name"), statistic.get("count", 1)
        if unknown := sorted(set(statistic) - STATISTIC):
            return f"a statistic has an entry {unknown[0]!r}, which no statistic has"
        if not name or not is_line(name):
            return f"a statistic's name is {str(name)[:60]!r}, it must be a line of text"
        if type(count) is not int or count < 1:
            return f"{name} has count {str(count)[:60]!r}, it must be a whole number of at least 1"
        if not isinstance(statistic.get("constants", {}), Mapping):
            return f"{name} has constants that are no list of names and values"
    return ""


def _as_text(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
