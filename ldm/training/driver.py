"""From a checked request to a trained model: the driver behind `main.py`."""

from __future__ import annotations

import logging
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from callbacks.safe_checkpoint import SafeCheckpointIO
from callbacks.setup_callback import SetupCallback
from callbacks.slurm_requeue import forget_run, note_run
from callbacks.step_clock import StepClock
from ldm.checkpoint import check_metadata, checkpoint_metadata, joined_accounts, load_weights, read_checkpoint
from ldm.checkpoint.adapters import export_adapter_next_to
from ldm.cli import typed
from ldm.config import instantiate_from_config, to_plain
from ldm.data.module import DataModuleFromConfig
from ldm.errors import Stopped, UserError, all_lines
from ldm.models.diffusion.dp_config import read_dp_config
from ldm.training import private_run, run_account
from ldm.training.allocator import keep_freed_memory
from ldm.training.data_check import check_data, check_labels
from ldm.training.devices import own_device
from ldm.training.dry_run import plan_lines
from ldm.training.learning_rate import learning_rate
from ldm.training.lightning_warnings import filter_lightning_warnings
from ldm.training.model_check import check_parts
from ldm.training.preparation import cache_latents
from ldm.training.request import RunRequest
from ldm.training.run_account import RunAccount
from ldm.training.run_directory import RunDirectory, launched
from ldm.training.trainer_parts import build_callbacks, build_loggers, uncovered_loggers
from ldm.training.unprotected_run import record_unprotected, warn_unprotected

logger = logging.getLogger(__name__)

MIXED_SIZES = "stack expects each tensor to be equal size"


@dataclass
class Run:
    """The objects of a run: model, data, Trainer, and for a private run its session."""

    model: Any
    data: DataModuleFromConfig
    trainer: pl.Trainer
    session: private_run.PrivateSession | None


def execute(request: RunRequest) -> RunDirectory:
    """Carry out a request; returns the run directory.

    Order: data, privacy plan, model, learning rate, Trainer, latents, fit, test. All checks run before anything is
    encoded, trained or written. Raises UserError for mistakes that the user can correct, Stopped when a signal ended
    the run.
    """
    prepare_process(request)
    resumed = read_resumed(request)
    data, account = open_data_and_account(request)
    if request.options.dry_run:
        print_plan(request, data, account)
        return request.run_dir
    run = build(request, data, account, resumed)
    resumed_at = int(resumed.get("global_step", 0)) if resumed else 0
    del resumed  # frees a checkpoint as large as the model
    cache_latents(run.model, data, request.settings)
    run_dir = request.run_dir
    try:
        with refused_without_trace(request, run, resumed_at):
            train_and_test(request, run)
    finally:
        if request.options.debug and not request.options.resume and run.trainer.is_global_zero:
            run_dir = move_debug_run(run_dir)
    return run_dir


# ---------------------------------------------------------------------- before anything is computed


def prepare_process(request: RunRequest) -> None:
    """Seed this process, and pass the run directory on to its child processes."""
    if launched():
        for name in ("ldm", "callbacks"):  # only the first process logs information
            logging.getLogger(name).setLevel(logging.WARNING)
    else:
        request.run_dir.announce_to_child_processes()
    filter_lightning_warnings()
    pl.seed_everything(request.options.seed, verbose=False)


def read_resumed(request: RunRequest) -> Mapping[str, Any] | None:
    """The checkpoint from which training resumes, or None for a new run.

    Raises UserError for a weights-only checkpoint, and for resuming a private run without privacy.
    """
    if request.resume is None:
        return None
    content = read_checkpoint(request.resume)
    if checkpoint_metadata(content, "privacy") and not request.private:
        raise UserError(
            f"{request.resume}: is the checkpoint of a private run, and dp_config.enabled is off in the configuration: "
            "what is private goes on privately or not at all; type model.params.dp_config.enabled=true, or start a new "
            f"run on public data: model.params.ckpt_path={request.resume}"
        )
    if "optimizer_states" not in content:
        raise UserError(
            f"{request.resume}: holds weights only, no state of a training run; start a new run from it: "
            f"model.params.ckpt_path={request.resume}"
        )
    return content


