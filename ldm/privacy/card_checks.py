"""Consistency checks of a privacy card: its stated values against its own plan and ledger."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError
from ldm.numbers import rounded_up
from ldm.privacy.accounting import epsilon
from ldm.privacy.card_form import form_finding
from ldm.privacy.event import REPLACE_ONE, SamplingEvent

if TYPE_CHECKING:
    from ldm.privacy.card import ReleaseCard

#: A stated epsilon may differ by this share from one computed now, since accountants change between versions.
TOLERANCE = 2e-3

#: Limits above those of any run; a ledger beyond them would take the accountants minutes.
MAX_EVENTS = 16
MAX_STEPS = 1_000_000
MAX_LOSS = 1e5

#: Parts of an audit, by the names of `ldm.reports.audit.Audit`.
AUDIT_PARTS = ("bound", "draws", "sensitivity")

_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_size(card: ReleaseCard) -> None:
    """Raise UserError for a ledger larger than that of any run, which would take minutes to account for."""
    history = [entry for events, _ in card.spendings for entry in events]
    steps = sum(count for _, count in history)
    different = len({event for event, _ in history})
    if different > MAX_EVENTS:
        raise UserError(f"the privacy card's ledger lists {different} different events, more than {MAX_EVENTS}")
    if steps > MAX_STEPS:
        raise UserError(f"the privacy card's ledger lists {steps} steps, more than {MAX_STEPS}")
    # the expected privacy loss of all steps, to first order; the accountants' grids grow with it
    loss = sum(count * event.sample_rate / event.noise_multiplier**2 / 2 for event, count in history)
    if loss > MAX_LOSS and min(event.noise_multiplier for event, _ in history) > 0.02:
        raise UserError(f"the privacy card's ledger spends an epsilon of about {loss:.1g}, which bounds nothing")


def check_card(values: Mapping[str, Any], card: ReleaseCard) -> None:
    """Raise UserError for the first entry of ``values`` that contradicts their plan and ledger.

    ``card`` was made from the same values; epsilon is computed from its ledger again.
    """
    check_size(card)
    for find in (
        _ledger_finding,
        _statistics_finding,
        _epsilon_finding,
        _fact_finding,
        _weights_finding,
        _audit_finding,
        _statement_finding,
        form_finding,
    ):
        finding = find(values, card)
        if finding:
            raise UserError(f"the privacy card does not agree with itself: {finding}; take the card that the run wrote")


def _ledger_finding(values: Mapping[str, Any], card: ReleaseCard) -> str:
    if not card.ledger.steps:
        return "its ledger is empty, so nothing was released, or entries were taken out"
    planned = card.plan.event()
    others = sum(count for event, count in card.ledger.events if event != planned)
    if others > sum(int(statistic.get("count", 1)) for statistic in card.statistics):
        return f"{others} of the {card.ledger.steps} steps in its ledger are not steps of its plan"
    reasons = [reason for account in card.others if (reason := account.composes_with(card.plan))]
    return f"another run cannot be charged: {reasons[0]}" if reasons else ""


def _statistics_finding(values: Mapping[str, Any], card: ReleaseCard) -> str:
    """The first statistic with other noise than the ledger charges, or noise on the ledger that no statistic has."""
    named: Counter[SamplingEvent] = Counter()
    for statistic in card.statistics:
        noise, relation = float(statistic["noise_multiplier"]), str(statistic.get("relation", card.plan.relation))
        named[SamplingEvent(1.0, noise, relation=relation)] += int(statistic.get("count", 1))
        bound, std = statistic.get("constants", {}).get("bound"), statistic.get("noise_std")
        if bound is not None and std is not None:
            right = noise * bound * (2 if relation == REPLACE_ONE else 1)
            if not math.isclose(std, right, rel_tol=1e-9):
                return f"a statistic's noise_std is {_brief(std)}, its noise multiplier and bound give {right!r}"
    charged: Counter[SamplingEvent] = Counter()
    for event, count in card.ledger.events:
        charged[event] += count
    for event, count in named.items():
        if charged[event] < count:
            return (
                f"{count} statistics have noise multiplier {event.noise_multiplier:g}, its ledger charges "
                f"{charged[event]} of them"
            )
    for event, count in charged.items():
        if event != card.plan.event() and count > named[event]:
            return (
                f"its ledger charges {count} releases with noise multiplier {event.noise_multiplier:g}, it names "
                f"{named[event]} of them"
            )
    return ""


def _epsilon_finding(values: Mapping[str, Any], card: ReleaseCard) -> str:
    stated, computed = values["epsilon"], card.epsilons()
    if not isinstance(stated, Mapping) or not stated or not set(stated) <= set(computed):
        return f"epsilon is stated as {_brief(stated)}, its ledger can be judged by {', '.join(computed)}"
    if next(iter(computed)) not in stated:
        return f"epsilon by {next(iter(computed))} is not stated"
    for name, value in stated.items():
        number = math.inf if value == "infinite" else value
        if isinstance(number, bool) or not isinstance(number, int | float) or not _close(number, computed[name]):
            return f"epsilon by {name} is stated as {_brief(value)}, its ledger gives {computed[name]:.6g}"
    return ""


def _fact_finding(values: Mapping[str, Any], card: ReleaseCard) -> str:
    now = card.to_dict()
    for key in ("private", "delta", "relation", "record", "rng"):
        if values[key] != now[key] or type(values[key]) is not type(now[key]):
            return f"{key} is stated as {_brief(values[key])}, its plan and ledger say {now[key]!r}"
    steps = values["steps"]
    taken = sum(count for event, count in card.ledger.events if event == card.plan.event())
    numbers = isinstance(steps, Mapping) and set(steps) == {"taken", "planned"} and set(map(type, steps.values()))
    if numbers != {int} or steps.get("taken") not in (card.ledger.steps, taken):
        return f"steps are stated as {_brief(steps)}, its ledger has {card.ledger.steps}"
    if steps.get("planned") != card.plan.steps:
        return f"steps are stated as {_brief(steps)}, its plan has {card.plan.steps}"
    coordinates = sum(card.trained.values())
    if values["trained"].get("coordinates") != coordinates:
        return (
            f"{_brief(values['trained'].get('coordinates'))} trained coordinates are stated, {coordinates} are listed"
        )
    return ""


def _weights_finding(values: Mapping[str, Any], card: ReleaseCard) -> str:
    for digest, steps in card.weights.items():
        if not _DIGEST.fullmatch(digest):
            return f"{_brief(digest)} is no digest of weights"
        if not 0 <= steps <= card.ledger.steps:
            return f"weights after {steps} steps are named, its ledger has {card.ledger.steps}"
    return ""


def _audit_finding(values: Mapping[str, Any], card: ReleaseCard) -> str:
    return audit_finding(card.audit, card) if card.audit else ""


def audit_finding(audit: Mapping[str, Any], card: ReleaseCard) -> str:
    """The first reason not to rely on an audit of the card's plan: one of another claim, or one that failed; or ""."""
    if not set(AUDIT_PARTS) & set(audit):
        return "its audit has no part that measured anything"
    for name in AUDIT_PARTS:
        if name in audit and audit[name].get("exceeded") is not False:
            return f"its audit failed: {_brief(audit[name].get('verdict'))}"
    bound, spread = audit.get("bound"), audit.get("sensitivity")
    if bound is not None:
        steps = card.ledger.count(card.plan.event())
        claim = epsilon([(card.plan.event(), steps)], card.plan.delta)
        if bound["steps"] != steps or bound["delta"] != card.plan.delta or not _close(bound["claimed_epsilon"], claim):
            return (
                f"its audit compares with epsilon {_brief(bound['claimed_epsilon'])}, its plan's steps cost {claim:.6g}"
            )
        if not 0 <= bound["lower_bound"] <= bound["claimed_epsilon"]:
            return f"its audit found epsilon {_brief(bound['lower_bound'])}, more than is claimed"
    if spread is not None and not spread["largest"] <= spread["bound"] + spread["tolerance"]:
        return f"its audit found a record that moves the sum by {_brief(spread['largest'])} C"
    return ""


def _statement_finding(values: Mapping[str, Any], card: ReleaseCard) -> str:
    stated = next(values["epsilon"][name] for name in card.epsilons() if name in values["epsilon"])
    right = card.statement_at(math.inf if stated == "infinite" else stated)
    if values["statement"] not in (right, _with_nearest_numbers(right, stated, card.plan.delta)):
        return f"it states {_brief(values['statement'])} instead of {right!r}"
    return ""


def _with_nearest_numbers(statement: str, spent: float | str, delta: float) -> str:
    """The statement as it was written until November 2026; its numbers may be below those that were spent."""
    if isinstance(spent, str):
        return statement
    upper, lower = (rounded_up(spent), rounded_up(delta, 6)), (f"{spent:.4g}", f"{delta:g}")
    for words in ("({}, {})-differentially", "epsilon {} at delta {}"):
        statement = statement.replace(words.format(*upper), words.format(*lower))
    return statement


def _close(stated: float, computed: float) -> bool:
    if math.isinf(stated) or math.isinf(computed):
        return stated == computed
    return abs(stated - computed) <= TOLERANCE * computed + 1e-9


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
