"""`describe_claim`: cards, run directories and files of weights against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.checkpoint import export_checkpoint, save_checkpoint, state_digest
from ldm.errors import UserError
from ldm.privacy.card import ReleaseCard
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from ldm.reports.claim import describe_claim

PLAN = PrivacyPlan(
    sample_rate=0.1, steps=40, noise_multiplier=1.2, max_grad_norm=1.0, delta=1e-5, expected_batch_size=50
)
STATE = {"model.w": torch.ones(3)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a private run leaves behind: a card that names its one checkpoint."""
    ledger = Ledger()
    ledger.record(PLAN.event(), 20)
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    ReleaseCard(PLAN, ledger, weights={state_digest(STATE): 20}).write(folder / "privacy.json")
    write(folder / "checkpoints/last.ckpt", ledger)
    return folder


def write(path: Path, ledger: Ledger, state: Any = STATE, plan: PrivacyPlan = PLAN) -> Path:
    save_checkpoint({"state_dict": state, "privacy": {"plan": plan.to_dict(), "ledger": ledger.to_dict()}}, path)
    return path


def test_a_run_its_card_and_its_weights(run: Path, tmp_path: Path) -> None:
    last = run / "checkpoints/last.ckpt"
    export_checkpoint(last, run / "small.safetensors")
    export_checkpoint(run / "small.safetensors", run / "checkpoints/again.safetensors")
    (statement, *lines) = describe_claim(run)
    assert "differentially private" in statement and len(lines) == 2
    assert all("20 steps, all on the card, which names these weights" in line for line in lines)
    assert describe_claim(run / "privacy.json") == [statement]
    assert describe_claim(run / "small.safetensors")[0] == statement
    alone = tmp_path / "elsewhere" / "a" / "b" / "small.safetensors"
    alone.parent.mkdir(parents=True)
    alone.write_bytes((run / "small.safetensors").read_bytes())
    assert describe_claim(alone)[0] == statement and "which is not here" in describe_claim(alone)[1]


def test_what_does_not_belong_together(run: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    last = run / "checkpoints/last.ckpt"
    ledger = Ledger.from_dict(json.loads((run / "privacy.json").read_text())["ledger"])
    more = Ledger.from_dict(ledger.to_dict())
    more.record(PLAN.event())
    for line, made in (
        ("is none of the 1 checkpoints that the card names", lambda: write(last, ledger, {"model.w": torch.zeros(3)})),
        ("21 steps, and not all of them are charged", lambda: write(last, more)),
        (r"another plan than that of the card \(steps\)", lambda: write(last, ledger, plan=replace(PLAN, steps=41))),
        ("carries no privacy account, and lies in a run", lambda: save_checkpoint({"state_dict": STATE}, last)),
        (
            "the account of a private run is damaged",
            lambda: save_checkpoint({"state_dict": STATE, "privacy": {"a": 1}}, last),
        ),
    ):
        made()
        for path in (run, last):
            with pytest.raises(UserError, match=line):
                describe_claim(path)
    save_checkpoint({"state_dict": STATE}, tmp_path / "public.ckpt")
    with pytest.raises(UserError, match="trained without privacy, as far as it says"):
        describe_claim(tmp_path / "public.ckpt")
    write(tmp_path / "empty.ckpt", Ledger())
    with pytest.raises(UserError, match="its ledger is empty"):
        describe_claim(tmp_path / "empty.ckpt")
    with pytest.raises(UserError, match="no privacy card here"):
        describe_claim(tmp_path)