def open_data_and_account(request: RunRequest) -> tuple[DataModuleFromConfig, RunAccount | None]:
    """The data, checked against the configured model, and the privacy account of a private run."""
    params = request.model_params
    dp_config = read_dp_config(request.dp_config, params.get("DPDM_k") or 1)
    if request.private:
        run_account.check_private_settings(dp_config, request.settings)
    check_parts(params)
    data = instantiate_from_config(request.config.data)
    data.prepare_data()
    data.setup()
    check_data(params, data)
    if not request.private:
        return data, None
    return data, run_account.open_account(dp_config, data, request.settings, request.run_dir)


def print_plan(request: RunRequest, data: DataModuleFromConfig, account: RunAccount | None) -> None:
    """Print the plan of a ``--dry-run``."""
    rate = rate_of(request, data)
    steps = account.ledger.count(account.plan.event()) if account else 0
    others = [other.spending for other in account.others] if account else []
    for line in plan_lines(request, data, account.plan if account else None, steps, rate, others):
        print(line)


def rate_of(request: RunRequest, data: DataModuleFromConfig) -> float:
    """The learning rate of a run."""
    return learning_rate(
        request.base_rate,
        data.batch_size,
        request.settings,
        request.options.scale_lr,
        request.private,
        request.made_for,
    )


# ---------------------------------------------------------------------- building


def build(
    request: RunRequest, data: DataModuleFromConfig, account: RunAccount | None, resumed: Mapping[str, Any] | None
) -> Run:
    """Build the model, the private session and the Trainer; writes nothing."""
    model = build_model(request.config)
    check_labels(model, data)
    session = None
    if private_run.is_private(model):
        session = private_run.build_session(model, data, request.settings, request.run_dir, account)
    elif request.options.train:
        warn_unprotected(model)
    model.learning_rate = rate_of(request, data)
    settings = dict(request.settings)
    if getattr(model, "has_discriminator", False):  # with two optimizers the model accumulates gradients itself
        model.accumulate_grad_batches = settings.pop("accumulate_grad_batches", None) or model.accumulate_grad_batches
    trainer = build_trainer(request, settings, session, inherited_accounts(model, resumed))
    if session is not None:
        session.start(trainer)
    if resumed is not None:
        check_resumable(model, resumed, request.resume)
    return Run(model, data, trainer, session)


def build_model(config: DictConfig) -> Any:
    """The model of a configuration; ``base_learning_rate`` stands next to its target."""
    section = to_plain(config.model)
    section.pop("base_learning_rate", None)
    return instantiate_from_config(section)


def inherited_accounts(model: Any, resumed: Mapping[str, Any] | None) -> Any:
    """The combined privacy account of all sources of the initial weights, or None.

    Sources are the parts of the model that were loaded from files, and the initial weights of a resumed run.
    """
    parts = [getattr(part, "start_privacy", None) for part in model.modules()]
    return joined_accounts(*parts, checkpoint_metadata(resumed, "start_privacy") if resumed else None)


def build_trainer(
    request: RunRequest, settings: dict[str, Any], session: private_run.PrivateSession | None, inherited: Any
) -> pl.Trainer:
    """The Trainer with the default callbacks, merged key by key with those of the configuration.

    ``inherited``: the account of `inherited_accounts`, which every checkpoint of the run carries.
    """
    settings = {name: value for name, value in settings.items() if name != "ckpt_path"}
    clock = None
    if session is not None:
        settings.update(session.trainer_arguments(settings))
        clock = StepClock()
    loggers = build_loggers(request.lightning, request.run_dir, clock)
    if session is not None:
        session.not_covered = tuple(dict.fromkeys((*session.not_covered, *uncovered_loggers(loggers))))
    callbacks = build_callbacks(request.config, request.lightning, request.run_dir, session, clock)
    if settings.get("enable_checkpointing") is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, pl.callbacks.ModelCheckpoint)]
    try:
        return pl.Trainer(
            **settings,
            default_root_dir=str(request.run_dir.path),
            logger=loggers,
            callbacks=callbacks,
            plugins=[SafeCheckpointIO(inherited, clock)],
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"lightning.trainer: {all_lines(error)}") from error


def write_config(trainer: Any) -> None:
    """Write the run's configuration now, before training starts."""
    for callback in trainer.callbacks:
        if isinstance(callback, SetupCallback) and trainer.is_global_zero:
            callback.write()


