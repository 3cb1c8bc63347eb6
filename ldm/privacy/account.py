"""`Account`: the plan and the ledger of one private run, as its checkpoints and cards carry them for other runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ldm.errors import UserError
from ldm.privacy.accounting import Spending, joint_epsilon
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan


@dataclass(frozen=True)
class Account:
    """What one private run has spent."""

    plan: PrivacyPlan
    ledger: Ledger

    @property
    def spending(self) -> Spending:
        """The ledger's events, and the selection of which the run is part."""
        return self.ledger.events, self.plan.selection

    def composes_with(self, plan: PrivacyPlan) -> str:
        """The reason for which this account and a run of ``plan`` have no joint epsilon; "" if they have one."""
        if not self.plan.secure:
            return "its noise has a known seed"
        if self.plan.relation != plan.relation:
            return f"its relation is {self.plan.relation}, that of this run {plan.relation}"
        if not self.ledger.steps:
            return "its ledger is empty"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"plan": self.plan.to_dict(), "ledger": self.ledger.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Account:
        """Read :meth:`to_dict` back. Raises UserError for a damaged account."""
        try:
            return cls(PrivacyPlan.from_dict(values["plan"]), Ledger.from_dict(values["ledger"]))
        except (KeyError, TypeError) as error:
            raise UserError(f"the account of a private run is damaged: {type(error).__name__} {error}") from None


def distinct(accounts: Iterable[Account]) -> tuple[Account, ...]:
    """The accounts without those that another one covers (an earlier state of the same run), in order."""
    found: list[Account] = []
    for account in accounts:
        if any(other.plan == account.plan and other.ledger.covers(account.ledger) for other in found):
            continue
        found = [other for other in found if other.plan != account.plan or not account.ledger.covers(other.ledger)]
        found.append(account)
    return tuple(found)


def epsilon_of(accounts: Iterable[Account], delta: float) -> float:
    """Epsilon at ``delta`` of everything that several runs have done to the same records."""
    return joint_epsilon([account.spending for account in accounts], delta)
