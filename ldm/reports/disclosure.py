"""A verified release as a registry entry, a label and a checklist for the offices that ask for them.

- ``registry.json``: the fields of tier 3 of the OpenDP deployments registry, in the registry's order.
- ``label.json``: the fields of the differential-privacy label (arXiv 2507.15997), with a line for lay readers each.
- ``nist-800-226.md``: the questions of NIST SP 800-226 from the top of its pyramid to the bottom, answered where the
  release proves an answer, and marked for the curator where it cannot.

Each field comes from the card, the plan or the owner's statements; a missing statement is the text of `OPEN`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.cli import typed
from ldm.errors import UserError
from ldm.files import check_new_folder, new_folder
from ldm.privacy.event import History
from ldm.reports.release_card import RELATIONS, CardContent
from ldm.reports.release_folder import ReleaseFolder
from ldm.reports.verification import verify_release

REGISTRY, LABEL, CHECKLIST = "registry.json", "label.json", "nist-800-226.md"
OPEN = "to be stated by the curator"
#: Epsilons above this are outside the range that the label calls ideal for one release.
IDEAL_EPSILON = 1.0


def export_disclosure(release: Path, out: Path) -> tuple[Path, ...]:
    """Write the three documents into the new folder ``out``; returns their paths.

    Raises UserError for a release that does not verify, and for an existing ``out``.
    """
    check_new_folder(out)
    if not verify_release(release).sound:
        raise UserError(f"{release}: does not verify; type dp-ldm verify {typed(release)} to see why")
    whole = ReleaseFolder(release)
    content = CardContent.make(whole.read_facts(), whole.read_card())
    texts = {
        REGISTRY: json.dumps(registry_entry(content), indent=2, ensure_ascii=False) + "\n",
        LABEL: json.dumps(label(content), indent=2, ensure_ascii=False) + "\n",
        CHECKLIST: checklist(content),
    }
    with new_folder(out) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    return tuple(out / name for name in texts)


def registry_entry(content: CardContent) -> dict[str, Any]:
    """The fields of tier 3 of the deployments registry: those of tiers 1 and 2 first."""
    facts, card, plan = content.facts, content.card, content.card.plan
    return {
        "tier": 3,
        "name": content.title,
        "data_curator": facts.curator or OPEN,
        "contact": facts.contact or OPEN,
        "intended_use": facts.intended_use or OPEN,
        "data_product": "weights of a generative model of images, and any images drawn from it",
        "release_type": "one static release",
        "publication_date": facts.date or OPEN,
        "dp_flavour": {"name": "approximate DP", "input_metric": RELATIONS[plan.relation], "output_measure": "(ε, δ)"},
        "privacy_loss": {"epsilon": float(content.epsilon), "delta": plan.delta, "zcdp_rho": stated_rho(content)},
        "privacy_unit": card.record,
        "deployment_model": {"name": "central", "actors": "the curator trains on the plain images and is trusted"},
        "data_domain": {
            "records": "images with a class label",
            "classes": list(facts.class_names) or OPEN,
            "stated_number_of_records": plan.num_records if plan.num_records is not None else "not stated",
        },
        "unprotected_quantities": unprotected(content),
        "privacy_unit_description": content.protected,
        "accounting": {
            "composition": accounting(content),
            "post_processing": "images drawn from the weights, and scores on public data, cost nothing further",
            "accountants": card.epsilons(),
            "other_relation": {
                "relation": RELATIONS[content.meaning.other_relation],
                "epsilon": content.meaning.other_epsilon,
            },
        },
        "parameter_choice": facts.tuning or OPEN,
        "implementation": {"software": "dp-ldm", "versions": dict(card.versions), "audit": audit(content) or "none"},
        "security": security(content),
    }


def unprotected(content: CardContent) -> list[str]:
    """Quantities of the data that epsilon does not protect, because they are declared public."""
    found = ["the stated number of records", "image size, channels and the settings of the run"]
    if content.facts.class_names:
        found.append("the list of classes and their names")
    return [*found, *content.card.not_covered]


def accounting(content: CardContent) -> str:
    """What the stated epsilon charges, in a sentence: steps, statistics, other private runs, a selection among runs."""
    card, plan = content.card, content.card.plan
    count = card.ledger.count(plan.event())
    steps = f"{count} steps of DP-SGD (rate {plan.sample_rate:.4g}, noise {plan.noise_multiplier:.4g})"
    names = [str(statistic.get("name", "a statistic")) for statistic in card.statistics]
    others = [f"other private runs ({content.other_runs})"] if card.others else []
    sentence = " and ".join([steps, *names, *others]) + ", composed in one account"
    return sentence if plan.selection is None else f"{sentence}; {plan.selection.describe()}"


def audit(content: CardContent) -> str:
    """The measurements of `dp-ldm audit` that the card holds, and the owner's sentence; "" without either."""
    measured = [f"{name}: {value}" for name, value in content.audit]
    return "; ".join([*measured, *([content.facts.audit] if content.facts.audit else [])])


