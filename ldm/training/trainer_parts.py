"""What a Trainer gets besides its settings: the default loggers and callbacks, as the YAML changes them."""

from __future__ import annotations

import logging
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from ldm.config import instantiate_from_config, to_plain
from ldm.errors import UserError, nearest
from ldm.training import private_run
from ldm.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def build_loggers(lightning: DictConfig, run_dir: RunDirectory) -> list[Any]:
    """TensorBoard unless ``lightning.logger`` names another, and always a CSV file."""
    chosen = to_plain(lightning.get("logger", {}) or {})
    if not chosen.get("target"):
        chosen = {"target": "pytorch_lightning.loggers.TensorBoardLogger", "params": chosen.get("params", {})}
    params = dict(chosen.get("params") or {})
    params.setdefault("save_dir", str(run_dir.path))
    if chosen["target"].endswith("TensorBoardLogger"):
        params.setdefault("name", "tensorboard")
        first: Any = TensorBoardLogger(**params)
    else:
        first = instantiate_from_config({"target": chosen["target"], "params": params})
    return [first, CSVLogger(str(run_dir.path), name="metrics")]


def build_callbacks(
    config: DictConfig,
    lightning: DictConfig,
    run_dir: RunDirectory,
    session: private_run.PrivateSession | None,
) -> list[Callback]:
    """The default callbacks, merged with ``lightning.callbacks`` key by key, plus further ones it names."""
    private = session is not None
    defaults: dict[str, Any] = {
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
    extra = to_plain(lightning.get("callbacks", {}) or {})
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
        if private and getattr(built[-1], "monitor", None):
            raise UserError(f"lightning.callbacks.{key}.params.monitor: a private run may not select; remove it")
    built.extend(checkpointing(config, lightning, extra.get("checkpoint_callback"), run_dir, private))
    if session is not None:
        built.append(session.callback())
    return built


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
    config: DictConfig, lightning: DictConfig, merge_flags: Any, run_dir: RunDirectory, private: bool
) -> list[Callback]:
    """``last.ckpt`` and ``epoch=NNNNNN.ckpt``; with a monitored metric also the three best.

    A private run never selects by a metric: on private data that is a query the guarantee does not cover.
    """
    params: dict[str, Any] = {"dirpath": str(run_dir.checkpoints), "filename": "{epoch:06}", "save_last": True}
    params["enable_version_counter"] = False  # last.ckpt is the last, also after resuming from an earlier one
    model = to_plain(config.model).get("params", {})
    monitor = model.get("monitor")
    # validation is where the metric comes from; without it there is nothing to select by
    validated = to_plain(config.data).get("params", {}).get("validation") is not None
    if monitor and validated and not private:
        logger.info("monitoring %s for the best three checkpoints", monitor)
        params.update(monitor=monitor, save_top_k=3, mode="min")
    for node in (to_plain(lightning.get("modelcheckpoint", {}) or {}), merge_flags or {}):
        params.update(node.get("params", {}))
    if private and params.get("monitor"):
        raise UserError("lightning.modelcheckpoint.params.monitor: a private run may not select checkpoints; remove it")
    chosen = str(params.get("monitor") or "")
    if chosen.endswith("_ema") and not model.get("use_ema", True):  # else an epoch would pass before this shows
        raise UserError(
            f"the metric {chosen} to choose checkpoints by is logged with use_ema: true only; "
            f"type model.params.monitor={chosen.removesuffix('_ema')}"
        )
    try:
        return [instantiate_from_config({"target": "pytorch_lightning.callbacks.ModelCheckpoint", "params": params})]
    except MisconfigurationException as error:
        raise UserError(f"lightning.modelcheckpoint: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """A message of Lightning as one line."""
    return " ".join(str(error).split())
