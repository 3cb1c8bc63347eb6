"""`RunAccount`: the plan, the ledger and the exceptions of a private run, new or resumed; no model is needed for them.

The accounts of other private runs come from `dp_config.other_runs`, and from the files that the weights start from.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ldm.checkpoint import joined_accounts, read_checkpoint
from ldm.checkpoint.metadata import separate_accounts
from ldm.data.module import DataModuleFromConfig
from ldm.errors import UserError
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.privacy.account import Account, distinct
from ldm.privacy.card import ReleaseCard
from ldm.privacy.config import DPConfig
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from ldm.training.private_checks import (
    refuse_other_checkpoint,
    refuse_unsafe_settings,
    require_same_length,
    require_same_mechanism,
    required_length,
)
from ldm.training.private_ddp import process_count
from ldm.training.run_directory import RunDirectory
from ldm.training.statistics_plan import charges_before
from ldm.training.unprotected_run import source_of

logger = logging.getLogger(__name__)

PRIVATE_START = "the starting weights come from another private run, whose own epsilon adds to this one and is unknown"
UNPROTECTED_START = "the starting weights were trained without privacy on the same records"


@dataclass(frozen=True)
class RunAccount:
    """A run's privacy budget, its spending so far, and the exceptions that its guarantee does not cover."""

    plan: PrivacyPlan
    ledger: Ledger
    not_covered: tuple[str, ...] = ()
    others: tuple[Account, ...] = ()  # of other private runs on the same records


def check_private_settings(config: DPConfig, settings: Mapping[str, Any]) -> None:
    """Refuse missing settings, and Trainer settings that break the guarantee, before any data is read."""
    config.require_complete()
    refuse_unsafe_settings(settings)
    if not config.poisson_sampling and process_count(settings) > 1:
        raise UserError(
            "dp_config.poisson_sampling: false draws one batch for all and runs on one device; type --devices 1, or "
            "leave it out"
        )


def open_account(
    config: DPConfig, data: DataModuleFromConfig, settings: Mapping[str, Any], run_dir: RunDirectory
) -> RunAccount:
    """Plan the account of a new run, or read it from the checkpoint of a resumed one. No model is needed.

    Raises UserError for settings under which the guarantee would not hold, and for a plan that differs from that of a
    resumed run.
    """
    check_private_settings(config, settings)
    records = count_training_records(data)
    if run_dir.resume_from is None and not run_dir.statistics.is_file():
        refuse_other_checkpoint(settings)
        others = read_others(config.other_runs)
        return RunAccount(make_plan(config, records, data.batch_size, settings, others), Ledger(), others=others)
    account = resumed_account(run_dir, config)
    require_same_length(account.plan, data.batch_size, settings)
    return account


def count_training_records(data: DataModuleFromConfig) -> int:
    """The length of the training set. Raises UserError when there is none."""
    if "train" not in data.datasets:
        raise UserError("data.params has no train set; add train: {target: ..., params: ...}")
    train: Any = data.datasets["train"]
    return len(train)


def read_others(paths: Sequence[str]) -> tuple[Account, ...]:
    """The accounts of other private runs on the same records, from their cards or run directories.

    A card brings the accounts that it charges itself. Raises UserError for a path without a card.
    """
    found: list[Account] = []
    for name in paths:
        card = ReleaseCard.read(name)
        found += [card.account, *card.others]
    return distinct(found)


def private_ancestors(model: nn.Module, plan: PrivacyPlan) -> tuple[tuple[Account, ...], tuple[str, ...]]:
    """The accounts of the private runs whose weights any part of the model started from, and exceptions for the card.

    Their epsilons add to that of this run: the sum bounds the leak of a record in any of the training sets.
    """
    nested = joined_accounts(*(getattr(part, "start_privacy", None) for part in model.modules()))
    found, reasons = readable_accounts(nested, plan)
    for account in found:
        logger.info("%d steps of a private run behind the starting weights are charged", account.ledger.steps)
    for reason in reasons:
        logger.warning("%s: %s", PRIVATE_START, reason)
    return found, tuple(f"{PRIVATE_START}: {reason}" for reason in reasons)


def readable_accounts(nested: Any, plan: PrivacyPlan) -> tuple[tuple[Account, ...], list[str]]:
    """The accounts in ``start_privacy`` that compose with ``plan``, and for each other one the reason."""
    found: list[Account] = []
    reasons: list[str] = []
    for values in separate_accounts(nested):
        try:
            account = Account.from_dict(values)
        except UserError as error:
            reasons.append(str(error))
            continue
        reason = account.composes_with(plan)
        if reason:
            reasons.append(reason)
        else:
            found.append(account)
    return tuple(found), reasons


def exceptions_of_start(model: LatentDiffusion, dataset: Any) -> tuple[str, ...]:
    """Statements for card and log on training data of the initial weights that the guarantee does not cover."""
    seen = model.seen_unprotected()
    if seen and source_of(dataset) in seen:
        logger.warning("%s: this run's epsilon does not cover them; start from public weights", UNPROTECTED_START)
        return (UNPROTECTED_START,)
    return ()


def make_plan(
    config: DPConfig,
    records: int,
    batch_size: int,
    settings: Mapping[str, Any],
    others: Sequence[Account] = (),
) -> PrivacyPlan:
    """The plan of a new run on ``records`` records, with the length that the Trainer's settings give.

    The statistics of ``dp_config.warm_up`` and ``others``, runs on the same records, are charged first, and the steps
    are calibrated to the remaining budget.
    """
    epochs, steps = required_length(settings)
    config.check_records(records)
    history = charges_before(config.warm_up, config.relation)
    spent = tuple(account.spending for account in others)
    return config.plan(
        num_records=records, batch_size=batch_size, epochs=epochs, steps=steps, history=history, others=spent
    )


def resumed_account(run_dir: RunDirectory, config: DPConfig) -> RunAccount:
    """The account of the resumed checkpoint, charged with everything that the run has released since.

    Raises UserError when the checkpoint carries no ledger, or the config now asks for another mechanism.
    """
    path = run_dir.resume_from or run_dir.statistics  # the statistics file has the account before any checkpoint
    content = read_checkpoint(path)
    stored = content.get("privacy")
    if not stored:
        raise UserError(f"{path}: it carries no privacy ledger, so a private run cannot be resumed from it")
    own = Account.from_dict(stored)
    plan, ledger = own.plan, own.ledger
    require_same_mechanism(plan, config)
    others = readable_accounts(content.get("start_privacy"), plan)[0]
    if run_dir.privacy_card.exists():
        card = ReleaseCard.read(run_dir.privacy_card)
        ledger, not_covered = ledger.absorb(card.ledger), card.not_covered
        others = distinct((*others, *card.others))
    elif run_dir.resume_from is None:
        not_covered = ()  # no card yet: stopped before the first step
    else:
        logger.warning("%s is missing: steps released after %s are not charged", run_dir.privacy_card, path)
        not_covered = (
            f"steps after step {ledger.count(plan.event())} that were released before the run was resumed from there "
            "without its privacy.json: they are not charged",
        )
    logger.info("resumed: %d of %d steps are in the ledger", ledger.count(plan.event()), plan.steps)
    return RunAccount(plan, ledger, not_covered, others)
