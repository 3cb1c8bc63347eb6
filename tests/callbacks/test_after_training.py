"""Loggers of services get the entries of a private run at its end, all together."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pytorch_lightning.loggers import CSVLogger, Logger

from callbacks.after_training import AfterTraining
from callbacks.step_clock import StepClock
from ldm.errors import UserError
from ldm.training import trainer_parts
from ldm.training.run_directory import RunDirectory
from ldm.training.trainer_parts import build_loggers, uncovered_loggers


class Service(Logger):
    """Notes what it is given."""

    made: list[Service]

    def __init__(self, save_dir: str = "") -> None:
        super().__init__()
        self.entries: list[tuple[dict[str, float], int | None]] = []
        self.ended = ""
        Service.made.append(self)

    name = "service"
    version = ""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.entries.append((dict(metrics), step))

    def log_hyperparams(self, params: Any, *_: Any) -> None:
        self.settings = params

    def finalize(self, status: str) -> None:
        self.ended = status


@pytest.fixture(autouse=True)
def services(monkeypatch: pytest.MonkeyPatch) -> None:
    Service.made = []
    monkeypatch.setattr(Service, "__module__", "pytorch_lightning.loggers.service")  # configurations may build it
    monkeypatch.setitem(trainer_parts.LOGGERS, "wandb", "pytorch_lightning.loggers.Service")
    monkeypatch.setattr("pytorch_lightning.loggers.Service", Service, raising=False)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: name == "wandb" or found(name, *a))


def test_nothing_is_made_before_the_end_and_everything_arrives_once() -> None:
    logger = AfterTraining(Service, "wandb")
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"privacy/epsilon": 0.5}, 1)
    logger.log_metrics({"privacy/epsilon": 0.7}, 2)
    assert Service.made == []
    logger.finalize("success")
    logger.finalize("success")
    (service,) = Service.made
    assert service.entries == [({"privacy/epsilon": 0.5}, 1), ({"privacy/epsilon": 0.7}, 2)]
    assert service.settings == {"a": 1} and service.ended == "success"


def test_a_run_that_logged_nothing_makes_no_entry() -> None:
    AfterTraining(Service, "wandb").finalize("failed")
    assert Service.made == []


def test_one_word_names_a_logger(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "now")
    public = build_loggers(OmegaConf.create({"logger": "wandb"}), run)
    assert isinstance(public[0], Service) and isinstance(public[1], CSVLogger)
    private = build_loggers(OmegaConf.create({"logger": "wandb"}), run, StepClock(0))
    assert isinstance(private[0], AfterTraining) and uncovered_loggers(private) == ()
    with pytest.raises(UserError, match="'wandbb' is unknown; did you mean 'wandb'"):
        build_loggers(OmegaConf.create({"logger": "wandbb"}), run)


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    if importlib.util.find_spec("mlflow"):
        pytest.skip("mlflow is installed")
    with pytest.raises(UserError, match="mlflow is not installed; type pip install mlflow"):
        build_loggers(OmegaConf.create({"logger": "mlflow"}), RunDirectory(tmp_path, "now"))
