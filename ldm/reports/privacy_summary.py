"""The figures of a privacy card for an evaluation."""

from __future__ import annotations

from pathlib import Path

from ldm.evaluation.result import PrivacySummary, build
from ldm.privacy.card import ReleaseCard
from ldm.reports.run_metrics import read_metric, thinned

CARD_NAME = "privacy.json"
CURVE_POINTS = 200


def read_privacy(path: str | Path) -> PrivacySummary:
    """The figures of a privacy card, or of the card in a run directory, and epsilon by step if it was logged.

    Raises UserError when there is no card.
    """
    path = Path(path)
    card_path = path / CARD_NAME if path.is_dir() else path
    card = ReleaseCard.read(card_path).to_dict()
    curve = thinned(read_metric(card_path.parent, "privacy/epsilon"), CURVE_POINTS)
    content = {**card, "trained_coordinates": card["trained"]["coordinates"], "curve": curve}
    return build(PrivacySummary, content, str(card_path))


def budget_of(card: str | Path) -> tuple[float, float]:
    """Epsilon (of the tightest accountant) and delta that a privacy card states. Raises UserError."""
    read = ReleaseCard.read(card)
    return next(iter(read.epsilons().values())), read.plan.delta
