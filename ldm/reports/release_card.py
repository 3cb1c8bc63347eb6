"""The card of a release: `CARD.md`, and a page that prints on one sheet, from the same content."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from ldm.numbers import rounded_down, rounded_up
from ldm.privacy.card import ReleaseCard
from ldm.privacy.event import ADD_OR_REMOVE_ONE
from ldm.privacy.interpretation import Interpretation, interpret
from ldm.reports.release_facts import ReleaseFacts

TEMPLATES = Path(__file__).parent / "templates"
RELATIONS = {
    ADD_OR_REMOVE_ONE: "one record more or less",
    "replace_one": "one record exchanged for another",
}
SAMPLING = {"poisson": "Poisson", "without_replacement": "batches of a fixed size"}
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
TO_FILL_IN = "____________________"


@dataclass(frozen=True)
class CardContent:
    """The content of both forms of a card; numbers are rounded up, so that no text claims too much."""

    facts: ReleaseFacts
    card: ReleaseCard
    meaning: Interpretation

    @classmethod
    def make(cls, facts: ReleaseFacts, card: ReleaseCard) -> CardContent:
        """Compute the content from the ledger of ``card``; takes a few seconds and reads no file."""
        return cls(facts, card, interpret(card.spendings, card.plan.delta))

    @property
    def title(self) -> str:
        """The owner's title, or a general one."""
        return self.facts.title or "Images generated with differential privacy"

    @property
    def epsilon(self) -> str:
        """The smallest known bound on epsilon, rounded up."""
        return rounded_up(next(iter(self.card.epsilons().values()), math.inf))

    @property
    def delta(self) -> str:
        """Delta as a number times a power of ten."""
        return power_of_ten(self.card.plan.delta)

    @property
    def statement(self) -> str:
        """The statement of ``privacy.json`` with the relation in words."""
        plan, record = self.card.plan, self.card.record
        statement = self.card.statement().replace(
            f", {plan.relation}, record: {record}",
            f" between data sets with {RELATIONS[plan.relation]}; a record is {record}",
        )
        return statement.replace(f"{rounded_up(plan.delta, 6)})", f"{self.delta})")

    @property
    def not_covered(self) -> str:
        """The exceptions of the guarantee, or what lies outside it in every case."""
        return "; ".join(self.card.not_covered) or (
            "Nothing in this release. Outside it are the images themselves, the folder of the run, caches, and scores "
            "that were computed from private images."
        )

    @property
    def guess(self) -> str:
        """Upper bound on the share of right guesses whether a person is in, in percent (a coin: 50 %)."""
        return percent(self.meaning.guess)

    @property
    def recognised(self) -> str:
        """Upper bound on the share of members that are recognised at 1 % false accusations, in percent."""
        return percent(self.meaning.rate_at_one_percent)

    @property
    def protected(self) -> str:
        """The persons whom the guarantee protects, in a sentence."""
        return (
            f"Every person with one record in the training set; a record is {self.card.record}. A person with several "
            "records has the weaker protection of a group."
        )

    @property
    def other_terms(self) -> list[tuple[str, str]]:
        """Name and value of the guarantee in other vocabularies."""
        meaning = self.meaning
        rows = [
            (f"epsilon by the {name.upper()} accountant", rounded_up(value))
            for name, value in self.card.epsilons().items()
        ]
        other = "no accountant" if meaning.other_epsilon is None else rounded_up(meaning.other_epsilon)
        rows.append((f"epsilon for {RELATIONS[meaning.other_relation]}", other))
        rows.append(("Gaussian DP, mu at the same epsilon and delta", rounded_up(meaning.gaussian_mu)))
        rows.append(("members recognised at 1 % false accusations, at most", self.recognised))
        return rows

    @property
    def mechanism(self) -> list[tuple[str, str]]:
        """Name and value of the public constants of the run."""
        plan = self.card.plan
        return [
            ("neighbouring data sets", RELATIONS[plan.relation]),
            ("noised steps", f"{self.card.ledger.count(plan.event())} of {plan.steps} planned"),
            ("sample rate", f"{plan.sample_rate:.4g} ({SAMPLING.get(plan.sampling, plan.sampling)})"),
            ("clipping norm C", f"{plan.max_grad_norm:g}"),
            ("noise multiplier", f"{plan.noise_multiplier:.4g}"),
            ("stated number of records", "not stated" if plan.num_records is None else f"{plan.num_records:,}"),
            ("values trained", f"{sum(self.card.trained.values()):,}"),
        ]

    @property
    def beside_the_steps(self) -> list[tuple[str, str]]:
        """Name and description of what else the epsilon charges; too long for a narrow column."""
        selection = self.card.plan.selection
        return [
            *([("Statistics before the steps", "; ".join(self.statistics))] if self.card.statistics else []),
            *([("Selection", selection.describe())] if selection is not None else []),
            *([("Other private runs, charged in full", self.other_runs)] if self.card.others else []),
        ]

    @property
    def statistics(self) -> list[str]:
        """Each released statistic: its name, how often it was queried, and the noise multiplier of a query."""
        found = []
        for entry in self.card.statistics:
            count = int(entry.get("count", 1))
            often = "once" if count == 1 else f"{count} times"
            found.append(f"{entry['name']}, {often}, noise multiplier {float(entry['noise_multiplier']):.4g}")
        return found

    @property
    def other_runs(self) -> str:
        """The number of other private runs, and of their steps."""
        steps = sum(account.ledger.steps for account in self.card.others)
        return f"{len(self.card.others)}, with {steps:,} noised steps"

    @property
    def audit(self) -> list[tuple[str, str]]:
        """Name and result of each part of the audit; empty without one."""
        found = self.card.audit
        rows = []
        if bound := found.get("bound"):
            steps = f"{bound['steps']} step{'s' * (bound['steps'] != 1)}"
            rows.append(
                (
                    "Leak that was measured",
                    f"epsilon of at least {rounded_down(bound['lower_bound'])} with {bound['confidence']:.0%} "
                    f"confidence; the same {steps} may cost {rounded_up(bound['claimed_epsilon'])} "
                    f"({bound['canaries']:,} canaries, method {bound['method']})"
                    + ("; the statistics were not audited" if self.card.statistics else ""),
                )
            )
        if draws := found.get("draws"):
            rows.append(("Draws of records", "independent, at the planned rate" if not draws["exceeded"] else "WRONG"))
        if moved := found.get("sensitivity"):
            rows.append(
                (
                    "Largest effect of one record",
                    f"{moved['largest']:.6g} C on the clipped sum, at most {moved['bound']:g} C is allowed "
                    f"({moved['records']} records)",
                )
            )
        return [*rows, ("Measured on", str(found["on"]))] if rows else []

    def owner(self) -> list[tuple[str, str]]:
        """Name and value of the owner's statements; a missing one becomes a blank to fill in."""
        facts = self.facts
        return [
            ("Curator", facts.curator or TO_FILL_IN),
            ("Contact", facts.contact or TO_FILL_IN),
            ("Intended use", facts.intended_use or TO_FILL_IN),
            ("Tuning: what was tried, on which data", facts.tuning or TO_FILL_IN),
            ("Licence", facts.licence or TO_FILL_IN),
            *([("Audit", facts.audit or "none was made")] if facts.audit or not self.audit else []),
            ("Date", facts.date or TO_FILL_IN),
        ]


def card_text(content: CardContent) -> str:
    """The card as Markdown."""
    return _environment().get_template("card.md.j2").render(card=content)


def card_page(content: CardContent) -> str:
    """The card as one self-contained HTML page that prints on one sheet of A4."""
    return _environment().get_template("card.html.j2").render(card=content)


def power_of_ten(value: float) -> str:
    """A small number, rounded up, as people write it: 0.001, 1.515·10⁻⁶."""
    digits, _, exponent = rounded_up(value).partition("e")
    return digits if not exponent else f"{digits}·10{str(int(exponent)).translate(RAISED)}"


def percent(share: float) -> str:
    """A share in percent with one digit, rounded up."""
    return f"{min(math.ceil(share * 1000 - 1e-9) / 10, 100.0):.1f} %"


def in_markdown(text: object) -> str:
    """A text for Markdown, also in a table: it can neither begin HTML, such as a comment that hides the rest, nor a
    column."""
    return str(text).replace("<", "&lt;").replace("|", "\\|")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html", "html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = in_markdown
    return environment
