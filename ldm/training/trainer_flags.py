"""The Trainer's command-line flags: today's Lightning, plus the spellings of the 1.4 generation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ldm.cli import ArgumentParser
from ldm.errors import UserError, nearest
from ldm.training.devices import resolve_devices

logger = logging.getLogger(__name__)

#: The arguments of Lightning's Trainer, listed here so that the command line is read without importing Lightning (a
#: test compares the list with the installed Lightning).
TRAINER_ARGUMENTS = (
    "accelerator",
    "accumulate_grad_batches",
    "barebones",
    "benchmark",
    "callbacks",
    "check_val_every_n_epoch",
    "default_root_dir",
    "detect_anomaly",
    "deterministic",
    "devices",
    "enable_autolog_hparams",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "fast_dev_run",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "inference_mode",
    "limit_predict_batches",
    "limit_test_batches",
    "limit_train_batches",
    "limit_val_batches",
    "log_every_n_steps",
    "logger",
    "max_epochs",
    "max_steps",
    "max_time",
    "min_epochs",
    "min_steps",
    "model_registry",
    "num_nodes",
    "num_sanity_val_steps",
    "overfit_batches",
    "plugins",
    "precision",
    "profiler",
    "reload_dataloaders_every_n_epochs",
    "strategy",
    "sync_batchnorm",
    "use_distributed_sampler",
    "val_check_interval",
)
OBJECTS = {  # objects that the driver builds: argument -> its place in the configuration
    "callbacks": "lightning.callbacks",
    "default_root_dir": "--logdir",
    "logger": "lightning.logger",
    "plugins": "nothing; checkpoints are always written by ldm.checkpoint.io",
}
RENAMED = {
    "resume_from_checkpoint": "ckpt_path",
    "checkpoint_callback": "enable_checkpointing",
    "replace_sampler_ddp": "use_distributed_sampler",
}
RETIRED = (
    "amp_backend",
    "amp_level",
    "auto_lr_find",
    "auto_scale_batch_size",
    "auto_select_gpus",
    "flush_logs_every_n_steps",
    "ipus",
    "log_gpu_memory",
    "max_time_per_run",
    "move_metrics_to_cpu",
    "multiple_trainloader_mode",
    "num_processes",
    "prepare_data_per_node",
    "process_position",
    "reload_dataloaders_every_epoch",
    "stochastic_weight_avg",
    "terminate_on_nan",
    "tpu_cores",
    "track_grad_norm",
    "truncated_bptt_steps",
    "weights_save_path",
)
SPECIAL = ("distributed_backend", "gpus", "weights_summary", "progress_bar_refresh_rate")
WORDS = {"true": True, "yes": True, "false": False, "no": False, "none": None, "null": None}


def trainer_arguments() -> list[str]:
    """Names of the current Trainer's arguments that can be written as text."""
    return [name for name in TRAINER_ARGUMENTS if name not in OBJECTS]


def known_trainer_settings() -> set[str]:
    """Every key of ``lightning.trainer`` that is read, of any Lightning version."""
    return {*trainer_arguments(), *SPECIAL, *OBJECTS, *RENAMED, *RETIRED, "ckpt_path", "strategy"}


def add_trainer_flags(parser: ArgumentParser) -> None:
    """Add one flag per Trainer argument, old spellings included, to a group of their own."""
    group = parser.add_argument_group("Trainer", "every argument of Lightning's Trainer, old spellings included")
    for name in sorted({*trainer_arguments(), *OBJECTS, *RENAMED, *RETIRED, *SPECIAL}):
        note = "GPUs by index or count: '0,' or 1 or -1" if name == "gpus" else argument_note(name)
        group.add_argument(f"--{name}", nargs="?", const=True, default=None, type=parse_value, metavar="X", help=note)


def argument_note(name: str) -> str:
    """One line of help for a flag."""
    if name in RENAMED:
        return f"old spelling of {RENAMED[name]}"
    if name in OBJECTS:
        return f"accepted and ignored; what counts is {OBJECTS[name]}"
    return "retired; accepted and ignored" if name in RETIRED else f"see Trainer({name}=...)"


def parse_value(text: Any) -> Any:
    """Read a flag's value: a whole or decimal number (1e-3 too), yes/no, none, or else the text itself.

    YAML is unsuitable because it reads 1e-3 as text and 10:00:00 as a number of seconds.
    """
    if not isinstance(text, str):
        return text
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def translate_legacy_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Trainer settings of any Lightning version under today's names, with devices of this machine.

    Raises UserError for unknown names, naming the nearest, and for a GPU on a machine without one.
    """
    return resolve_devices(rename_legacy_arguments(settings))


def rename_legacy_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Trainer settings of any Lightning version under today's names, without a check of the machine's devices."""
    result: dict[str, Any] = {}
    known = {*trainer_arguments(), *SPECIAL, "ckpt_path", "strategy"}
    for name, value in settings.items():
        if name in RETIRED:
            logger.warning("lightning.trainer.%s has no counterpart today and is ignored", name)
        elif name in OBJECTS:
            logger.warning("lightning.trainer.%s is ignored; what counts is %s", name, OBJECTS[name])
        elif name in RENAMED:
            result[RENAMED[name]] = value
        elif name == "weights_summary":
            result["enable_model_summary"] = not (value is None or value is False or value == "None")
        elif name == "progress_bar_refresh_rate":
            result["enable_progress_bar"] = value is None or whole_number(name, value) > 0
        elif name in known:
            result[name] = value
        else:
            raise UserError(f"lightning.trainer.{name}: the Trainer has no such argument{nearest(name, known)}")
    return result


def whole_number(name: str, value: Any) -> int:
    """A Trainer setting as a whole number; raises UserError for text, a fraction, or a yes or no."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"lightning.trainer.{name}: {value!r} is no whole number")
    return value


def merge_flags(earlier: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Trainer settings of the configuration, overridden by those of the command line.

    Devices on the command line replace configured ones, whichever spelling either uses. For example ``--gpus 0,``
    overrides the ``accelerator: cpu`` that a resumed run has stored.
    """
    replaced = {"gpus": ("gpus", "devices", "accelerator"), "devices": ("gpus", "devices")}
    gone = {name for flag in flags for name in replaced.get(flag, ())}
    if flags.get("accelerator") == "cpu":
        gone |= {"gpus", "devices"}
    return {**{name: value for name, value in earlier.items() if name not in gone}, **flags}
