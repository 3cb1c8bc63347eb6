"""What the driver adds to a run under differential privacy: the plan, the ledger, the refusals and the release card."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl

from callbacks.privacy_callback import PrivacyCallback
from ldm.checkpoint import read_checkpoint
from ldm.errors import UserError
from ldm.models.diffusion.finetuning import Selection
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.privacy.card import ReleaseCard
from ldm.privacy.config import DPConfig
from ldm.privacy.event import POISSON
from ldm.privacy.ledger import Ledger
from ldm.privacy.meter import EpsilonMeter
from ldm.privacy.plan import PrivacyPlan, planned_steps
from ldm.privacy.ranks import Ranks
from ldm.privacy.sampling import sampler_from_plan
from ldm.privacy.statistics import Release
from ldm.training.private_ddp import private_strategy, process_count
from ldm.training.run_directory import RunDirectory
from ldm.training.statistics import StatisticsPlan, load_releases, prepare_model
from ldm.training.unprotected_run import source_of

logger = logging.getLogger(__name__)

PRIVATE_START = "the starting weights come from another private run, whose own epsilon adds to this one"
UNPROTECTED_START = "the starting weights were trained without privacy on the same records"


@dataclass
class PrivateSession:
    """One private run: binds the plan and the ledger to the model, the sampler and the run directory."""

    model: Any
    data: Any
    run_dir: RunDirectory
    training: PrivateTraining
    meter: EpsilonMeter
    public_data: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()
    written: int | None = None  # steps that the card on disk charges
    weights: dict[str, int] = field(default_factory=dict)  # digests of the checkpoints so far, and their steps
    statistics: StatisticsPlan | None = None  # what is released of the records before the first step
    releases: tuple[Release, ...] = ()

    @property
    def plan(self) -> PrivacyPlan:
        return self.training.plan

    def trainer_arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Trainer settings that a private run fixes: the plan's steps, and no look at private validation data."""
        return {
            # The ledger decides when to stop. Lightning's max_steps would add an epoch of one batch after a resume at
            # the end of an epoch, and min_steps would train past the budget.
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

    def callback(self) -> PrivacyCallback:
        """The callback that shows epsilon and stops the run when the budget is spent."""
        return PrivacyCallback(self.training, self.meter)

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
        """Release the statistics that the config asks for, and train the model on what they say, before the first step.

        What an earlier process of this run has released or trained is read back, and is not paid for again. Nothing is
        done when the run is resumed from one of its checkpoints, whose weights are those of after the warm-up.
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
        """Write ``privacy.json`` of the run directory: what has been spent, by two accountants.

        ``weights`` is the digest of the checkpoint that is about to be written; the card names them all.
        """
        taken = self.training.ledger.steps
        known = weights is None or weights in self.weights
        if weights is not None:
            self.weights.setdefault(weights, taken)
        if self.written == taken and known and self.run_dir.privacy_card.exists():
            return  # several files are written after one step
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
        )
        self.run_dir.path.mkdir(parents=True, exist_ok=True)
        card.write(self.run_dir.privacy_card)
        self.written = taken


@dataclass(frozen=True)
class Account:
    """What a run may spend and has spent, and what it says that its guarantee does not cover."""

    plan: PrivacyPlan
    ledger: Ledger
    not_covered: tuple[str, ...] = ()


def is_private(model: Any) -> bool:
    """Whether a model's configuration asks for private training."""
    config: DPConfig | None = getattr(model, "dp_config", None)
    return config is not None and config.enabled


def check_settings(config: DPConfig, settings: Mapping[str, Any]) -> None:
    """Refuse what can be refused before any data is read: missing settings, and a Trainer that breaks the guarantee."""
    config.require_complete()
    refuse_unsafe_settings(settings)
    if not config.poisson_sampling and process_count(settings) > 1:
        raise UserError(
            "dp_config.poisson_sampling: false draws one batch for all and runs on one device; type --devices 1, or "
            "leave it out"
        )


def open_account(config: DPConfig, data: Any, settings: Mapping[str, Any], run_dir: RunDirectory) -> Account:
    """Plan the account of a new run, or read it from the checkpoint of a resumed one. No model is needed.

    Raises UserError for settings under which the guarantee would not hold, and for another plan than a resumed run's.
    """
    check_settings(config, settings)
    records = count_training_records(data)
    if run_dir.resume_from is None and not run_dir.statistics.is_file():
        refuse_other_checkpoint(settings)
        return Account(make_plan(config, records, data.batch_size, settings), Ledger())
    account = resumed_account(run_dir, config)
    require_same_length(account.plan, data.batch_size, settings)
    return account


def build_session(
    model: Any, data: Any, settings: Mapping[str, Any], run_dir: RunDirectory, account: Account | None = None
) -> PrivateSession:
    """Bind a private run together: its account, its trained parameters, its sampler and its card.

    The account is opened here if it is not given. The model's parameters that are
    not trained are frozen, and the data module is given the plan's sampler. Raises UserError for whatever would break
    the guarantee.
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
    describe_session(account.plan, selection)
    data.train_batch_sampler = sampler_from_plan(account.plan, records, start=training.taken)
    exceptions = exceptions_of_start(model, data.datasets["train"])
    not_covered = tuple(dict.fromkeys((*account.not_covered, *exceptions)))
    statistics = StatisticsPlan.read(config.warm_up) if config.warm_up else None
    before = statistics.events(config.relation) if statistics is not None else ()
    meter = EpsilonMeter(account.plan, before) if before else EpsilonMeter(account.plan)
    releases = tuple(load_releases(run_dir.statistics)[1]) if run_dir.statistics.is_file() else ()
    session = PrivateSession(model, data, run_dir, training, meter, config.public_data, not_covered)
    session.statistics, session.releases = statistics, releases
    return session


def count_training_records(data: Any) -> int:
    """The length of the training set. Raises UserError when there is none."""
    if "train" not in data.datasets:
        raise UserError("data.params has no train set; add train: {target: ..., params: ...}")
    return len(data.datasets["train"])


def exceptions_of_start(model: Any, dataset: Any) -> tuple[str, ...]:
    """What the starting weights know that this run's guarantee does not cover, in words for the card and the log."""
    exceptions = []
    if getattr(model, "start_privacy", None):
        exceptions.append(PRIVATE_START)
        logger.warning("%s: if both runs used the same records, their guarantees compose", PRIVATE_START)
    seen = model.seen_unprotected()
    if seen and source_of(dataset) in seen:
        exceptions.append(UNPROTECTED_START)
        logger.warning("%s: this run's epsilon does not cover them; start from public weights", UNPROTECTED_START)
    return tuple(exceptions)


def describe_session(plan: PrivacyPlan, selection: Selection) -> None:
    """Log what is trained, what is left out, and batches of a fixed size."""
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


def make_plan(config: DPConfig, records: int, batch_size: int, settings: Mapping[str, Any]) -> PrivacyPlan:
    """The plan of a new run on ``records`` records, with the length that the Trainer's settings give.

    The statistics of ``dp_config.warm_up`` are charged first: the steps are calibrated with what they leave.
    """
    epochs, steps = required_length(settings)
    config.check_records(records)
    history = StatisticsPlan.read(config.warm_up).events(config.relation) if config.warm_up else ()
    return config.plan(num_records=records, batch_size=batch_size, epochs=epochs, steps=steps, history=history)


def required_length(settings: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """As `requested_length`; raises UserError when neither epochs nor steps are given."""
    epochs, steps = requested_length(settings)
    if epochs is None and steps is None:
        raise UserError(
            "a private run needs its length, for which the noise is calibrated: type --max_epochs N or --max_steps N, "
            "or set lightning.trainer.max_epochs"
        )
    return epochs, steps


def requested_length(settings: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Epochs or steps as the Trainer's settings give them, the other None; a number of steps takes precedence."""
    epochs, steps = settings.get("max_epochs"), settings.get("max_steps")
    steps = None if steps in (None, -1) else steps
    return (None if epochs in (None, -1) or steps is not None else epochs), steps


def resumed_account(run_dir: RunDirectory, config: DPConfig) -> Account:
    """The account of the checkpoint that is resumed, charged with whatever else the run has released since.

    Raises UserError when the checkpoint carries no ledger, or the config now asks for another mechanism.
    """
    path = run_dir.resume_from or run_dir.statistics  # before the first checkpoint, the account is with the statistics
    stored = read_checkpoint(path).get("privacy")
    if not stored:
        raise UserError(f"{path}: it carries no privacy ledger, so a private run cannot be resumed from it")
    plan, ledger = PrivacyPlan.from_dict(stored["plan"]), Ledger.from_dict(stored["ledger"])
    require_same_mechanism(plan, config)
    if run_dir.privacy_card.exists():
        card = ReleaseCard.read(run_dir.privacy_card)
        ledger, not_covered = ledger.absorb(card.ledger), card.not_covered
    elif run_dir.resume_from is None:
        not_covered = ()  # stopped before the card of its statistics was there, so before its first step
    else:
        logger.warning("%s is missing: steps released after %s are not charged", run_dir.privacy_card, path)
        not_covered = (
            f"what was released after step {ledger.count(plan.event())}, before the run was resumed from there without "
            "its privacy.json: those steps are not charged",
        )
    logger.info("resumed: %d of %d steps are in the ledger", ledger.count(plan.event()), plan.steps)
    return Account(plan, ledger, not_covered)


def require_same_mechanism(plan: PrivacyPlan, config: DPConfig) -> None:
    """Refuse settings other than the plan's in a resumed run; what the config does not give is the plan's."""
    if config.sampling != plan.sampling:
        raise UserError(
            f"dp_config.poisson_sampling: the resumed run draws {plan.sampling} batches; a run keeps its plan, "
            "start a new run from the checkpoint instead"
        )
    planned = {
        "epsilon": plan.target_epsilon,
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "sample_rate": plan.sample_rate,
        "max_grad_norm": plan.max_grad_norm,
        "noise_multiplicity": plan.noise_multiplicity,
        "clipping": plan.clipping,
    }
    for key, value in planned.items():
        asked = getattr(config, key)
        if asked is not None and asked != value:
            raise UserError(
                f"dp_config.{key}: the resumed run has {value}, the config says {asked}; a run keeps its plan, "
                "start a new run from the checkpoint instead"
            )


def require_same_length(plan: PrivacyPlan, batch_size: int, settings: Mapping[str, Any]) -> None:
    """Refuse a batch size or a length other than the plan's in a resumed run."""
    if batch_size != plan.expected_batch_size:
        raise UserError(
            f"data.params.batch_size: the resumed run has {plan.expected_batch_size:g}, the config says {batch_size}; "
            "a run keeps its plan"
        )
    epochs, steps = requested_length(settings)
    if epochs is not None or steps is not None:
        asked = planned_steps(plan.sample_rate, epochs=epochs, steps=steps)
        if asked != plan.steps:
            raise UserError(
                f"the resumed run was calibrated for {plan.steps} steps, max_epochs or max_steps now ask for {asked}; "
                "a run keeps its plan, start a new run from the checkpoint instead"
            )


def require_same_selection(run_dir: RunDirectory, selection: Selection) -> None:
    """Refuse another set of trained parameters in a resumed run than the one that its card lists as noised."""
    if run_dir.resume_from is None or not run_dir.privacy_card.exists():
        return
    before, now = set(ReleaseCard.read(run_dir.privacy_card).trained), set(selection.parameters)
    if before != now:
        odd = sorted(before ^ now)[0]
        raise UserError(
            f"the resumed run trains {len(before)} tensors, the config now selects {len(now)} ({odd} is in one only); "
            "a run keeps what it trains, start a new run from the checkpoint instead"
        )


def refuse_other_checkpoint(settings: Mapping[str, Any]) -> None:
    """Refuse a new private run that would go on from a training state, as only a resumed one may."""
    if settings.get("ckpt_path"):
        raise UserError(
            f"ckpt_path (resume_from_checkpoint): a private run goes on in its own directory, where its ledger is; "
            f"type --resume {settings['ckpt_path']}"
        )


def refuse_fresh(model: Any) -> None:
    """Refuse a new private run without a latent scale."""
    if not model.scale_is_known:
        raise UserError(
            "scale_by_std: the checkpoint holds no scale_factor, and taking it from private images is not covered by "
            "the guarantee; set scale_by_std: false and a scale_factor from public images"
        )


def refuse_unsafe_settings(settings: Mapping[str, Any]) -> None:
    """Refuse Trainer settings under which the stated guarantee would not hold."""
    private_strategy(settings)
    if int(settings.get("accumulate_grad_batches") or 1) > 1:
        raise UserError(
            "accumulate_grad_batches: a private step never merges two draws; raise data.params.batch_size and set "
            "dp_config.max_batch_size to what fits in memory"
        )
    if settings.get("gradient_clip_val"):
        raise UserError("gradient_clip_val: a private step clips every record; set dp_config.max_grad_norm")
    if str(settings.get("precision") or "32") not in ("32", "32-true", "bf16", "bf16-mixed"):
        raise UserError(f"precision {settings['precision']}: private training runs in 32-true or bf16-mixed")
    limit = settings.get("limit_train_batches")
    whole = limit is None or (isinstance(limit, float) and limit == 1.0)  # 1 is one batch, and equals 1.0 in Python
    if settings.get("overfit_batches") or not whole:
        raise UserError(
            "overfit_batches and limit_train_batches change the sampling that the ledger accounts for; remove them"
        )
    for name, what in (("profiler", "writes"), ("max_time", "ends the run by")):
        if settings.get(name):
            raise UserError(
                f"{name}: it {what} the time that steps take, which tells how many records were drawn; remove it"
            )


def refuse_unsafe_model(model: Any) -> None:
    """Refuse a network that mixes records."""
    batch_norm = [name for name, module in model.named_modules() if "BatchNorm" in type(module).__name__]
    trained = [name for name in batch_norm if not name.startswith("first_stage_model")]
    if trained:
        raise UserError(
            f"{trained[0]}: batch normalisation mixes records; a private model needs group or layer normalisation"
        )
