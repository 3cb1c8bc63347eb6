"""The figures of a privacy card for an evaluation."""

from __future__ import annotations

from pathlib import Path

from ldm.evaluation.result import PrivacySummary, build
from ldm.privacy.accounting import epsilon_curve
from ldm.privacy.card import ReleaseCard

CURVE_POINTS = 50


def read_privacy(path: str | Path) -> PrivacySummary:
    """The figures of a privacy card, or of the card in a run directory, and the exact epsilon by step.

    Raises UserError when there is no card.
    """
    read = ReleaseCard.read(path)
    card = read.to_dict()
    content = {**card, "trained_coordinates": card["trained"]["coordinates"], "curve": spending_curve(read)}
    return build(PrivacySummary, content, str(path))


def spending_curve(card: ReleaseCard) -> list[tuple[int, float]]:
    """(step, epsilon) over the run's steps, computed from the ledger for every point; earlier releases come first."""
    event = card.plan.event()
    taken = card.ledger.count(event)
    before = [entry for entry in card.ledger.events if entry[0] != event]
    counts = sorted({round(taken * place / CURVE_POINTS) for place in range(CURVE_POINTS + 1)})
    return epsilon_curve(event, counts, card.plan.delta, before)


def budget_of(card: str | Path) -> tuple[float, float]:
    """Epsilon (of the tightest accountant) and delta of a privacy card, or of a run directory's. Raises UserError."""
    read = ReleaseCard.read(card)
    return next(iter(read.epsilons().values())), read.plan.delta