def security(content: CardContent) -> dict[str, str]:
    """Measures of the implementation, with the reason for each."""
    secure = "secure" if content.card.plan.secure else "INSECURE"
    return {
        "random_numbers": f"{secure}: sampling, noise and loss draws from the operating system's entropy",
        "floating_point": "Gaussian noise in float arithmetic; no discrete mechanism, so the last bits are not covered",
        "side_channels": "batch sizes and times of single steps are not written; other side channels are not covered",
        "integrity": "SHA-256 of every file; plan and ledger inside the weights; dp-ldm verify recomputes epsilon",
    }


def stated_rho(content: CardContent) -> float | str:
    """`rho` of everything that the stated epsilon charges, in words where a selection among runs has no such sum."""
    spendings = content.card.spendings
    if any(selection is not None for _, selection in spendings):
        return "not computed for the best of a random number of runs"
    return rho([entry for events, _ in spendings for entry in events])


def rho(events: History) -> float:
    """An upper bound on zCDP's rho under the events' relation: the sum of 1 / (2 sigma²), without credit for sampling.

    Source: Bun and Steinke 2016 (arXiv 1605.02065), proposition 1.6 and lemma 1.7; sampling only lowers the loss.
    """
    return sum(count / (2 * event.noise_multiplier**2) for event, count in events)


def label(content: CardContent) -> dict[str, Any]:
    """The fields of the label; every one with its value and an explanation for lay readers."""
    plan = content.card.plan
    epsilon = float(content.epsilon)

    def row(value: object, words: str) -> dict[str, object]:
        return {"value": value, "explanation": words}

    return {
        "title": content.title,
        "total_budget": row(epsilon, "What this release may reveal about one person in all; smaller is safer."),
        "remaining_budget": row(OPEN, "What the curator still allows to be spent on the same images."),
        "per_query_budget": row(epsilon, "The release is one query: weights, and everything drawn from them."),
        "epsilon": row(
            epsilon, f"An attacker's best guess whether a person is in is right in {content.guess} at most."
        ),
        "delta": row(plan.delta, "The chance that the bound of epsilon does not hold; far below one person's share."),
        "rho": row(stated_rho(content), "The same loss in another vocabulary (zCDP), as an upper bound."),
        "unit_of_privacy": row(content.card.record, "Who is protected: a person with one such record."),
        "outside_ideal_range": row(
            epsilon > IDEAL_EPSILON,
            f"Whether epsilon is above {IDEAL_EPSILON:g}, where protection is no longer strong.",
        ),
        "mechanism": row("Gaussian", "Noise from a bell curve is added to bounded contributions."),
        "contact": row(content.facts.contact or OPEN, "Whom to ask."),
    }


#: The questions by layer of the pyramid, each with its key among the answers of `checklist`; "" for the curator alone.
QUESTIONS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "Top: what is promised": (
        ("What are epsilon and delta, and what do they mean?", "promise"),
        ("What is the unit of privacy?", "unit"),
        ("Under which neighbouring relation?", "relation"),
    ),
    "Middle: whether it is kept": (
        ("Which mechanism, and is its sensitivity bounded by construction?", "mechanism"),
        ("Is every release in one account?", "accounting"),
        ("Was tuning charged, or done on public data?", "tuning"),
        ("Which trust model?", "trust"),
        ("Random numbers, floating point, side channels?", "security"),
        ("Was the implementation tested or audited?", "audit"),
        ("How useful are the data, and for small groups?", ""),
    ),
    "Bottom: the data themselves": (
        ("What is not covered?", "uncovered"),
        ("Were people asked, and is the collection minimal?", ""),
        ("Who can reach the raw images, the caches and the run directory?", ""),
        ("When are the raw images deleted?", ""),
    ),
}


def checklist(content: CardContent) -> str:
    """The questions with answers as Markdown; an empty box where the release cannot answer."""
    facts, plan, safe = content.facts, content.card.plan, security(content)
    answers = {
        "promise": f"{content.card.statement()}. A guess is right in {content.guess} of cases at most (coin: 50 %).",
        "unit": content.protected,
        "relation": RELATIONS[plan.relation],
        "mechanism": f"Gaussian, each record's contribution clipped to {plan.max_grad_norm:g}, measured in the step.",
        "accounting": accounting(content) + "; recomputed by dp-ldm verify with every accountant that can judge it.",
        "tuning": facts.tuning,
        "trust": "central: the curator sees the plain images; recipients see the release alone.",
        "security": "; ".join(safe.values()),
        "audit": audit(content),
        "uncovered": "; ".join(unprotected(content)),
    }
    lines = [f"# {content.title}: questions of NIST SP 800-226", ""]
    for layer, questions in QUESTIONS.items():
        lines += [f"## {layer}", ""]
        for question, key in questions:
            answer = answers.get(key, "")
            lines.append(f"- [{'x' if answer else ' '}] **{question}** {answer or OPEN}")
        lines.append("")
    return "\n".join(lines)
