"""The plain hook engine materializes every per-record gradient, measures it and sums it.

Memory is records x parameters. It shares the layer rules with the book-keeping engine but none of its norm formulas.
"""

from __future__ import annotations

from ldm.privacy.engines.bookkeeping import BookkeepingEngine
from ldm.privacy.engines.layers import Contribution, Materialized


class InstantiateEngine(BookkeepingEngine):
    """Engine that keeps gradients of shape (records, *parameter shape)."""

    def form(self, contribution: Contribution) -> Contribution:
        return Materialized(contribution.per_record())
