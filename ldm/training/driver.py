"""From YAML to a trained model: the driver behind `main.py`."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint

from callbacks.safe_checkpoint import SafeCheckpointIO
from callbacks.setup_callback import SetupCallback
from ldm.checkpoint import check_metadata, load_weights, read_checkpoint
from ldm.checkpoint.adapters import export_adapter_next_to
from ldm.config import allow_target, instantiate_from_config, load_config, to_plain
from ldm.errors import UserError, nearest
from ldm.training import private_run
from ldm.training.learning_rate import base_learning_rate, learning_rate
from ldm.training.lightning_warnings import filter_lightning_warnings
from ldm.training.preparation import cache_latents, check_labels
from ldm.training.run_directory import RunDirectory, launched, new_run, parents_run, resumed_run
from ldm.training.trainer_flags import merge_flags, translate_legacy_arguments
from ldm.training.trainer_parts import build_callbacks, build_loggers, one_line
from ldm.training.unprotected_run import record_unprotected, warn_unprotected

logger = logging.getLogger(__name__)

SECTIONS = ("model", "data", "lightning")
LIGHTNING_KEYS = ("trainer", "callbacks", "logger", "modelcheckpoint")
MODEL_KEYS = ("target", "params", "base_learning_rate")
LARGEST_SEED = 2**32 - 1  # numpy takes no larger one


@dataclass(frozen=True)
class RunOptions:
    """What the command line says about a run, besides the YAML files."""

    FROM_FLAGS: ClassVar[tuple[str, ...]] = (
        "name",
        "resume",
        "base",
        "train",
        "no_test",
        "debug",
        "seed",
        "postfix",
        "logdir",
        "scale_lr",
        "allow_target",
    )
    base: list[str]
    name: Any = ""
    resume: str = ""
    train: bool = False
    no_test: bool = False
    debug: bool = False
    seed: int = 23
    postfix: str = ""
    logdir: str = "logs"
    scale_lr: bool = True
    allow_target: list[str] = field(default_factory=list)
    dotlist: list[str] = field(default_factory=list)
    trainer: Mapping[str, Any] = field(default_factory=dict)


def train(options: RunOptions) -> RunDirectory:
    """Run everything that `main.py` was asked for; returns where the run wrote.

    Order: configs, model, data, privacy plan, learning rate, Trainer, fit, test. Nothing is written before the
    configuration, the model and the data have been built. Raises UserError for what a person can mend.
    """
    for prefix in options.allow_target:
        allow_target(prefix)
    if not 0 <= options.seed <= LARGEST_SEED:
        raise UserError(f"--seed {options.seed}: give a whole number from 0 to {LARGEST_SEED}")
    run_dir, config = read_run(options)
    if launched():
        for name in ("ldm", "callbacks"):  # what the first process says counts for all
            logging.getLogger(name).setLevel(logging.WARNING)
    else:
        run_dir.announce_to_child_processes()
    lightning = config.pop("lightning", None) or OmegaConf.create({})
    check_sections(config, lightning)
    lightning.trainer = OmegaConf.create(
        translate_legacy_arguments(merge_flags(to_plain(lightning.get("trainer") or {}), options.trainer))
    )
    settings = to_plain(lightning.trainer)
    base_rate = base_learning_rate(config)
    filter_lightning_warnings()
    pl.seed_everything(options.seed, verbose=False)

    model = build_model(config)
    private = private_run.is_private(model)
    if private:
        private_run.check_request(model, settings)
    elif options.train:
        warn_unprotected(model)
    data = instantiate_from_config(config.data)
    data.prepare_data()
    data.setup()
    check_labels(model, data)
    session = private_run.build_session(model, data, settings, run_dir) if private else None
    cache_latents(model, data, settings)
    model.learning_rate = learning_rate(base_rate, data.batch_size, settings, options.scale_lr, private)
    if getattr(model, "has_discriminator", False):  # two optimizers: the model accumulates by itself
        model.accumulate_grad_batches = settings.pop("accumulate_grad_batches", None) or model.accumulate_grad_batches
    trainer = build_trainer(config, lightning, settings, run_dir, session, options)
    if session is not None:
        session.start(trainer)
    resume = run_dir.resume_from or settings.get("ckpt_path")
    if resume:
        check_resumable(model, resume)
    try:
        if options.train:
            if session is None and trainer.is_global_zero:
                record_unprotected(model, data, run_dir)
            if session is not None and session.statistics is not None:
                keep_config(trainer)  # a run that stops in its warm-up is resumed from it
                session.warm_up(to_plain(config.model))
            fit(trainer, model, data, resume, options)
            if trainer.is_global_zero and getattr(model, "adapter_plan", None):
                export_adapter_next_to(run_dir.checkpoints / "last.ckpt")
        else:
            logger.info("nothing is trained; -t trains")
        if not options.no_test and not trainer.interrupted and "test" in data.dataset_configs and session is None:
            trainer.test(model, data, ckpt_path=str(resume) if resume and not options.train else None)
    except MisconfigurationException as error:  # Lightning's name for a mistake in the configuration
        raise UserError(one_line(error)) from error
    finally:
        if options.debug and not options.resume and run_dir.path.exists() and trainer.is_global_zero:
            aside = run_dir.path.parent / "debug_runs" / run_dir.path.name
            aside.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(str(run_dir.path), str(aside))
            run_dir = replace(run_dir, path=aside)
    return run_dir


def read_run(options: RunOptions) -> tuple[RunDirectory, DictConfig]:
    """Find or name the run directory, and merge its configuration: earlier files, ``--base`` files, dot-list."""
    if options.name and options.resume:
        raise UserError("-n/--name and -r/--resume exclude each other: a resumed run keeps its name")
    name = "" if options.name is True else str(options.name)
    if options.resume:
        run_dir = resumed_run(options.resume)
        paths = [str(path) for path in run_dir.earlier_configs()] + options.base
    else:
        if not options.base:
            raise UserError("no configuration: type --base FILE.yaml, or --resume RUN_DIRECTORY")
        run_dir = parents_run() or new_run(options.logdir, name, options.base, options.postfix)
        paths = options.base
    return run_dir, load_config(paths, options.dotlist)


def check_sections(config: DictConfig, lightning: DictConfig) -> None:
    """Refuse unknown top-level sections, and missing ones."""
    for key in map(str, config):
        if key not in SECTIONS:
            raise UserError(f"unknown section {key!r} in the configuration{nearest(str(key), SECTIONS)}")
    for key in map(str, lightning):
        if key not in LIGHTNING_KEYS:
            raise UserError(f"unknown key 'lightning.{key}'{nearest(str(key), LIGHTNING_KEYS)}")
    for key in ("model", "data"):
        if not isinstance(config.get(key), DictConfig):
            raise UserError(f"the configuration has no section {key!r}; add one with target and params")
    for key in map(str, config.model):
        if key not in MODEL_KEYS:
            raise UserError(f"unknown key 'model.{key}'{nearest(str(key), MODEL_KEYS)}")


def build_model(config: DictConfig) -> Any:
    """The model of a configuration; ``base_learning_rate`` stands next to its target."""
    section = to_plain(config.model)
    section.pop("base_learning_rate", None)
    return instantiate_from_config(section)


# ---------------------------------------------------------------------- the Trainer


def build_trainer(
    config: DictConfig,
    lightning: DictConfig,
    settings: Mapping[str, Any],
    run_dir: RunDirectory,
    session: private_run.PrivateSession | None,
    options: RunOptions,
) -> pl.Trainer:
    """A Trainer with the default loggers and callbacks, each of which ``lightning.*`` may override by merging."""
    arguments = {name: value for name, value in settings.items() if name != "ckpt_path"}
    # the Trainer's messages about free hardware that the user did not ask for are noise
    arguments.setdefault("num_sanity_val_steps", 0)
    if session is not None:
        arguments.update(session.trainer_arguments(arguments))
    callbacks = build_callbacks(config, lightning, run_dir, session)
    if arguments.get("enable_checkpointing") is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
    try:
        return pl.Trainer(
            **arguments,
            default_root_dir=str(run_dir.path),
            logger=build_loggers(lightning, run_dir),
            callbacks=callbacks,
            plugins=[SafeCheckpointIO()],
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"lightning.trainer: {one_line(error)}") from error


def keep_config(trainer: Any) -> None:
    """Write the run's configuration now rather than when training starts."""
    for callback in trainer.callbacks:
        if isinstance(callback, SetupCallback) and trainer.is_global_zero:
            callback.write()


def check_resumable(model: Any, path: Any) -> None:
    """Raise UserError, before anything is written, for a checkpoint that ``model`` cannot go on from."""
    content = read_checkpoint(path)
    if "optimizer_states" not in content:
        raise UserError(
            f"{path}: holds weights only, no state of a training run; start a new run from it: "
            f"model.params.ckpt_path={path}"
        )
    if hasattr(model, "unet_params"):  # an autoencoder has neither heads nor adapters
        check_metadata(model, content, path)
    load_weights(model, content["state_dict"], source=str(path))


def fit(trainer: pl.Trainer, model: Any, data: Any, resume: Any, options: RunOptions) -> None:
    """Train, with a post-mortem debugger when asked for."""
    try:
        trainer.fit(model, data, ckpt_path=str(resume) if resume else None)
    except (UserError, KeyboardInterrupt):
        raise
    except Exception:
        if options.debug and sys.stdin.isatty():
            import pdb

            pdb.post_mortem()
        raise
