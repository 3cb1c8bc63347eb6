"""`PrivateSession`: a private run in this process, from its account to model, sampler, Trainer and release card."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl

from callbacks.privacy_callback import PrivacyCallback
from callbacks.progress import ProgressLog
from callbacks.step_clock import StepClock
from ldm.checkpoint import joined_accounts
from ldm.data.module import DataModuleFromConfig
from ldm.files import write_text
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.finetuning import Selection
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.privacy.account import Account, distinct
from ldm.privacy.card import ReleaseCard
from ldm.privacy.config import DPConfig
from ldm.privacy.event import POISSON
from ldm.privacy.meter import EpsilonMeter
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.ranks import Ranks
from ldm.privacy.sampling import sampler_from_plan
from ldm.privacy.statistics import Release
from ldm.training.devices import device_name, own_device
from ldm.training.private_checks import (
    refuse_unknown_scale,
    refuse_unsafe_model,
    require_same_selection,
)
from ldm.training.private_ddp import private_strategy
from ldm.training.run_account import (
    RunAccount,
    count_training_records,
    exceptions_of_start,
    open_account,
    private_ancestors,
)
from ldm.training.run_directory import RunDirectory
from ldm.training.statistics_file import load_releases
from ldm.training.statistics_plan import StatisticsPlan, charges_before
from ldm.training.warm_up import WarmUp

logger = logging.getLogger(__name__)


@dataclass
class PrivateSession:
    """One private run, which binds the plan and the ledger to the model, the sampler and the run directory."""

    model: LatentDiffusion
    data: DataModuleFromConfig
    run_dir: RunDirectory
    training: PrivateTraining
    meter: EpsilonMeter
    public_data: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()
    written: int | None = None  # number of steps that the card on disk reports
    weights: dict[str, int] = field(default_factory=dict)  # digest of each checkpoint so far -> its step
    statistics: StatisticsPlan | None = None  # statistics of the records that are released before the first step
    releases: tuple[Release, ...] = ()
    others: tuple[Account, ...] = ()  # of other private runs, whose epsilon composes with this one

    @property
    def plan(self) -> PrivacyPlan:
        """The public constants of the run."""
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
            records = count_training_records(self.data)
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

        train, ledger = self.data.datasets["train"], self.training.ledger
        stage = WarmUp(self.model, train, self.statistics, self.plan, ledger, self.run_dir)
        stage.run(self.releases, released, model_config)
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


def is_private(model: Any) -> bool:
    """Whether a model's configuration asks for private training."""
    config: DPConfig | None = getattr(model, "dp_config", None)
    return config is not None and config.enabled


def build_session(
    model: LatentDiffusion,
    data: DataModuleFromConfig,
    settings: Mapping[str, Any],
    run_dir: RunDirectory,
    account: RunAccount | None = None,
) -> PrivateSession:
    """Build the session of a private run from its account, trained parameters, sampler and card.

    The account is opened here if it is not given. The model's parameters that are not trained are frozen, and the data
    module is given the plan's sampler. Raises UserError for settings that would break the guarantee.
    """
    config: DPConfig = model.dp_config
    account = account or open_account(config, data, settings, run_dir)
    refuse_unsafe_model(model)
    if run_dir.resume_from is None:
        refuse_unknown_scale(model)
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
    before = charges_before(config.warm_up, config.relation)
    spent = tuple(other.spending for other in others)
    meter = EpsilonMeter(account.plan, before, others=spent) if before or spent else EpsilonMeter(account.plan)
    releases = tuple(load_releases(run_dir.statistics)[1]) if run_dir.statistics.is_file() else ()
    return PrivateSession(
        model,
        data,
        run_dir,
        training,
        meter,
        config.public_data,
        not_covered,
        statistics=statistics,
        releases=releases,
        others=others,
    )


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
        if training.ranks.first and run_dir.path.is_dir():
            write_text(file, json.dumps({"records": size, "device": device}) + "\n")

    training.on_microbatch = keep


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