def check_resumable(model: Any, content: Mapping[str, Any], path: Any) -> None:
    """Raise UserError, before anything is written, for a checkpoint from which ``model`` cannot resume."""
    if hasattr(model, "unet_params"):  # an autoencoder has neither heads nor adapters
        check_metadata(model, content, path)
    load_weights(model, content["state_dict"], source=str(path))


# ---------------------------------------------------------------------- training


def train_and_test(request: RunRequest, run: Run) -> None:
    """Train if requested, then test if there is a test set and the run is not private."""
    options, resume = request.options, request.resume
    try:
        if options.train:
            if run.session is None and run.trainer.is_global_zero:
                record_unprotected(run.model, run.data, request.run_dir)
            if run.session is not None and run.session.statistics is not None:
                write_config(run.trainer)  # needed to resume a run that stops during its warm-up
                run.session.warm_up(to_plain(request.config.model))
            fit(request, run)
        else:
            logger.info("nothing is trained; -t trains")
        tested = not options.no_test and not run.trainer.interrupted and "test" in run.data.dataset_configs
        if tested and run.session is None:
            checkpoint = str(resume) if resume and not options.train else None
            run.trainer.test(run.model, run.data, ckpt_path=checkpoint)
    except MisconfigurationException as error:  # Lightning raises this for mistakes in the configuration
        raise UserError(all_lines(error)) from error


def fit(request: RunRequest, run: Run) -> None:
    """Train, then export adapters beside the last checkpoint; opens a post-mortem debugger on failure if requested."""
    run_dir, trainer = request.run_dir, run.trainer
    if trainer.is_global_zero:
        run_dir.remove_leftovers()
        note_run(run_dir.path.parent, run_dir.path)
    if own_device(request.settings) == "cpu":
        keep_freed_memory()
    try:
        trainer.fit(run.model, run.data, ckpt_path=str(request.resume) if request.resume else None)
    except Stopped as stopped:
        raise Stopped(stopped.signal, f"{stopped}; {how_to_go_on(run_dir)}") from None
    except SystemExit:  # Lightning raises this after a KeyboardInterrupt
        if trainer.interrupted:
            raise Stopped(signal.SIGINT, f"stopped by Ctrl-C; {how_to_go_on(run_dir)}") from None
        raise
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        refuse_mixed_sizes(error)
        if request.options.debug and sys.stdin.isatty():
            import pdb

            pdb.post_mortem()
        raise
    if trainer.is_global_zero:
        forget_run(run_dir.path.parent)
        if getattr(run.model, "adapter_plan", None):
            export_adapter_next_to(run_dir.last_checkpoint)


def how_to_go_on(run_dir: RunDirectory) -> str:
    """The command that resumes a run."""
    if not run_dir.trained() and not run_dir.statistics.is_file():
        return "it had made no step, start it again"
    return f"to go on, type: dp-ldm train --resume {typed(run_dir.path)}"


def refuse_mixed_sizes(error: BaseException) -> None:
    """Raise UserError for torch's exception about images of several sizes in one batch."""
    if MIXED_SIZES in str(error):
        raise UserError(
            "the training images are of several sizes and cannot be put into one batch; set size: PIXELS in the data "
            "set's params"
        ) from error


@contextmanager
def refused_without_trace(request: RunRequest, run: Run, resumed_at: int) -> Iterator[None]:
    """Delete the files of an attempt that is refused before its first step, because the next attempt would read them.

    ``resumed_at`` is the step at which training resumes.
    """
    take_back = request.run_dir.record()
    try:
        yield
    except UserError:
        if request.run_dir.statistics.is_file():  # released statistics are charged, so their record must stay
            raise
        if run.trainer.global_step == resumed_at and run.trainer.is_global_zero:
            take_back()
        raise


def move_debug_run(run_dir: RunDirectory) -> RunDirectory:
    """Move the directory of a ``--debug`` run to a folder apart from ordinary runs."""
    if not run_dir.path.exists():
        return run_dir
    aside = run_dir.path.parent / "debug_runs" / run_dir.path.name
    aside.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(str(run_dir.path), str(aside))
    return replace(run_dir, path=aside)
