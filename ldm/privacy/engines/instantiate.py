"""The plain hook engine materializes every per-record gradient, measures it and sums it.

Memory is records x parameters. It shares the layer rules with the book-keeping engine but none of its norm formulas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ldm.privacy.engines.base import Groups
from ldm.privacy.engines.bookkeeping import BookkeepingEngine
from ldm.privacy.engines.capture import Bundle, Use
from ldm.privacy.engines.layers import Contribution, Materialized
from ldm.privacy.engines.stacks import Stack


class InstantiateEngine(BookkeepingEngine):
    """Engine that keeps gradients of shape (records, *parameter shape)."""

    def arrange(
        self, uses: Sequence[Use], records: int, expected: Counter[Bundle], groups: Groups
    ) -> tuple[list[Use], list[Stack]]:
        return list(uses), []

    def form(self, contribution: Contribution) -> Contribution:
        return Materialized(contribution.per_record())
