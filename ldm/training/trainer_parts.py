"""The Trainer's loggers and callbacks: the defaults, merged with those of the YAML."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, DeviceStatsMonitor, ProgressBar, ThroughputMonitor, Timer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from callbacks.after_training import AfterTraining
from callbacks.image_logger import ImageLogger
from callbacks.progress import EpochProgressBar, ProgressLog, StepProgressBar
from callbacks.run_checkpoint import ModelCheckpoint
from callbacks.setup_callback import SetupCallback
from callbacks.step_clock import StepClock, StepTimedTensorBoard
from ldm.config import instantiate_from_config, to_plain
from ldm.errors import UserError, all_lines, nearest
from ldm.privacy.plan import PrivacyPlan
from ldm.training import private_run
from ldm.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)


#: Lightning callbacks that record time or memory of single steps, and the advice for a private run.
REVEALING = {
    DeviceStatsMonitor: "watch the machine from outside",
    ThroughputMonitor: "measure a run on public data",
    Timer: "the plan says how long the run is",
    ProgressBar: "a private run has one that counts steps",
}
#: By default, epochs of a non-private run that end within this time share a checkpoint.
SECONDS_BETWEEN_CHECKPOINTS = 180.0
#: By default, a private run writes at most this many checkpoints at the ends of epochs.
CHECKPOINTS_OF_A_PLAN = 100
#: Loggers that ``lightning.logger`` may name in one word; of those in `SERVICES` the word is the package too.
LOGGERS = {
    "tensorboard": "pytorch_lightning.loggers.TensorBoardLogger",
    "wandb": "pytorch_lightning.loggers.WandbLogger",
    "mlflow": "pytorch_lightning.loggers.MLFlowLogger",
    "csv": "pytorch_lightning.loggers.CSVLogger",
}
SERVICES = ("wandb", "mlflow")
OTHER_LOGGER = "the times that {} records with the steps, which reveal how many records were drawn for each step"


def build_loggers(lightning: DictConfig, run_dir: RunDirectory, clock: StepClock | None = None) -> list[Any]:
    """TensorBoard unless ``lightning.logger`` names another, and always a CSV file (which records no times).

    ``lightning.logger`` is a name of `LOGGERS`, or a section with target and params. With a ``clock`` (a private run)
    TensorBoard's times are those of the clock, loggers of `SERVICES` get everything after training, and for others see
    `uncovered_loggers`. Raises UserError for an unknown name, and for a missing package.
    """
    given = to_plain(lightning.get("logger", {}) or {})
    if isinstance(given, str):
        if given not in LOGGERS:
            raise UserError(f"lightning.logger: {given!r} is unknown{nearest(given, LOGGERS)}; {', '.join(LOGGERS)}")
        given = {"target": LOGGERS[given]}
    target = given.get("target") or LOGGERS["tensorboard"]
    params = {"save_dir": str(run_dir.path), **(given.get("params") or {})}
    kind = next((name for name in SERVICES if target == LOGGERS[name]), "")
    if target.endswith("TensorBoardLogger"):
        params.setdefault("name", "tensorboard")
        first: Any = TensorBoardLogger(**params) if clock is None else StepTimedTensorBoard(**params)
        if clock is not None:
            first.clock = clock
    elif kind:
        if not importlib.util.find_spec(kind):
            raise UserError(f"lightning.logger: {kind} is not installed; type pip install {kind}")
        build = partial(instantiate_from_config, {"target": target, "params": params})
        first = build() if clock is None else AfterTraining(build, kind)
    else:
        first = instantiate_from_config({"target": target, "params": params})
    return [first, CSVLogger(str(run_dir.path), name="metrics")]


def uncovered_loggers(loggers: list[Any]) -> tuple[str, ...]:
    """Statements about these loggers for the card of a private run."""
    own_times = [
        logger for logger in loggers if not isinstance(logger, (StepTimedTensorBoard, AfterTraining, CSVLogger))
    ]
    return tuple(OTHER_LOGGER.format(type(logger).__name__) for logger in own_times)


def build_callbacks(
    config: DictConfig,
    lightning: DictConfig,
    run_dir: RunDirectory,
    session: private_run.PrivateSession | None,
    clock: StepClock | None = None,
) -> list[Callback]:
    """The default callbacks, merged with ``lightning.callbacks`` key by key, plus further ones it names."""
    extra = to_plain(lightning.get("callbacks", {}) or {})
    defaults = default_callbacks(run_dir)
    if "metrics_over_trainsteps_checkpoint" in extra:
        defaults["metrics_over_trainsteps_checkpoint"] = step_checkpoints(run_dir)
    merged = to_plain(OmegaConf.merge(OmegaConf.create(defaults), OmegaConf.create(extra)))
    built: list[Callback] = []
    for key, node in merged.items():
        if key == "checkpoint_callback":
            continue
        if not isinstance(node, dict) or "target" not in node:
            raise UserError(f"lightning.callbacks.{key} has no target{nearest(key, defaults)}")
        arguments: dict[str, Any] = {"checkpoints": str(run_dir.checkpoints)} if key == "rescue_callback" else {}
        if key == "setup_callback":
            arguments = {"project_config": config, "lightning_config": lightning}
        built.append(instantiate_from_config(node, **arguments))
        if session is not None:
            refuse_revealing(key, built[-1])
        if isinstance(built[-1], (ImageLogger, SetupCallback)):
            built[-1].clock = clock
    plan = session.plan if session is not None else None
    built.extend(checkpointing(config, lightning, extra.get("checkpoint_callback"), run_dir, session is not None, plan))
    built += session.callbacks(clock) if session is not None else [ProgressLog(run_dir.progress)]
    shown = (lightning.get("trainer") or {}).get("enable_progress_bar") is not False
    if shown and not any(isinstance(callback, ProgressBar) for callback in built):
        built.append(EpochProgressBar() if session is None else StepProgressBar(session.training, session.meter))
    return built


def refuse_revealing(key: str, callback: Callback) -> None:
    """Refuse a callback of a private run that selects by a metric or reveals the sizes of the Poisson draws."""
    if getattr(callback, "monitor", None):
        raise UserError(f"lightning.callbacks.{key}.params.monitor: a private run may not select; remove it")
    for kind, instead in REVEALING.items():
        if isinstance(callback, kind):
            raise UserError(
                f"lightning.callbacks.{key}: {type(callback).__name__} shows the time or memory of single steps, "
                f"which reveals how many records were drawn; remove it ({instead})"
            )
    if getattr(callback, "_train_time_interval", None) is not None:
        raise UserError(
            f"lightning.callbacks.{key}.params.train_time_interval: the steps at which it saves reveal how many "
            "records were drawn; set every_n_train_steps"
        )


def default_callbacks(run_dir: RunDirectory) -> dict[str, Any]:
    """The sections of the callbacks that every run has."""
    return {
        "setup_callback": {
            "target": "callbacks.setup_callback.SetupCallback",
            "params": {"run_dir": str(run_dir.path), "stamp": run_dir.stamp},
        },
        "image_logger": {
            "target": "callbacks.image_logger.ImageLogger",
            "params": {"batch_frequency": 750, "max_images": 4, "clamp": True},
        },
        "learning_rate_logger": {
            "target": "pytorch_lightning.callbacks.LearningRateMonitor",
            "params": {"logging_interval": "step"},
        },
        "cuda_callback": {"target": "callbacks.cuda_callback.CUDACallback", "params": {}},
        "rescue_callback": {"target": "callbacks.rescue_callback.RescueCallback", "params": {}},
    }


def step_checkpoints(run_dir: RunDirectory) -> dict[str, Any]:
    """The callback that keeps the weights of every 10,000th step."""
    return {
        "target": "pytorch_lightning.callbacks.ModelCheckpoint",
        "params": {
            "dirpath": str(run_dir.checkpoints / "trainstep_checkpoints"),
            "filename": "{epoch:06}-{step:09}",
            "every_n_train_steps": 10000,
            "save_top_k": -1,
            "save_weights_only": True,
        },
    }


def checkpointing(
    config: DictConfig,
    lightning: DictConfig,
    own_section: Any,
    run_dir: RunDirectory,
    private: bool,
    plan: PrivacyPlan | None = None,
) -> list[Callback]:
    """``last.ckpt`` and ``epoch=NNNNNN.ckpt``; with a monitored metric also the three best.

    A private run never selects by a metric, because a metric on private data is a query that the guarantee does not
    cover. Without a configured save interval, short epochs share a checkpoint.
    """
    params: dict[str, Any] = {"dirpath": str(run_dir.checkpoints), "filename": "{epoch:06}", "save_last": True}
    params["enable_version_counter"] = False  # overwrite last.ckpt, also after resuming from an earlier checkpoint
    model = to_plain(config.model).get("params", {})
    monitor = model.get("monitor")
    # the metric comes from validation, so without validation there is no selection
    validated = to_plain(config.data).get("params", {}).get("validation") is not None
    if monitor and validated and not private:
        logger.info("monitoring %s for the best three checkpoints", monitor)
        params.update(monitor=monitor, save_top_k=3, mode="min")
    for node in (to_plain(lightning.get("modelcheckpoint", {}) or {}), own_section or {}):
        params.update(node.get("params", {}))
    if private and params.get("train_time_interval") is not None:
        raise UserError(
            "lightning.modelcheckpoint.params.train_time_interval: the steps at which it saves reveal how many records "
            "were drawn; set every_n_train_steps"
        )
    if private and params.get("monitor"):
        raise UserError("lightning.modelcheckpoint.params.monitor: a private run may not select checkpoints; remove it")
    chosen = str(params.get("monitor") or "")
    if chosen.endswith("_ema") and not model.get("use_ema", True):  # otherwise the mistake shows only after an epoch
        raise UserError(
            f"the metric {chosen} to choose checkpoints by is logged with use_ema: true only; "
            f"type model.params.monitor={chosen.removesuffix('_ema')}"
        )
    try:
        built = instantiate_from_config({"target": "callbacks.run_checkpoint.ModelCheckpoint", "params": params})
    except MisconfigurationException as error:
        raise UserError(f"lightning.modelcheckpoint: {all_lines(error)}") from error
    share_checkpoints(built, params, plan)
    return [built]


def share_checkpoints(callback: ModelCheckpoint, params: Mapping[str, Any], plan: PrivacyPlan | None) -> None:
    """Let short epochs share a checkpoint, unless the run configures its save interval."""
    intervals = ("monitor", "every_n_epochs", "every_n_train_steps", "train_time_interval", "save_on_train_epoch_end")
    if any(params.get(name) is not None for name in intervals) or params.get("save_top_k", 1) != 1:
        return
    if plan is None:
        callback.pause_seconds = SECONDS_BETWEEN_CHECKPOINTS
    else:
        callback.pause_steps = -(-plan.steps // CHECKPOINTS_OF_A_PLAN)
