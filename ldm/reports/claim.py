"""Checks the claim of a privacy card, a run directory or a file of weights against the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.checkpoint import SUFFIXES, checkpoint_metadata, inherited_privacy, read_checkpoint
from ldm.checkpoint.metadata import made_from, separate_accounts
from ldm.errors import UserError
from ldm.privacy.account import Account
from ldm.privacy.card import CARD_FILE, ReleaseCard


def describe_claim(path: str | Path) -> list[str]:
    """The guarantee of a release, and the checks that it passed, one line each.

    ``path``: a card, a run directory (its card and every checkpoint in it), or a file of weights (with the card of its
    run directory, if there is one). Raises UserError for the first check that fails.
    """
    path = Path(path)
    if path.is_dir():
        return _of_run(path)
    if path.suffix.lower() in SUFFIXES:
        return _of_weights(path)
    return [ReleaseCard.read(path).statement()]


def check_weights(card: ReleaseCard, content: Mapping[str, Any], path: object) -> str:
    """Check that weights belong to the run of a card; returns a line on the extent of the comparison.

    Raises UserError for another plan, for steps missing from the card, and for weights that it does not name.
    """
    account = inherited_privacy(content)
    if not account:
        raise UserError(f"{path}: carries no privacy account, and lies in a run whose card says that it is private")
    own = _read_account(account, path)
    ledger = own.ledger
    if own.plan != card.plan:
        differences = ", ".join(own.plan.differences(card.plan))
        raise UserError(f"{path}: was trained by another plan than that of the card ({differences})")
    for other in separate_accounts(account.get("start_privacy")):
        _check_charged(card, other, path)
    if not card.ledger.covers(ledger):
        raise UserError(f"{path}: has taken {ledger.steps} steps, and not all of them are charged on the card")
    if not card.weights:
        return f"{path}: {ledger.steps} steps, all on the card, which names no weights to compare"
    if made_from(content) not in card.weights:
        raise UserError(f"{path}: is none of the {len(card.weights)} checkpoints that the card names")
    return f"{path}: {ledger.steps} steps, all on the card, which names these weights"


def _check_charged(card: ReleaseCard, other: Mapping[str, Any], path: object) -> None:
    """Raise UserError for an account in the weights that the card neither charges nor names as not covered."""
    if card.not_covered:
        return
    own = _read_account(other, path)
    if not any(known.plan == own.plan and known.ledger.covers(own.ledger) for known in card.others):
        raise UserError(
            f"{path}: carries the account of another private run ({own.ledger.steps} steps), which the card does not "
            "charge"
        )


def _of_run(path: Path) -> list[str]:
    card = ReleaseCard.read(path)
    files = sorted(file for file in (path / "checkpoints").rglob("*") if file.suffix.lower() in SUFFIXES)
    return [card.statement(), *(check_weights(card, read_checkpoint(file), file) for file in files)]


def _of_weights(path: Path) -> list[str]:
    content = read_checkpoint(path)
    card = next((folder / CARD_FILE for folder in path.absolute().parents[:3] if (folder / CARD_FILE).is_file()), None)
    if card is not None:
        read = ReleaseCard.read(card)
        return [read.statement(), check_weights(read, content, path)]
    account = inherited_privacy(content)
    if not account:
        raise UserError(
            f"{path}: carries no privacy account: these weights were trained without privacy, as far as it says"
        )
    own = _read_account(account, path)
    before = tuple(_read_account(other, path) for other in separate_accounts(account.get("start_privacy")))
    alone = ReleaseCard(own.plan, own.ledger, others=before)
    if not own.ledger.steps:
        raise UserError(f"{path}: its ledger is empty, so nothing was released, or entries were taken out")
    came = "" if checkpoint_metadata(content, "privacy") else "; of the private run that it was trained from"
    return [
        alone.statement() + came,
        f"{path}: {own.ledger.steps} steps by the account in the file; other releases of its run are on the run's "
        f"{CARD_FILE}, which is not here",
    ]


def _read_account(account: Any, path: object) -> Account:
    try:
        return Account.from_dict(account)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
