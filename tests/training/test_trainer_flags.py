"""Trainer flags of every age, and what a mistake in them is answered with."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pytest
import pytorch_lightning as pl

from ldm.cli import ArgumentParser
from ldm.errors import UserError
from ldm.training import trainer_flags
from ldm.training.trainer_flags import (
    add_trainer_flags,
    merge_flags,
    parse_value,
    translate_legacy_arguments,
)

# the arguments of Lightning 1.4.2's Trainer
# fmt: off
OLD = (
    "logger", "checkpoint_callback", "callbacks", "default_root_dir", "gradient_clip_val",
    "gradient_clip_algorithm", "process_position", "num_nodes", "num_processes", "devices", "gpus",
    "auto_select_gpus", "tpu_cores", "ipus", "log_gpu_memory", "progress_bar_refresh_rate", "overfit_batches",
    "track_grad_norm", "check_val_every_n_epoch", "fast_dev_run", "accumulate_grad_batches", "max_epochs",
    "min_epochs", "max_steps", "min_steps", "max_time", "limit_train_batches", "limit_val_batches",
    "limit_test_batches", "limit_predict_batches", "val_check_interval", "flush_logs_every_n_steps",
    "log_every_n_steps", "accelerator", "sync_batchnorm", "precision", "weights_summary", "weights_save_path",
    "num_sanity_val_steps", "truncated_bptt_steps", "resume_from_checkpoint", "profiler", "benchmark",
    "deterministic", "reload_dataloaders_every_n_epochs", "reload_dataloaders_every_epoch", "auto_lr_find",
    "replace_sampler_ddp", "terminate_on_nan", "auto_scale_batch_size", "prepare_data_per_node", "plugins",
    "amp_backend", "amp_level", "distributed_backend", "move_metrics_to_cpu", "multiple_trainloader_mode",
    "stochastic_weight_avg",
)
# fmt: on


@pytest.fixture
def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="x")
    add_trainer_flags(parser)
    return parser


@pytest.mark.parametrize("name", OLD)
def test_every_old_argument_is_a_flag_and_is_translated(parser: ArgumentParser, gpus: Any, name: str) -> None:
    gpus(0)
    given = vars(parser.parse_args([f"--{name}", "cpu" if name == "accelerator" else "0"]))[name]
    result = translate_legacy_arguments({name: given})
    assert set(result) <= {*trainer_flags.trainer_arguments(), "ckpt_path"}


@pytest.mark.parametrize("name", ["devices", "strategy", "enable_progress_bar", "detect_anomaly", "inference_mode"])
def test_arguments_of_today_are_flags(parser: ArgumentParser, name: str) -> None:
    assert vars(parser.parse_args([f"--{name}", "3"]))[name] == 3
    assert vars(parser.parse_args([f"--{name}"]))[name] is True
    assert vars(parser.parse_args([]))[name] is None


def test_the_tables_name_what_lightning_has_and_lacks() -> None:
    theirs = inspect.signature(pl.Trainer.__init__).parameters
    assert set(trainer_flags.TRAINER_ARGUMENTS) == set(theirs) - {"self"}, (
        "the table is that of the installed Lightning"
    )
    here = set(trainer_flags.trainer_arguments())
    assert not here & {*trainer_flags.RETIRED, *trainer_flags.RENAMED, *trainer_flags.SPECIAL}
    assert set(trainer_flags.RENAMED.values()) - {"ckpt_path"} <= here


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-1", -1),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ("No", False),
        ("null", None),
        ("0,", "0,"),
        ("0,1", "0,1"),
        ("[0]", "[0]"),
        ("10:00:00:00", "10:00:00:00"),
        ("bf16-mixed", "bf16-mixed"),
        ("", ""),
    ],
)
def test_values_are_read_as_meant(text: str, value: Any) -> None:
    found = parse_value(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("earlier", "flags", "merged"),
    [
        ({"accelerator": "cpu", "devices": 1}, {"gpus": "0,"}, {"gpus": "0,"}),
        ({"accelerator": "gpu", "devices": [0]}, {"accelerator": "cpu"}, {"accelerator": "cpu"}),
        ({"gpus": "1,"}, {"accelerator": "gpu"}, {"gpus": "1,", "accelerator": "gpu"}),
        ({"gpus": "0,1"}, {"devices": 1}, {"devices": 1}),
        ({"max_epochs": 3, "gpus": 1}, {"max_epochs": 5}, {"max_epochs": 5, "gpus": 1}),
    ],
)
def test_typed_devices_replace_configured_ones(earlier: dict, flags: dict, merged: dict) -> None:
    assert merge_flags(earlier, flags) == merged


def test_old_keys_of_yaml_files(gpus: Any, caplog: pytest.LogCaptureFixture) -> None:
    gpus(0)
    old = {
        "accelerator": "ddp",
        "weights_summary": "top",
        "progress_bar_refresh_rate": 0,
        "resume_from_checkpoint": "a.ckpt",
        "checkpoint_callback": False,
        "terminate_on_nan": True,
        "logger": False,
        "benchmark": True,
    }
    with caplog.at_level(logging.WARNING):
        result = translate_legacy_arguments(old)
    assert result == {
        "accelerator": "auto",
        "devices": 1,
        "enable_model_summary": True,
        "enable_progress_bar": False,
        "ckpt_path": "a.ckpt",
        "enable_checkpointing": False,
        "benchmark": True,
    }
    assert "terminate_on_nan has no counterpart today and is ignored" in caplog.text
    assert "logger is ignored; what counts is lightning.logger" in caplog.text
    assert translate_legacy_arguments({"weights_summary": None})["enable_model_summary"] is False
    assert translate_legacy_arguments({"progress_bar_refresh_rate": 20})["enable_progress_bar"] is True


@pytest.mark.parametrize(
    ("name", "meant"), [("max_epoch", "max_epochs"), ("acelerator", "accelerator"), ("gpu", "gpus")]
)
def test_unknown_arguments_name_the_nearest(
    parser: ArgumentParser, capsys: pytest.CaptureFixture[str], name: str, meant: str
) -> None:
    with pytest.raises(UserError, match=f"lightning.trainer.{name}: .*did you mean '{meant}'"):
        translate_legacy_arguments({name: 1})
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([f"--{name}", "1"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: unknown flag '--{name}'; did you mean '--{meant}'?\n"
