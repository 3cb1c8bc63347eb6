"""What the driver adds to a run under differential privacy: the plan, the ledger, the refusals and the release card."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from callbacks.privacy_callback import PrivacyCallback
from ldm.checkpoint import read_checkpoint
from ldm.errors import UserError
from ldm.models.diffusion.finetuning import Selection
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.privacy.card import ReleaseCard
from ldm.privacy.distributed import Ranks, ShardedBatchSampler
from ldm.privacy.event import ADD_OR_REMOVE_ONE, POISSON, REPLACE_ONE, WITHOUT_REPLACEMENT, History
from ldm.privacy.ledger import Ledger
from ldm.privacy.meter import EpsilonMeter
from ldm.privacy.plan import PrivacyPlan, lineage_sample_rate, planned_steps
from ldm.privacy.sampling import FixedSizeBatchSampler, PoissonBatchSampler
from ldm.privacy.statistics import Release
from ldm.training.dp_config import check_names, poisson, read_dp_config
from ldm.training.private_ddp import private_strategy, process_count
from ldm.training.run_directory import RunDirectory
from ldm.training.statistics import StatisticsPlan, load_releases, prepare_model

logger = logging.getLogger(__name__)

PRIVATE_START = "the starting weights come from another private run, whose own epsilon adds to this one"


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
    statistics: StatisticsPlan | None = None  # what is released of the records before the first step
    releases: tuple[Release, ...] = ()

    @property
    def plan(self) -> PrivacyPlan:
        return self.training.plan

    def trainer_arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Trainer settings that a private run fixes: the plan's steps, and no look at private validation data."""
        return {
            # The ledger ends the run. A Trainer that counts to max_steps goes on from the end of an epoch with an
            # epoch of one batch, and one that is told a minimum goes on without a budget.
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
        """Attach the private step to the model; every release writes the card first, by one process."""
        ranks = self.training.ranks = Ranks(trainer.global_rank, trainer.world_size)
        if ranks.size > 1:
            records = len(self.data.datasets["train"])
            self.data.train_batch_sampler = batch_sampler(self.plan, records, self.training.taken, ranks)
            logger.info("%d processes share each step: each draws and clips a part of the records", ranks.size)
        self.training.on_release = self.write_card if ranks.first else None
        self.model.private = self.training
        self.model.automatic_optimization = False  # the step cuts, clips and noises by itself

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

    def write_card(self) -> None:
        """Write ``privacy.json`` of the run directory: what has been spent, by two accountants."""
        taken = self.training.ledger.steps
        if self.written == taken and self.run_dir.privacy_card.exists():
            return  # several files are written after one step
        selection = self.training.selection
        card = ReleaseCard(
            self.plan,
            self.training.ledger,
            trained={name: parameter.numel() for name, parameter in selection.parameters.items()},
            left_out=selection.dead,
            public_data=self.public_data,
            not_covered=self.not_covered,
            statistics=tuple(release.summary() for release in self.releases),
        )
        self.run_dir.path.mkdir(parents=True, exist_ok=True)
        card.write(self.run_dir.privacy_card)
        self.written = taken


def wanted(model: Any) -> bool:
    """Whether a model's config asks for DP training; a misspelt ``dp_config.enabled`` is no silent run without it."""
    config = getattr(model, "dp_config", None) or {}
    check_names(config)
    enabled = bool(config.get("enabled", False))
    if config and not enabled:
        logger.warning("dp_config.enabled is not set: this run is NOT private")
    return enabled


def prepare(model: Any, data: Any, settings: Mapping[str, Any], run_dir: RunDirectory) -> PrivateSession:
    """Make the plan (or read it from the checkpoint that is resumed), and give the sampler to the data module."""
    config = read_dp_config(model.dp_config)
    refuse_unsafe(settings, model)
    if not poisson(config) and process_count(settings) > 1:
        raise UserError(
            "dp_config.poisson_sampling: false draws one batch for all and runs on one device; type --devices 1, or "
            "leave it out"
        )
    if "train" not in data.datasets:
        raise UserError("data.params has no train set; add train: {target: ..., params: ...}")
    records = len(data.datasets["train"])
    not_covered: tuple[str, ...] = ()
    statistics = StatisticsPlan.read(config["warm_up"]) if config.get("warm_up") else None
    releases: list[Release] = []
    if run_dir.statistics.is_file():
        _, releases = load_releases(run_dir.statistics)
    if run_dir.resume_from is None and not releases:
        refuse_fresh(settings, model)
        plan, ledger = make_plan(config, records, data.batch_size, settings, statistics), Ledger()
    else:
        plan, ledger, not_covered = resumed_ledger(run_dir, config)
        require_same_length(plan, data.batch_size, settings)
    selection = model.select_trainable()
    require_same_selection(run_dir, selection)
    training = PrivateTraining(
        model,
        selection,
        plan,
        ledger,
        max_batch_size=config.get("max_batch_size"),
        engine=config.get("engine", "bookkeeping"),
    )
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
    data.train_batch_sampler = batch_sampler(plan, records, training.taken)
    if getattr(model, "start_privacy", None):
        not_covered = tuple(dict.fromkeys((*not_covered, PRIVATE_START)))
        logger.warning("%s: if both runs used the same records, their guarantees compose", PRIVATE_START)
    public = config.get("public_data", ())
    public = (public,) if isinstance(public, str) else tuple(str(name) for name in public)
    before = statistics.events(plan.relation) if statistics is not None else ()
    meter = EpsilonMeter(plan, before) if before else EpsilonMeter(plan)
    return PrivateSession(
        model,
        data,
        run_dir,
        training,
        meter,
        public,
        not_covered,
        statistics=statistics,
        releases=tuple(releases),
    )


def make_plan(
    config: Mapping[str, Any],
    records: int,
    batch_size: int,
    settings: Mapping[str, Any],
    statistics: StatisticsPlan | None = None,
) -> PrivacyPlan:
    """Calibrate the plan of a new run from ``dp_config``, the batch size and the Trainer's steps or epochs.

    What the ``statistics`` will cost is charged first, so that the steps are calibrated with what they leave.
    """
    epochs, steps = requested_length(settings)
    if epochs is None and steps is None:
        raise UserError(
            "a private run needs its length, for which the noise is calibrated: type --max_epochs N or --max_steps N, "
            "or set lightning.trainer.max_epochs"
        )
    public_size = config.get("dataset_size")
    if public_size is not None and records > public_size:
        raise UserError(f"dp_config.dataset_size: {public_size} is stated, but the training set has {records} records")
    if public_size is None and poisson(config):
        logger.warning(
            "dp_config.dataset_size is not given: the plan takes the number of records from the private data; state "
            "one that you may publish, rounded up if you like"
        )
    common = {
        "delta": config["delta"],
        "num_records": int(public_size or records),
        "max_grad_norm": config["max_grad_norm"],
        "noise_multiplicity": config.get("noise_multiplicity", 1),
        "clipping": config.get("clipping", "flat"),
        "insecure_seed": config.get("insecure_seed"),
        "sampling": POISSON if poisson(config) else WITHOUT_REPLACEMENT,
        "relation": ADD_OR_REMOVE_ONE if poisson(config) else REPLACE_ONE,
    }
    rate = config.get("sample_rate") if poisson(config) else fixed_size_rate(config, records, batch_size)
    history: History = statistics.events(common["relation"]) if statistics is not None else ()
    if config.get("noise_multiplier") is None:
        return PrivacyPlan.calibrate(
            target_epsilon=config["epsilon"],
            batch_size=batch_size,
            epochs=epochs,
            steps=steps,
            sample_rate=rate,
            history=history,
            **common,
        )
    rate = rate if rate is not None else lineage_sample_rate(common["num_records"], batch_size)
    plan = PrivacyPlan(
        sample_rate=rate,
        steps=planned_steps(rate, epochs=epochs, steps=steps),
        noise_multiplier=config["noise_multiplier"],
        expected_batch_size=batch_size,
        **common,
    )
    if any(event == plan.event() for event, _ in history):  # the ledger could not tell them apart
        raise UserError("dp_config.warm_up: a round and a step are one event; change a noise_multiplier a little")
    return plan


def fixed_size_rate(config: Mapping[str, Any], records: int, batch_size: int) -> float:
    """The share of the records that is in a batch of exactly ``batch_size``.

    Under replace-one the number of records is public, and the rate has to be that of the set at hand: a larger stated
    size would understate what a step costs.
    """
    if config.get("sample_rate") is not None:
        raise UserError(
            "dp_config.sample_rate: with poisson_sampling: false the rate is batch_size / records; remove it"
        )
    if config.get("dataset_size") not in (None, records):
        raise UserError(
            f"dp_config.dataset_size: with poisson_sampling: false it must be the number of records, {records}"
        )
    if batch_size > records:
        raise UserError(f"data.params.batch_size: {batch_size} exceeds the {records} training records")
    return batch_size / records


def batch_sampler(plan: PrivacyPlan, records: int, taken: int, ranks: Ranks | None = None) -> Any:
    """The draws of a plan, ``taken`` of which are done, in epochs in which a record is expected once.

    With several ``ranks`` these are the parts of the draws that are this process's. Raises UserError when a batch of
    fixed size would be a larger share of the records than the plan accounts for.
    """
    epoch = math.ceil(1.0 / plan.sample_rate - 1e-9)
    if ranks is not None and ranks.size > 1:
        return ShardedBatchSampler.from_plan(plan, records, epoch, ranks, start=taken)
    if plan.sampling == POISSON:
        return PoissonBatchSampler(records, plan.sample_rate, epoch, insecure_seed=plan.insecure_seed, start=taken)
    size = int(plan.expected_batch_size)
    if size > plan.sample_rate * records * (1 + 1e-9):
        raise UserError(
            f"the training set has {records} records, fewer than the run was planned for: batches of {size} would be a "
            f"larger share of it than the {plan.sample_rate:.4g} that is accounted for"
        )
    return FixedSizeBatchSampler(records, size, epoch, insecure_seed=plan.insecure_seed, start=taken)


def requested_length(settings: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Epochs or steps as the Trainer's settings give them; a number of steps is the exact statement and wins."""
    epochs, steps = settings.get("max_epochs"), settings.get("max_steps")
    steps = None if steps in (None, -1) else steps
    return (None if epochs in (None, -1) or steps is not None else epochs), steps


def resumed_ledger(run_dir: RunDirectory, config: Mapping[str, Any]) -> tuple[PrivacyPlan, Ledger, tuple[str, ...]]:
    """The plan and ledger of the checkpoint that is resumed, charged with whatever else the run has released since.

    With them comes what the run has said, or must now say, that its guarantee does not cover. Raises UserError when the
    checkpoint carries no ledger, or the config now asks for another mechanism.
    """
    path = run_dir.resume_from or run_dir.statistics  # before the first checkpoint, the account is with the statistics
    stored = read_checkpoint(path).get("privacy")
    if not stored:
        raise UserError(f"{path}: it carries no privacy ledger, so a private run cannot be resumed from it")
    plan, ledger = PrivacyPlan.from_dict(stored["plan"]), Ledger.from_dict(stored["ledger"])
    stated = {
        "epsilon": plan.target_epsilon,
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "sample_rate": plan.sample_rate,
        "max_grad_norm": plan.max_grad_norm,
        "noise_multiplicity": plan.noise_multiplicity,
        "clipping": plan.clipping,
    }
    if poisson(config) != (plan.sampling == POISSON):
        raise UserError(
            f"dp_config.poisson_sampling: the resumed run draws {plan.sampling} batches; a run keeps its plan, "
            "start a new run from the checkpoint instead"
        )
    for key, value in stated.items():
        if config.get(key) is not None and config[key] != value:
            raise UserError(
                f"dp_config.{key}: the resumed run has {value}, the config says {config[key]}; a run keeps its plan, "
                "start a new run from the checkpoint instead"
            )
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
    return plan, ledger, not_covered


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
    """Refuse another set of trained parameters in a resumed run: its card says which ones were noised."""
    if run_dir.resume_from is None or not run_dir.privacy_card.exists():
        return
    before, now = set(ReleaseCard.read(run_dir.privacy_card).trained), set(selection.parameters)
    if before != now:
        odd = sorted(before ^ now)[0]
        raise UserError(
            f"the resumed run trains {len(before)} tensors, the config now selects {len(now)} ({odd} is in one only); "
            "a run keeps what it trains, start a new run from the checkpoint instead"
        )


def refuse_fresh(settings: Mapping[str, Any], model: Any) -> None:
    """Refuse what a new private run has to have from elsewhere, and what only a resumed one may have."""
    if settings.get("ckpt_path"):
        raise UserError(
            f"ckpt_path (resume_from_checkpoint): a private run goes on in its own directory, where its ledger is; "
            f"type --resume {settings['ckpt_path']}"
        )
    if not model.scale_is_known:
        raise UserError(
            "scale_by_std: the checkpoint holds no scale_factor, and taking it from private images is not covered by "
            "the guarantee; set scale_by_std: false and a scale_factor from public images"
        )


def refuse_unsafe(settings: Mapping[str, Any], model: Any) -> None:
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
    if settings.get("overfit_batches") or settings.get("limit_train_batches") not in (None, 1.0):
        raise UserError(
            "overfit_batches and limit_train_batches change the sampling that the ledger accounts for; remove them"
        )
    batch_norm = [name for name, module in model.named_modules() if "BatchNorm" in type(module).__name__]
    trained = [name for name in batch_norm if not name.startswith("first_stage_model")]
    if trained:
        raise UserError(
            f"{trained[0]}: batch normalisation mixes records; a private model needs group or layer normalisation"
        )
