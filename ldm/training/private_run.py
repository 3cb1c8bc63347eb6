"""The driver's part for a run under differential privacy: plan, ledger, refusals and release card."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from callbacks.privacy_callback import PrivacyCallback
from callbacks.progress import ProgressLog
from callbacks.step_clock import StepClock
from ldm.checkpoint import joined_accounts, read_checkpoint
from ldm.checkpoint.metadata import separate_accounts
from ldm.errors import UserError
from ldm.files import write_atomic
from ldm.models.diffusion.finetuning import Selection
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.privacy.account import Account as PrivacyAccount
from ldm.privacy.account import distinct
from ldm.privacy.card import ReleaseCard
from ldm.privacy.config import DPConfig
from ldm.privacy.event import POISSON
from ldm.privacy.ledger import Ledger
from ldm.privacy.meter import EpsilonMeter
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.ranks import Ranks
from ldm.privacy.sampling import sampler_from_plan
from ldm.privacy.statistics import Release
from ldm.training.private_checks import (
    refuse_fresh,
    refuse_other_checkpoint,
    refuse_unsafe_model,
    refuse_unsafe_settings,
    require_same_length,
    require_same_mechanism,
    require_same_selection,
    required_length,
)
from ldm.training.private_ddp import private_strategy, process_count
from ldm.training.run_directory import RunDirectory
from ldm.training.statistics import load_releases, prepare_model
from ldm.training.statistics_plan import StatisticsPlan
from ldm.training.trainer_flags import own_device
from ldm.training.unprotected_run import source_of

logger = logging.getLogger(__name__)

PRIVATE_START = "the starting weights come from another private run, whose own epsilon adds to this one and is unknown"
UNPROTECTED_START = "the starting weights were trained without privacy on the same records"


@dataclass
class PrivateSession:
    """One private run, which binds the plan and the ledger to the model, the sampler and the run directory."""

    model: Any
    data: Any
    run_dir: RunDirectory
    training: PrivateTraining
    meter: EpsilonMeter
    public_data: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()
    written: int | None = None  # number of steps that the card on disk reports
    weights: dict[str, int] = field(default_factory=dict)  # digest of each checkpoint so far -> its step
    statistics: StatisticsPlan | None = None  # statistics of the records that are released before the first step
    releases: tuple[Release, ...] = ()
    others: tuple[PrivacyAccount, ...] = ()  # of other private runs, whose epsilon composes with this one

    @property
    def plan(self) -> PrivacyPlan:
        return self.training.plan

    def trainer_arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Trainer settings that a private run fixes: the plan's length, and no validation on private data."""
        return {
            # The ledger decides when to stop. Lightning's max_steps would add a one-batch epoch after resuming at an
            # epoch boundary, and min_steps would train past the budget.
            "max_steps": -1,
            "max_epochs": -1,
            "min_steps": None,
            "min_epochs": None,
            "limit_val_batches": 0,
            "limit_test_batches": 0,
            "use_distributed_sampler": False,
            "devices": given.get("devices", 1),
            "strategy": private_strategy(given),
        }

    def callbacks(self, clock: StepClock | None) -> list[pl.Callback]:
        """Callbacks that log epsilon and stop the run when the budget is spent, and that write progress to a file."""
        log = ProgressLog(self.run_dir.progress, self.training, self.meter, clock)
        return [PrivacyCallback(self.training, self.meter), log]

    def start(self, trainer: pl.Trainer) -> None:
        """Attach the private step to the model. The first process writes the card before every release."""
        ranks = self.training.ranks = Ranks(trainer.global_rank, trainer.world_size)
        if ranks.size > 1:
            records = len(self.data.datasets["train"])
            taken = self.training.taken
            self.data.train_batch_sampler = sampler_from_plan(self.plan, records, start=taken, ranks=ranks)
            logger.info("%d processes share each step: each draws and clips a part of the records", ranks.size)
        self.training.on_release = self.write_card if ranks.first else None
        self.model.private = self.training
        self.model.automatic_optimization = False  # the private step computes and applies its own gradients

    def warm_up(self, model_config: Mapping[str, Any]) -> None:
        """Release the configured statistics, and train the model on their synthetic latents, before the first step.

        Results that an earlier process of this run has released or trained are read back and not charged again. A run
        that is resumed from one of its checkpoints skips this, because its weights already include the warm-up.
        """
        if self.statistics is None or self.run_dir.resume_from is not None:
            return

        def released(releases: Sequence[Release]) -> None:
            self.releases = tuple(releases)
            self.write_card()

        plan, ledger, train = self.plan, self.training.ledger, self.data.datasets["train"]
        prepare_model(
            self.model, train, self.statistics, plan, ledger, self.run_dir, self.releases, released, model_config
        )
        self.model.select_trainable()

    def write_card(self, weights: str | None = None) -> None:
        """Write ``privacy.json`` of the run directory, with the budget spent as two accountants compute it.

        ``weights`` is the digest of the checkpoint that is about to be written; the card names them all.
        """
        taken = self.training.ledger.steps
        known = weights is None or weights in self.weights
        if weights is not None:
            self.weights.setdefault(weights, taken)
        if self.written == taken and known and self.run_dir.privacy_card.exists():
            return  # the card is current; several files are written after one step
        selection = self.training.selection
        card = ReleaseCard(
            self.plan,
            self.training.ledger,
            trained={name: parameter.numel() for name, parameter in selection.parameters.items()},
            left_out=selection.dead,
            public_data=self.public_data,
            not_covered=self.not_covered,
            weights=self.weights,
            statistics=tuple(release.summary() for release in self.releases),
            others=self.others,
        )
        self.run_dir.path.mkdir(parents=True, exist_ok=True)
        card.write(self.run_dir.privacy_card)
        self.written = taken


