"""`ReleaseCard`: the ``privacy.json`` of a run directory, which describes everything else in that directory."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.files import locked, read_json, write_text
from ldm.numbers import rounded_up
from ldm.privacy.account import Account, distinct
from ldm.privacy.accounting import Spending, accountants_for, epsilon, joint_epsilon
from ldm.privacy.card_checks import check_card, check_size
from ldm.privacy.card_form import COVERED
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan

#: Name of the card's file in a run directory and in a release.
CARD_FILE = "privacy.json"
FORMAT = "latent diffusion privacy card"
VERSION = 1
LARGEST = 16 * 2**20
"""Bytes of the largest card that is read; one that names every tensor of a large model has a hundredth of that."""

_PACKAGES = ("torch", "numpy", "dp-accounting", "opacus")


def _installed_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class ReleaseCard:
    """The guarantee of a release, with the data it covers and its exceptions.

    ``plan`` and ``ledger`` carry the numbers; epsilon is always computed from the ledger, never read back. ``trained``:
    parameter name to number of coordinates, all of them noised. ``left_out``: parameters of the selection that no
    record can reach and that stay at their public values. ``public_data``: names of the other data sets that trained
    the weights. ``not_covered``: releases other than through the mechanism, in words. ``statistics``: summaries of the
    statistics released before training, each with one event in the ledger (:meth:`Release.summary`). ``weights``:
    content digest of every checkpoint of the run (`ldm.checkpoint.state_digest`) to the number of steps behind it.
    ``others``: accounts of other private runs on the same records, or on whose weights this one started; epsilon
    charges all of them. ``audit``: what `ldm.privacy.audit` measured on this plan, by part, as plain values; empty
    without an audit.
    """

    plan: PrivacyPlan
    ledger: Ledger
    trained: Mapping[str, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    public_data: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()
    covered: tuple[str, ...] = COVERED
    record: str = "one image with its label"
    statistics: tuple[Mapping[str, Any], ...] = ()
    weights: Mapping[str, int] = field(default_factory=dict)
    others: tuple[Account, ...] = ()
    audit: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=_installed_versions)

    @property
    def private(self) -> bool:
        """Whether there is a guarantee for the whole release.

        It needs secret generators, no release outside the mechanism, and enough noise for a finite epsilon.
        """
        return self.plan.secure and not self.not_covered and math.isfinite(self._tightest())

    def epsilons(self) -> dict[str, float]:
        """Epsilon of all accounts by every quick accountant that covers them, the tightest first."""
        spendings = tuple((tuple(events), selection) for events, selection in self.spendings)
        return dict(_epsilons(spendings, self.plan.delta))

    @property
    def account(self) -> Account:
        """The run's own account."""
        return Account(self.plan, self.ledger)

    @property
    def spendings(self) -> tuple[Spending, ...]:
        """What this run and the others have spent."""
        return tuple(account.spending for account in (self.account, *self.others))

    def statement(self) -> str:
        """The guarantee in one line, exceptions included."""
        return self.statement_at(self._tightest())

    def statement_at(self, spent: float) -> str:
        """The line of :meth:`statement` when the tightest epsilon is ``spent``."""
        delta = rounded_up(self.plan.delta, 6)
        if not self.plan.secure:
            return (
                f"NOT private: insecure_seed {self.plan.insecure_seed} lets anyone subtract the noise"
                f" (with secret noise: epsilon {rounded_up(spent)} at delta {delta})"
            )
        if math.isinf(spent):
            return (
                f"NOT private: noise multiplier {self.plan.noise_multiplier:g} is too little for any epsilon at delta "
                f"{delta}"
            )
        guarantee = (
            f"({rounded_up(spent)}, {delta})-differentially private, {self.plan.relation}, record: {self.record}"
        )
        if self.plan.selection is not None:
            guarantee += f"; {self.plan.selection.describe()}"
        if self.others:
            guarantee += f"; {len(self.others)} other private run{'s' * (len(self.others) > 1)} included"
        return guarantee + (f"; NOT covered: {'; '.join(self.not_covered)}" if self.not_covered else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the most important ones first; an unbounded epsilon is the word "infinite"."""
        epsilons = self.epsilons()
        return {
            "format": FORMAT,
            "version": VERSION,
            "statement": self.statement(),
            "private": self.private,
            "epsilon": {name: value if math.isfinite(value) else "infinite" for name, value in epsilons.items()},
            "delta": self.plan.delta,
            "relation": self.plan.relation,
            "record": self.record,
            "rng": "secure" if self.plan.secure else "insecure",
            "steps": {"taken": self.ledger.count(self.plan.event()), "planned": self.plan.steps},
            "covered": list(self.covered),
            "not_covered": list(self.not_covered),
            "public_data": list(self.public_data),
            "trained": {"coordinates": sum(self.trained.values()), "parameters": dict(self.trained)},
            "left_out": list(self.left_out),
            "statistics": [dict(statistic) for statistic in self.statistics],
            "weights": [{"sha256": digest, "steps": steps} for digest, steps in self.weights.items()],
            **({"others": [account.to_dict() for account in self.others]} if self.others else {}),
            **({"audit": dict(self.audit)} if self.audit else {}),
            "versions": dict(self.versions),
            "plan": self.plan.to_dict(),
            "ledger": self.ledger.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReleaseCard:
        """Read :meth:`to_dict` back; raises UserError when it is of another format or damaged."""
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise UserError("not a privacy card")
        if values.get("version") != VERSION:
            raise UserError(f"privacy card of version {values.get('version')!r}, this program reads {VERSION}")
        if values.get("plan", ...) is None and values.get("private") is False:
            raise UserError("the run was trained without differential privacy: it has no epsilon")
        try:
            return cls(
                plan=PrivacyPlan.from_dict(values["plan"]),
                ledger=Ledger.from_dict(values["ledger"]),
                trained={str(name): int(count) for name, count in values["trained"]["parameters"].items()},
                left_out=tuple(values["left_out"]),
                public_data=tuple(values["public_data"]),
                not_covered=tuple(values["not_covered"]),
                covered=tuple(values["covered"]),
                record=str(values["record"]),
                statistics=tuple(dict(statistic) for statistic in values.get("statistics", ())),
                weights={str(entry["sha256"]): int(entry["steps"]) for entry in values.get("weights", ())},
                others=tuple(Account.from_dict(account) for account in values.get("others", ())),
                audit=dict(values.get("audit", {})),
                versions=dict(values["versions"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"the privacy card is damaged: {type(error).__name__} {str(error)[:80]}") from error

    def _tightest(self) -> float:
        return next(iter(self.epsilons().values()), math.inf)

    def write(self, path: str | Path) -> None:
        """Write JSON to ``path`` (readable by all), atomically. Write the card before the checkpoint it covers.

        Raises UserError when a card at ``path`` charges steps that this one does not, since a card must never drop a
        release. Resume with ``ledger.absorb(ReleaseCard.read(path).ledger)``. Two processes in one folder write one
        after the other, so that neither misses what the other charges.
        """
        target = Path(path)
        with locked(target.absolute().parent):
            self._write_over(target)

    def _write_over(self, target: Path) -> None:
        card = self
        if target.exists():
            before = _read(target, checked=False)
            if not self.ledger.covers(before.ledger):
                raise UserError(
                    f"{target} charges steps of another run that would be forgotten; use an empty run directory or "
                    "resume"
                )
            others = distinct((*before.others, *self.others))
            card = replace(self, weights={**before.weights, **self.weights}, others=others)
        text = json.dumps(card.to_dict(), indent=2, allow_nan=False) + "\n"
        write_text(target, text)

    @classmethod
    def read(cls, path: str | Path) -> ReleaseCard:
        """Read a card and check that it agrees with itself; epsilon is computed anew.

        ``path``: the file, or the folder that holds it (a run directory, a release). Raises UserError, naming the
        file, when it is missing, is no card, or was damaged or changed.
        """
        path = Path(path)
        return _read(path / CARD_FILE if path.is_dir() else path, checked=True)


def _read(path: Path, checked: bool) -> ReleaseCard:
    if not path.exists():
        raise UserError(f"{path}: no privacy card here; a private run directory has one")
    values = read_json(path, LARGEST)
    try:
        card = ReleaseCard.from_dict(values)
        check_size(card)
        if checked:
            check_card(values, card)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: the privacy card is damaged: {type(error).__name__} {str(error)[:80]}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return card


@lru_cache(maxsize=64)
def _epsilons(spendings: tuple[Spending, ...], delta: float) -> tuple[tuple[str, float], ...]:
    if any(selection is not None for _, selection in spendings):
        return (("rdp", joint_epsilon(spendings, delta)),)
    events = [entry for own, _ in spendings for entry in own]
    names = [name for name in accountants_for(events) if name != "prv"]
    return tuple((name, epsilon(events, delta, name)) for name in names)
