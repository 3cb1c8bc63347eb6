"""`AuditFile`: the ``audit.json`` of a run directory, and its form on a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.files import read_json, write_json
from ldm.privacy.card import ReleaseCard
from ldm.privacy.card_checks import AUDIT_PARTS, audit_finding
from ldm.privacy.plan import PrivacyPlan

AUDIT = "audit.json"
FORMAT = "dp-ldm audit"
VERSION = 1
LARGEST = 2**20
MADE_UP = "canaries, and records that are made up; no private image was read"


@dataclass(frozen=True)
class AuditFile:
    """What was measured on a plan: ``parts`` by name (`ldm.reports.audit.Audit.to_dict`), as plain JSON values.

    ``plan`` has as many steps as were audited.
    """

    plan: PrivacyPlan
    parts: Mapping[str, Any]

    @classmethod
    def make(cls, plan: PrivacyPlan, parts: Mapping[str, Any], before: AuditFile | None = None) -> AuditFile:
        """The file of new ``parts``, with those of ``before`` that were measured on the same plan and not again."""
        kept = before.parts if before is not None and before.plan == plan else {}
        return cls(plan, _plain({**kept, **parts}))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an unbounded number is the word "infinite"."""
        return {"format": FORMAT, "version": VERSION, "on": MADE_UP, "plan": self.plan.to_dict(), **self.parts}

    def write(self, path: Path) -> None:
        """Write the file, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def read(cls, path: Path) -> AuditFile:
        """Read a file of `write`. Raises UserError naming the file."""
        values = read_json(path, LARGEST)
        if not isinstance(values, Mapping) or values.get("format") != FORMAT or values.get("version") != VERSION:
            raise UserError(f"{path}: not a {FORMAT} of version {VERSION}; type dp-ldm audit again")
        try:
            plan = PrivacyPlan.from_dict(values["plan"])
        except (KeyError, TypeError, UserError) as error:
            raise UserError(f"{path}: the audit's plan is damaged ({error}); type dp-ldm audit again") from None
        return cls(plan, {name: values[name] for name in AUDIT_PARTS if name in values})

    def for_card(self, card: ReleaseCard, path: object) -> dict[str, Any]:
        """The audit as ``privacy.json`` holds it. Raises UserError for an audit of another plan, and for a failed one.

        A run that has gone on since is audited again, because its claim has grown.
        """
        audited = {**self.plan.to_dict(), "steps": card.plan.steps}
        taken = card.ledger.count(card.plan.event())
        if audited != card.plan.to_dict() or self.plan.steps != taken:
            raise UserError(
                f"{path}: was made for another plan, or for {self.plan.steps} steps where the run has {taken}; type "
                "dp-ldm audit RUN again, or remove the file"
            )
        values = {"on": MADE_UP, "steps": self.plan.steps, **self.parts}
        if finding := audit_finding(values, card):
            raise UserError(f"{path}: {finding}; do not release this run")
        return values


def _plain(values: Any) -> Any:
    """Nested containers in which infinite numbers are the word that JSON can hold."""
    if isinstance(values, Mapping):
        return {key: _plain(value) for key, value in values.items()}
    if isinstance(values, float) and values in (float("inf"), float("-inf")):
        return "infinite"
    return None if isinstance(values, float) and values != values else values