@dataclass(frozen=True)
class Account:
    """A run's privacy budget, its spending so far, and the exceptions that its guarantee does not cover."""

    plan: PrivacyPlan
    ledger: Ledger
    not_covered: tuple[str, ...] = ()
    others: tuple[PrivacyAccount, ...] = ()  # of other private runs on the same records


def is_private(model: Any) -> bool:
    """Whether a model's configuration asks for private training."""
    config: DPConfig | None = getattr(model, "dp_config", None)
    return config is not None and config.enabled


def check_settings(config: DPConfig, settings: Mapping[str, Any]) -> None:
    """Refuse missing settings, and Trainer settings that break the guarantee, before any data is read."""
    config.require_complete()
    refuse_unsafe_settings(settings)
    if not config.poisson_sampling and process_count(settings) > 1:
        raise UserError(
            "dp_config.poisson_sampling: false draws one batch for all and runs on one device; type --devices 1, or "
            "leave it out"
        )


def open_account(config: DPConfig, data: Any, settings: Mapping[str, Any], run_dir: RunDirectory) -> Account:
    """Plan the account of a new run, or read it from the checkpoint of a resumed one. No model is needed.

    Raises UserError for settings under which the guarantee would not hold, and for a plan that differs from that of a
    resumed run.
    """
    check_settings(config, settings)
    records = count_training_records(data)
    if run_dir.resume_from is None and not run_dir.statistics.is_file():
        refuse_other_checkpoint(settings)
        others = read_others(config.other_runs)
        return Account(make_plan(config, records, data.batch_size, settings, others), Ledger(), others=others)
    account = resumed_account(run_dir, config)
    require_same_length(account.plan, data.batch_size, settings)
    return account


def build_session(
    model: Any, data: Any, settings: Mapping[str, Any], run_dir: RunDirectory, account: Account | None = None
) -> PrivateSession:
    """Build the session of a private run from its account, trained parameters, sampler and card.

    The account is opened here if it is not given. The model's parameters that are not trained are frozen, and the data
    module is given the plan's sampler. Raises UserError for settings that would break the guarantee.
    """
    config: DPConfig = model.dp_config
    account = account or open_account(config, data, settings, run_dir)
    refuse_unsafe_model(model)
    if run_dir.resume_from is None:
        refuse_fresh(model)
    records = count_training_records(data)
    selection = model.select_trainable()
    require_same_selection(run_dir, selection)
    training = PrivateTraining(
        model,
        selection,
        account.plan,
        account.ledger,
        max_batch_size=config.max_batch_size,
        engine=config.engine,
    )
    remember_microbatch(training, run_dir, settings)
    describe_session(account.plan, selection)
    data.train_batch_sampler = sampler_from_plan(account.plan, records, start=training.taken)
    ancestors, exceptions = private_ancestors(model, account.plan)
    exceptions += exceptions_of_start(model, data.datasets["train"])
    others = distinct((*account.others, *ancestors))
    model.start_privacy = joined_accounts(model.start_privacy, *(other.to_dict() for other in others))
    not_covered = tuple(dict.fromkeys((*account.not_covered, *exceptions)))
    statistics = StatisticsPlan.read(config.warm_up) if config.warm_up else None
    before = statistics.events(config.relation) if statistics is not None else ()
    spent = tuple(other.spending for other in others)
    meter = EpsilonMeter(account.plan, before, others=spent) if before or spent else EpsilonMeter(account.plan)
    releases = tuple(load_releases(run_dir.statistics)[1]) if run_dir.statistics.is_file() else ()
    session = PrivateSession(model, data, run_dir, training, meter, config.public_data, not_covered)
    session.statistics, session.releases, session.others = statistics, releases, others
    return session


