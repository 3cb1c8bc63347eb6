"""Registry entry, label and checklist say what the card says, and leave open what only the curator knows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ldm.commands.table import dispatch
from ldm.errors import UserError
from ldm.privacy.account import Account
from ldm.privacy.card import ReleaseCard
from ldm.privacy.event import POISSON, SamplingEvent
from ldm.privacy.selection import Selection
from ldm.reports.disclosure import (
    OPEN,
    QUESTIONS,
    accounting,
    audit,
    checklist,
    registry_entry,
    rho,
    stated_rho,
)
from ldm.reports.release import release_run
from ldm.reports.release_card import CardContent
from ldm.reports.release_facts import ReleaseFacts
from ldm.training import train
from tests import tiny

TIER_3 = {
    *("data_curator", "intended_use", "data_product", "publication_date"),
    *("dp_flavour", "privacy_unit", "privacy_loss", "deployment_model"),
    *("data_domain", "unprotected_quantities", "privacy_unit_description", "accounting", "implementation", "security"),
}
LABEL = {"total_budget", "remaining_budget", "per_query_budget", "epsilon", "delta", "rho", "unit_of_privacy"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three documents of a private run of two steps, and its release beside them."""
    folder = tmp_path_factory.mktemp("run")
    start = str(tiny.public_checkpoint(folder / "public.ckpt"))
    section = tiny.ldm(ckpt_path=start, dp_config=tiny.dp(dataset_size=30))
    config = tiny.run_config(section, tiny.write_digits(folder / "digits"), 8, max_steps=2)
    run = train(tiny.options(folder, config)).path
    release_run(run, folder / "release", ReleaseFacts(curator="A clinic", class_names=("zero",), date="2026-01-01"))
    dispatch(["export", str(folder / "release"), str(folder / "papers"), "--to", "disclosure"])
    return folder


def test_the_registry_entry_has_every_field_of_tier_3(written: Path) -> None:
    entry = json.loads((written / "papers" / "registry.json").read_text())
    card = ReleaseCard.read(written / "release" / "privacy.json")
    assert set(entry) >= TIER_3 and entry["tier"] == 3
    spent = next(iter(card.epsilons().values()))
    assert spent <= entry["privacy_loss"]["epsilon"] <= spent * 1.01
    assert (entry["data_curator"], entry["intended_use"]) == ("A clinic", OPEN)
    assert "the list of classes and their names" in entry["unprotected_quantities"]
    assert "2 steps of DP-SGD" in entry["accounting"]["composition"]


def test_the_label_has_its_fields_with_explanations(written: Path) -> None:
    found = json.loads((written / "papers" / "label.json").read_text())
    assert set(found) >= LABEL
    assert all(row["explanation"] for name, row in found.items() if name != "title")
    assert found["delta"]["value"] == 1e-3 and found["outside_ideal_range"]["value"] is True


def test_the_checklist_answers_what_the_release_proves(written: Path) -> None:
    text = (written / "papers" / "nist-800-226.md").read_text()
    questions = [question for layer in QUESTIONS.values() for question, _ in layer]
    assert all(question in text for question in questions)
    assert text.count("- [x]") + text.count("- [ ]") == len(questions)
    assert f"- [ ] **Was tuning charged, or done on public data?** {OPEN}" in text
    assert "- [x] **What is the unit of privacy?** Every person with one record" in text


def test_a_damaged_release_gets_no_papers(written: Path) -> None:
    path = written / "release" / "privacy.json"
    text = path.read_text()
    path.write_text(text.replace("0.001", "0.002"))
    try:
        with pytest.raises(UserError, match="does not verify"):
            dispatch(["export", str(written / "release"), str(written / "more"), "--to", "disclosure"])
    finally:
        path.write_text(text)
    with pytest.raises(UserError, match="exists"):
        dispatch(["export", str(written / "release"), str(written / "papers"), "--to", "disclosure"])


def test_rho_is_the_sum_over_gaussians_by_hand() -> None:
    assert rho([(SamplingEvent(0.5, 2.0), 4), (SamplingEvent(1.0, 1.0), 1)]) == pytest.approx(4 / 8 + 1 / 2)
    assert rho([(SamplingEvent(0.5, 3.0, POISSON, "replace_one"), 18)]) == pytest.approx(1.0)  # noise over 2C


def test_the_papers_state_everything_that_the_card_charges_and_measured(written: Path) -> None:
    card = ReleaseCard.read(written / "release" / "privacy.json")
    draws = {"draws": {"exceeded": False}, "on": "made-up records"}
    one_more = replace(card, audit=draws, others=(Account(card.plan, card.ledger),))
    content = CardContent.make(ReleaseFacts(audit="None by others"), one_more)
    assert audit(content).startswith("Draws of records: independent") and audit(content).endswith("; None by others")
    assert registry_entry(content)["implementation"]["audit"] == audit(content) in checklist(content)
    assert "and other private runs (1, with 2 noised steps)" in accounting(content)
    assert stated_rho(content) == pytest.approx(2 * rho(card.ledger.events))
    selected = replace(content, card=replace(card, plan=replace(card.plan, selection=Selection(1.0, 0.5))))
    assert "best of a random number" in str(stated_rho(selected)) and "best of a secret" in accounting(selected)