def remember_microbatch(training: PrivateTraining, run_dir: RunDirectory, settings: Mapping[str, Any]) -> None:
    """With ``max_batch_size: auto``, start from the size in the run directory and keep later ones there."""
    if not training.adapts:
        return
    device = device_name(own_device(settings))
    file = run_dir.microbatch
    try:
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError:
        known = {}
    records = known.get("records") if isinstance(known, dict) and known.get("device") == device else None
    if isinstance(records, int) and records > 0:
        training.max_batch_size = records

    def keep(size: int) -> None:
        def write(path: Path) -> None:
            path.write_text(json.dumps({"records": size, "device": device}) + "\n", encoding="utf-8")

        if training.ranks.first and run_dir.path.is_dir():
            write_atomic(file, write)

    training.on_microbatch = keep


def device_name(device: str) -> str:
    """The name of a GPU, which decides how much memory there is; the device itself otherwise."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def count_training_records(data: Any) -> int:
    """The length of the training set. Raises UserError when there is none."""
    if "train" not in data.datasets:
        raise UserError("data.params has no train set; add train: {target: ..., params: ...}")
    return len(data.datasets["train"])


def read_others(paths: Sequence[str]) -> tuple[PrivacyAccount, ...]:
    """The accounts of other private runs on the same records, from their cards or run directories.

    A card brings the accounts that it charges itself. Raises UserError for a path without a card.
    """
    found: list[PrivacyAccount] = []
    for name in paths:
        path = Path(name)
        card = ReleaseCard.read(path / "privacy.json" if path.is_dir() else path)
        found += [card.account, *card.others]
    return distinct(found)


def private_ancestors(model: Any, plan: PrivacyPlan) -> tuple[tuple[PrivacyAccount, ...], tuple[str, ...]]:
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


def readable_accounts(nested: Any, plan: PrivacyPlan) -> tuple[tuple[PrivacyAccount, ...], list[str]]:
    """The accounts in ``start_privacy`` that compose with ``plan``, and for each other one the reason."""
    found: list[PrivacyAccount] = []
    reasons: list[str] = []
    for values in separate_accounts(nested):
        try:
            account = PrivacyAccount.from_dict(values)
        except UserError as error:
            reasons.append(str(error))
            continue
        reason = account.composes_with(plan)
        if reason:
            reasons.append(reason)
        else:
            found.append(account)
    return tuple(found), reasons


def exceptions_of_start(model: Any, dataset: Any) -> tuple[str, ...]:
    """Statements for card and log on training data of the initial weights that the guarantee does not cover."""
    seen = model.seen_unprotected()
    if seen and source_of(dataset) in seen:
        logger.warning("%s: this run's epsilon does not cover them; start from public weights", UNPROTECTED_START)
        return (UNPROTECTED_START,)
    return ()


def describe_session(plan: PrivacyPlan, selection: Selection) -> None:
    """Log the trained parameters, the parameters left out, and whether batches have a fixed size."""
    logger.info("private fine-tuning trains %s values in %d tensors", f"{selection.count:,}", len(selection.parameters))
    if selection.dead:
        logger.info(
            "left out %d tensors that no record gives a gradient, such as %s (all in privacy.json)",
            len(selection.dead),
            selection.dead[0],
        )
    if plan.sampling != POISSON:
        logger.info(
            "poisson_sampling: false: batches of exactly %g records without replacement, accounted for as such (%s, "
            "sensitivity 2C); Poisson batches need less noise",
            plan.expected_batch_size,
            plan.relation,
        )


def make_plan(
    config: DPConfig,
    records: int,
    batch_size: int,
    settings: Mapping[str, Any],
    others: Sequence[PrivacyAccount] = (),
) -> PrivacyPlan:
    """The plan of a new run on ``records`` records, with the length that the Trainer's settings give.

    The statistics of ``dp_config.warm_up`` and ``others``, runs on the same records, are charged first, and the steps
    are calibrated to the remaining budget.
    """
    epochs, steps = required_length(settings)
    config.check_records(records)
    history = StatisticsPlan.read(config.warm_up).events(config.relation) if config.warm_up else ()
    spent = tuple(account.spending for account in others)
    return config.plan(
        num_records=records, batch_size=batch_size, epochs=epochs, steps=steps, history=history, others=spent
    )


def resumed_account(run_dir: RunDirectory, config: DPConfig) -> Account:
    """The account of the resumed checkpoint, charged with everything that the run has released since.

    Raises UserError when the checkpoint carries no ledger, or the config now asks for another mechanism.
    """
    path = run_dir.resume_from or run_dir.statistics  # the statistics file has the account before any checkpoint
    content = read_checkpoint(path)
    stored = content.get("privacy")
    if not stored:
        raise UserError(f"{path}: it carries no privacy ledger, so a private run cannot be resumed from it")
    plan, ledger = PrivacyPlan.from_dict(stored["plan"]), Ledger.from_dict(stored["ledger"])
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
            f"what was released after step {ledger.count(plan.event())}, before the run was resumed from there without "
            "its privacy.json: those steps are not charged",
        )
    logger.info("resumed: %d of %d steps are in the ledger", ledger.count(plan.event()), plan.steps)
    return Account(plan, ledger, not_covered, others)
