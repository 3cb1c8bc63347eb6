"""Runs of main.py without privacy: what they leave behind, how they go on, and what stops one before it starts."""

from __future__ import annotations

import csv
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

import main
from callbacks.image_logger import ImageLogger
from ldm.checkpoint import read_checkpoint, save_checkpoint
from ldm.errors import UserError
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training import driver as training
from ldm.training.data_check import check_labels
from ldm.training.learning_rate import learning_rate
from ldm.training.run_directory import RunDirectory
from ldm.training.trainer_parts import build_callbacks, build_loggers, checkpointing
from tests import tiny
from tests.tiny_runs import Commands, commands, public_config, small_ldm, write_yaml

__all__ = ["commands"]

STAMP = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d"


def digits(folder: Path, kind: str = "MNISTVal") -> dict[str, Any]:
    """A data set node: 18 training or 6 validation images."""
    root = str(folder / "digits")
    return {"target": f"ldm.data.mnist.{kind}", "params": {"root": root, "size": 8, "channels": 1, "holdout": 6}}


class Listener(logging.Handler):
    """Keeps the messages of our own loggers."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A finished run of four epochs of three steps, with validation, a test set, images and every checkpoint."""
    folder = tmp_path_factory.mktemp("rich")
    base = public_config(folder, batch_size=6, max_epochs=9)
    base["data"]["params"]["train"] = digits(folder, "MNISTTrain")
    base["model"]["params"]["monitor"] = "val/loss"
    second = {
        "data": {"params": {"validation": digits(folder), "test": digits(folder)}},
        "lightning": {
            "trainer": {"max_epochs": 4},
            "callbacks": {
                "image_logger": {"params": {"disabled": False, "batch_frequency": 5, "steps": 2}},
                "metrics_over_trainsteps_checkpoint": {"params": {"every_n_train_steps": 5}},
            },
        },
    }
    words = ["--base", write_yaml(folder / "a.yaml", base), write_yaml(folder / "b.yaml", second), "-t"]
    words += ["-n", "rich[1]*", "--postfix=-x", "--gpus", "0,", "--accelerator", "cpu", "-s", 5]
    words += ["lightning.callbacks.image_logger.params.max_images=2", "model.params.ema_decay=0.5"]
    listener = Listener()
    logger = logging.getLogger("ldm")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(listener)
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = Commands(folder, monkeypatch)
        assert found.train(*words) == 0
    logger.removeHandler(listener)
    logger.setLevel(level)
    (run,) = found.runs()
    yield SimpleNamespace(folder=folder, run=run, lines=listener.lines)


@pytest.fixture
def copy(rich: SimpleNamespace, commands: Commands) -> Path:
    """The finished run, to go on with."""
    return Path(shutil.copytree(rich.run, commands.folder / "logs" / rich.run.name))


@pytest.fixture
def quick(commands: Commands) -> Any:
    """Train for a step with further words; returns the exit code."""
    config = write_yaml(commands.folder / "a.yaml", public_config(commands.folder, max_steps=1))

    def train(*words: object) -> int:
        return commands.train("--base", config, "-t", *words)

    return train


def of_twelve_classes() -> dict[str, Any]:
    """The model, but with two more classes."""
    section = small_ldm()
    section["params"]["cond_stage_config"]["params"]["n_classes"] = 12
    return section


def metrics(run: Path, name: str, version: int = 0) -> list[float]:
    """The values of a column of the run's CSV file."""
    with (run / "metrics" / f"version_{version}" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def epochs(run: Path) -> list[int]:
    """Numbers of the kept ``epoch=NNNNNN.ckpt`` files."""
    names = [path.name for path in (run / "checkpoints").glob("epoch=*.ckpt")]
    assert all(re.fullmatch(r"epoch=\d{6}\.ckpt", name) for name in names)
    return sorted(int(name[6:12]) for name in names)


# ---------------------------------------------------------------------- what a run leaves behind


def test_the_run_directory(rich: SimpleNamespace) -> None:
    assert re.fullmatch(STAMP + re.escape("_rich[1]*-x"), rich.run.name)
    assert sorted(path.name for path in rich.run.iterdir()) == [
        "checkpoints",
        "configs",
        "images",
        "metrics",
        "privacy.json",
        "progress.log",
        "tensorboard",
    ]
    stamp = rich.run.name[:19]
    names = sorted(path.name for path in (rich.run / "configs").iterdir())
    assert names == [f"{stamp}-lightning.yaml", f"{stamp}-project.yaml"]
    assert list((rich.run / "tensorboard" / "version_0").glob("events.*"))


def test_configurations_are_merged_from_left_to_right_and_kept(rich: SimpleNamespace) -> None:
    kept = OmegaConf.merge(*(OmegaConf.load(path) for path in sorted((rich.run / "configs").iterdir())))
    assert kept.model.params.ema_decay == 0.5, "from the command line"
    assert kept.lightning.trainer.max_epochs == 4, "the second file wins over the first"
    assert kept.lightning.trainer.accelerator == "cpu" and "gpus" not in kept.lightning.trainer
    assert kept.data.params.batch_size == 6 and kept.data.params.validation.target == "ldm.data.mnist.MNISTVal"
    assert kept.lightning.callbacks.image_logger.params == {
        "disabled": False,
        "batch_frequency": 5,
        "steps": 2,
        "max_images": 2,
    }


def test_checkpoints(rich: SimpleNamespace) -> None:
    scores = metrics(rich.run, "val/loss")
    assert len(scores) == 4
    best = sorted(range(4), key=scores.__getitem__)[:3]
    assert epochs(rich.run) == sorted(best), "the three lowest of the monitored metric"
    last = read_checkpoint(rich.run / "checkpoints" / "last.ckpt")
    assert last["epoch"] == 3 and last["global_step"] == 12
    assert last["state_dict"]["model_ema.num_updates"] == 12, "the average moves once a step"
    assert last["model_config"]["params"]["ema_decay"] == 0.5
    steps = sorted(path.name for path in (rich.run / "checkpoints" / "trainstep_checkpoints").iterdir())
    assert steps == ["epoch=000001-step=000000005.ckpt", "epoch=000003-step=000000010.ckpt"]
    assert not list(rich.run.rglob("*.tmp*"))


def test_images(rich: SimpleNamespace) -> None:
    names = {path.name for path in (rich.run / "images" / "train").iterdir()}
    assert names == {
        f"{key}_gs-{step}_e-{epoch}_b-{batch}.png"
        for key in ("reconstruction", "samples")
        for step, epoch, batch in (("000005", "000001", "000001"), ("000010", "000003", "000000"))
    }


def test_learning_rate_by_the_lineage_s_rule_is_said_once(rich: SimpleNamespace) -> None:
    (line,) = [line for line in rich.lines if line.startswith("learning rate")]
    assert line == (
        "learning rate 0.006 = 1 (accumulated) x 1 (devices) x 6 (batch) x 0.001 (base); --scale_lr False uses the base"
    )
    assert set(metrics(rich.run, "lr-AdamW")) == {0.006}


def test_the_test_set_is_tested_after_training(rich: SimpleNamespace) -> None:
    (score,) = metrics(rich.run, "test/loss")
    assert 0 < score < 10


# ---------------------------------------------------------------------- going on


def test_resume_by_directory(copy: Path, commands: Commands) -> None:
    assert commands.train("-r", copy, "-t", "--max_epochs", 5, "--no-test") == 0, commands.err
    assert commands.runs() == [copy], "the run keeps its name"
    last = read_checkpoint(copy / "checkpoints" / "last.ckpt")
    assert last["epoch"] == 4 and last["global_step"] == 15
    assert last["state_dict"]["model_ema.num_updates"] == 15
    pairs = sorted(path.name for path in (copy / "configs").iterdir())
    assert len(pairs) == 4 and pairs[2][:19] > pairs[0][:19]
    assert OmegaConf.load(copy / "configs" / pairs[2]).lightning.trainer.max_epochs == 5
    assert OmegaConf.load(copy / "configs" / pairs[3]).model.params.ema_decay == 0.5
    assert len(metrics(copy, "val/loss", version=1)) == 1 and (copy / "tensorboard" / "version_1").is_dir()
    assert "test/loss" not in (copy / "metrics" / "version_1" / "metrics.csv").read_text(), "--no-test"


def test_resume_by_file_in_the_middle_of_an_epoch(commands: Commands) -> None:
    config = public_config(commands.folder, batch_size=6)  # four steps an epoch
    config["lightning"]["logger"] = {"target": "pytorch_lightning.loggers.CSVLogger", "params": {"name": "mine"}}
    config["lightning"]["modelcheckpoint"] = {"params": {"every_n_train_steps": 2, "filename": "{step:03}"}}
    base = write_yaml(commands.folder / "mid.yaml", config)
    assert commands.train("--base", base, "-t", "--max_steps", 2) == 0, commands.err
    (run,) = commands.runs()
    assert re.fullmatch(f"{STAMP}_mid", run.name), "named after the first configuration file"
    names = {path.name for path in run.iterdir()}
    assert names == {"checkpoints", "configs", "metrics", "mine", "privacy.json", "progress.log"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step=002.ckpt", "last.ckpt"}
    words = ["-r", run / "checkpoints" / "step=002.ckpt", "-t", "--max_steps", 5]
    assert commands.train(*words) == 0, commands.err
    assert commands.runs() == [run]
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 4, "every second step"


def test_a_resumed_checkpoint_is_checked_before_anything_is_written(copy: Path, commands: Commands) -> None:
    (copy / "checkpoints" / "text.ckpt").write_text("no")
    content = {"state_dict": tiny.build(of_twelve_classes()).state_dict(), "optimizer_states": []}
    save_checkpoint(content, copy / "checkpoints" / "other.ckpt")
    weights = next((copy / "checkpoints" / "trainstep_checkpoints").iterdir())
    shutil.copy(weights, copy / "checkpoints" / "weights.ckpt")
    for name, line in (
        ("text.ckpt", "not a readable checkpoint"),
        ("other.ckpt", "does not fit the model of the configuration; give the YAML file that they were trained"),
        ("weights.ckpt", "holds weights only, no state of a training run; start a new run from it"),
    ):
        assert line in commands.refused(main.main, "-r", copy / "checkpoints" / name, "-t")
    none = commands.folder / "logs" / "none"
    assert "there is no such run directory" in commands.refused(main.main, "-r", none, "-t")
    assert "exclude each other" in commands.refused(main.main, "-r", copy, "-n", "x", "-t")


def test_testing_a_run_without_training_uses_its_checkpoint(
    copy: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(pl.Trainer, "test", lambda self, *args, ckpt_path: calls.append(ckpt_path))
    before = commands.files()
    assert commands.train("-r", copy) == 0, commands.err
    assert calls == [str(copy / "checkpoints" / "last.ckpt")]
    assert commands.files() == before


# ---------------------------------------------------------------------- flags


def test_without_t_nothing_is_trained(commands: Commands, caplog: pytest.LogCaptureFixture) -> None:
    config = write_yaml(commands.folder / "a.yaml", public_config(commands.folder))
    with caplog.at_level(logging.INFO):
        assert commands.train("--base", config) == 0
    assert "nothing is trained; -t trains" in caplog.text
    assert not (commands.folder / "logs").exists()


def test_seeds(quick: Any, commands: Commands) -> None:
    losses = []
    for seed in (5, 5, 6):
        assert quick("-s", seed, "-l", f"logs{len(losses)}") == 0, commands.err
        (run,) = commands.runs(f"logs{len(losses)}")
        losses.append(metrics(run, "train/loss_step"))
        assert epochs(run) == [0], "without validation the last epoch is kept"
    assert losses[0] == losses[1] != losses[2]


def test_unscaled_learning_rate_and_debug(quick: Any, commands: Commands, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert quick("--scale_lr", "False", "-d", "-n", "x") == 0, commands.err
    assert "learning rate 0.001 (base rate as it is, --scale_lr False)" in caplog.messages
    (aside,) = commands.runs()
    assert aside.name == "debug_runs"
    (run,) = aside.iterdir()
    assert re.fullmatch(f"{STAMP}_x", run.name) and (run / "checkpoints" / "last.ckpt").exists()
    assert set(metrics(run, "lr-AdamW")) == {0.001}


def test_a_failure_under_debug_opens_the_debugger(
    quick: Any, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pdb

    opened: list[str] = []

    def fail(self: Any, batch: Any, batch_idx: int) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(LatentDiffusion, "training_step", fail)
    monkeypatch.setattr(pdb, "post_mortem", lambda: opened.append("pdb"))
    monkeypatch.setattr(training.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(RuntimeError, match="broken on purpose"):
        quick("-d", "yes")
    assert opened == ["pdb"] and [path.name for path in commands.runs()] == ["debug_runs"]


def test_no_checkpoints_when_they_are_switched_off(quick: Any, commands: Commands) -> None:
    assert quick("--checkpoint_callback", "False") == 0, commands.err
    (run,) = commands.runs()
    assert list((run / "checkpoints").iterdir()) == []


def test_own_data_sets_need_to_be_allowed(commands: Commands) -> None:
    path = write_yaml(commands.folder / "a.yaml", public_config(commands.folder))
    words = ["--base", path, "data.params.train={target: fid.compute_fid.Sequence}"]
    assert "is not allowed" in commands.refused(main.main, *words)
    assert "is not allowed" not in commands.refused(main.main, *words, "--allow-target", "fid")


def test_an_autoencoder_is_trained_imaged_and_tested(commands: Commands) -> None:
    config = public_config(commands.folder, max_steps=1)
    params = {**tiny.AUTOENCODER["params"], "monitor": "val/rec_loss"}
    params["lossconfig"] = {"target": "ldm.modules.losses.reconstruction.ReconstructionKL"}
    config["model"] = {"base_learning_rate": 1e-3, "target": tiny.AUTOENCODER["target"], "params": params}
    config["data"]["params"].update(validation=digits(commands.folder), test=digits(commands.folder))
    config["lightning"]["callbacks"]["image_logger"]["params"] = {"batch_frequency": 1}
    path = write_yaml(commands.folder / "a.yaml", config)
    assert commands.train("--base", path, "-t", "--val_check_interval", 1) == 0, commands.err
    (run,) = commands.runs()
    images = {path.name.partition("_")[0] for path in (run / "images" / "train").iterdir()}
    assert images == {"inputs", "reconstructions", "samples"}
    assert len(metrics(run, "test/rec_loss")) == len(metrics(run, "val/rec_loss")) == 1


@pytest.mark.parametrize(("words", "batches"), [([], 3), (["--accumulate_grad_batches", 2], 2)])
def test_a_model_with_two_optimizers_accumulates_by_itself(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, words: list[Any], batches: int
) -> None:
    def stop(model: AutoencoderKL) -> None:
        raise UserError(f"batches a step: {model.accumulate_grad_batches}")

    monkeypatch.setattr(AutoencoderKL, "has_discriminator", True)
    monkeypatch.setattr(AutoencoderKL, "configure_optimizers", stop)
    config = public_config(commands.folder)
    params = {**tiny.AUTOENCODER["params"], "accumulate_grad_batches": 3}
    config["model"] = {"base_learning_rate": 1e-3, "target": tiny.AUTOENCODER["target"], "params": params}
    assert commands.train("--base", write_yaml(commands.folder / "a.yaml", config), "-t", *words) == 2
    assert f"error: batches a step: {batches}\n" in commands.err


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("modle.x=1", "unknown section 'modle' in the configuration; did you mean 'model'?"),
        ("data=null", "the configuration has no section 'data'"),
        ("lightning.trainr.max_epochs=1", "unknown key 'lightning.trainr'; did you mean 'trainer'?"),
        ("lightning.trainer.max_epoch=1", "lightning.trainer.max_epoch: the Trainer has no such argument; did you"),
        ("lightning.trainer=5", "lightning.trainer: 5 is no section; give its keys below it"),
        ("data.params=x", "data.params: 'x' is no section; give its keys below it"),
        ("model.parms.x=1", "unknown key 'model.parms'; did you mean 'params'?"),
        ("model.base_learning_rat=1", "unknown key 'model.base_learning_rat'; did you mean 'base_learning_rate'?"),
        ("model.base_learning_rate=0", "model.base_learning_rate is 0, no positive number; set it next to"),
        ("model.base_learning_rate=fast", "model.base_learning_rate is 'fast', no positive number"),
        ("model.base_learning_rate=null", "model.base_learning_rate is missing; set it next to model.target"),
        ("model.params.image_siz=4", "has no parameter 'image_siz'; did you mean 'image_size'?"),
        ("model.params.unet_config.params.num_head=4", "has no parameter 'num_head'; did you mean 'num_heads'?"),
        ("model.target=ldm.models.diffusion.ddpm.LatentDifusion", "did you mean 'LatentDiffusion'?"),
        ("model.target=os.system", "target 'os.system' is not allowed"),
        ("model.params.cond_stage_config.target=subprocess.run", "target 'subprocess.run' is not allowed"),
        ("model.params.ckpt_path=none.ckpt", "checkpoint 'none.ckpt' does not exist"),
        ("model.params.ckpt_path=text.ckpt", "'text.ckpt' is not a readable checkpoint"),
        ("model.params.ckpt_path=other.ckpt", "other.ckpt does not fit the model of the configuration; give"),
        ("model.params.cond_stage_config.params.n_classes=4", "data.params.train: class_label: label 4 is outside the"),
        ("data.params.batch_siz=1", "has no parameter 'batch_siz'; did you mean 'batch_size'?"),
        ("data.params.batch_size=0", "data: batch_size=0; give 1 or more"),
        ("data.params.train.params.siz=8", "has no parameter 'siz'; did you mean 'size'?"),
        ("data.params.train.params.holdout=24", "data.params.train: ldm.data.mnist.MNISTTrain has no records"),
        ("data.params.train.params.root=none", "MNISTTrain: no train-images-idx3-ubyte"),
        (
            "lightning.callbacks.image_loger.params.steps=1",
            "image_loger has no target; did you mean 'image_logger'",
        ),
        ("lightning.callbacks.image_logger.params.max_image=1", "'max_image'; did you mean 'max_images'?"),
        ("lightning.logger.target=pytorch_lightning.loggers.TestTubLogger", "has no 'TestTubLogger'"),
        ("lightning.modelcheckpoint.params.save_top=3", "has no parameter 'save_top'; did you mean 'save_top_k'?"),
        (
            "lightning.modelcheckpoint.params.save_top_k=3",
            "lightning.modelcheckpoint: ModelCheckpoint(save_top_k",
        ),
        (
            "model.params.use_ema=false lightning.modelcheckpoint.params.monitor=val/loss_ema",
            "logged with use_ema: true only; type model.params.monitor=val/loss",
        ),
        ("--seed -1", "--seed -1: give a whole number from 0"),
        ("--logdir a.yaml", "--logdir a.yaml: cannot be written to"),
        ("--name a/b", "--name a/b: a name holds no slash"),
        ("--precision 17", "lightning.trainer: "),
        ("--accelerator quantum", "lightning.trainer: "),
        ("--limit_train_batches 7.5", "lightning.trainer: "),
        ("--resume_from_checkpoint text.ckpt", "'text.ckpt' is not a readable checkpoint"),
        ("--resume_from_checkpoint other.ckpt", "other.ckpt: holds weights only"),
        ("--base none.yaml", "config file 'none.yaml' does not exist"),
    ],
)
def test_mistakes_stop_a_run_before_it_starts(commands: Commands, words: str, line: str) -> None:
    config = write_yaml(commands.folder / "a.yaml", public_config(commands.folder))
    (commands.folder / "text.ckpt").write_text("no checkpoint")
    if "other.ckpt" in words:
        save_checkpoint({"state_dict": tiny.build(of_twelve_classes()).state_dict()}, commands.folder / "other.ckpt")
    assert line in commands.refused(main.main, "--base", config, "-t", *words.split())


def test_a_value_that_is_left_to_be_set(commands: Commands) -> None:
    config = public_config(commands.folder, max_steps=1)
    config["model"]["params"]["ckpt_path"] = "???"
    path = write_yaml(commands.folder / "a.yaml", config)
    line = (
        "'model.params.ckpt_path' has no value yet (???); set it in the YAML file or type model.params.ckpt_path=VALUE"
    )
    assert commands.refused(main.main, "--base", path, "-t") == line
    assert "does not exist" in commands.refused(main.main, "--base", path, "-t", "model.params.ckpt_path=none.ckpt")


def test_no_configuration_at_all(commands: Commands) -> None:
    assert "no configuration: type --base FILE.yaml" in commands.refused(main.main, "-t")


def test_a_metric_that_nobody_logs(commands: Commands) -> None:
    config = public_config(commands.folder, max_steps=2)
    config["data"]["params"]["validation"] = digits(commands.folder)
    config["model"]["params"]["monitor"] = "val/los"
    assert commands.train("--base", write_yaml(commands.folder / "a.yaml", config), "-t") == 2
    (line,) = [line for line in commands.err.splitlines() if line.startswith("error: ")]
    assert "val/los" in line and "Traceback" not in commands.err


# ---------------------------------------------------------------------- the parts


@pytest.mark.parametrize(
    ("settings", "scale", "rate"),
    [
        ({}, True, 512e-6),
        ({"accumulate_grad_batches": 3}, True, 3 * 512e-6),
        ({"accelerator": "gpu", "devices": [0, 1], "accumulate_grad_batches": 2}, True, 4 * 512e-6),
        ({"accelerator": "gpu", "devices": [0, 1], "accumulate_grad_batches": 2}, False, 1e-6),
    ],
)
def test_learning_rate_rule(settings: dict[str, Any], scale: bool, rate: float) -> None:
    assert learning_rate(1e-6, 512, settings, scale) == pytest.approx(rate)


def callbacks_of(extra: dict[str, Any], folder: Path, monitor: str | None = None, **data: Any) -> dict[str, Any]:
    """The callbacks of a run by class name; several of one class are listed under it."""
    config = OmegaConf.create({"model": {"params": {"monitor": monitor}}, "data": {"params": data}})
    lightning = OmegaConf.create(extra)
    found: dict[str, Any] = {}
    for callback in build_callbacks(config, lightning, RunDirectory(folder, "stamp"), None):
        found.setdefault(type(callback).__name__, []).append(callback)
    return found


def test_default_callbacks(tmp_path: Path) -> None:
    found = callbacks_of({}, tmp_path)
    assert set(found) == {
        "SetupCallback",
        "ImageLogger",
        "LearningRateMonitor",
        "CUDACallback",
        "RescueCallback",
        "ModelCheckpoint",
        "ProgressLog",
        "EpochProgressBar",
    }
    (images,), (kept,) = found["ImageLogger"], found["ModelCheckpoint"]
    assert (images.batch_frequency, images.max_images, images.clamp) == (750, 4, True)
    assert kept.dirpath == str(tmp_path / "checkpoints") and kept.filename == "{epoch:06}" and kept.save_last
    assert kept.monitor is None and kept.save_top_k == 1


def test_callbacks_are_merged_key_by_key(tmp_path: Path) -> None:
    extra = {
        "callbacks": {
            "image_logger": {"target": "main.ImageLogger", "params": {"max_images": 8, "increase_log_steps": False}},
            "second": {"target": "callbacks.image_logger.ImageLogger", "params": {"batch_frequency": 9}},
            "metrics_over_trainsteps_checkpoint": {},
            "checkpoint_callback": {"params": {"save_last": False}},
        },
        "modelcheckpoint": {"params": {"save_top_k": -1, "save_last": True}},
    }
    found = callbacks_of(extra, tmp_path)
    first, second = found["ImageLogger"]
    assert isinstance(first, ImageLogger) and (first.max_images, first.batch_frequency) == (8, 750)
    assert second.batch_frequency == 9
    steps, kept = found["ModelCheckpoint"]
    assert (steps._every_n_train_steps, steps.save_top_k, steps.save_weights_only) == (10000, -1, True)
    assert steps.dirpath == str(tmp_path / "checkpoints" / "trainstep_checkpoints")
    assert steps.filename == "{epoch:06}-{step:09}"
    assert kept.save_top_k == -1 and kept.save_last is False, "the callback's own key wins"


def test_a_metric_needs_validation_and_no_privacy(tmp_path: Path) -> None:
    (kept,) = callbacks_of({}, tmp_path, monitor="val/loss", validation={"target": "x"})["ModelCheckpoint"]
    assert (kept.monitor, kept.save_top_k, kept.mode) == ("val/loss", 3, "min")
    (kept,) = callbacks_of({}, tmp_path, monitor="val/loss")["ModelCheckpoint"]
    assert kept.monitor is None
    config = {"model": {"params": {"monitor": "val/loss"}}, "data": {"params": {"validation": {}}}}
    run = RunDirectory(tmp_path, "stamp")
    (kept,) = checkpointing(OmegaConf.create(config), OmegaConf.create({}), None, run, private=True)
    assert kept.monitor is None and kept.save_top_k == 1
    asked = OmegaConf.create({"modelcheckpoint": {"params": {"monitor": "val/loss"}}})
    with pytest.raises(UserError, match="a private run may not select checkpoints"):
        checkpointing(OmegaConf.create(config), asked, None, run, private=True)


def test_loggers(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "stamp")

    def logs(**section: Any) -> list[tuple[str, str]]:
        made = build_loggers(OmegaConf.create({"logger": section} if section else {}), run)
        return [(type(logger).__name__, Path(logger.log_dir).relative_to(tmp_path).as_posix()) for logger in made]

    table = ("CSVLogger", "metrics/version_0")
    assert logs() == [("TensorBoardLogger", "tensorboard/version_0"), table]
    assert logs(params={"name": "tb", "version": 7}) == [("TensorBoardLogger", "tb/version_7"), table]
    csv_logger = "pytorch_lightning.loggers.CSVLogger"
    assert logs(target=csv_logger, params={"name": "x"}) == [("CSVLogger", "x/version_0"), table]
    assert list(tmp_path.iterdir()) == [], "naming loggers writes nothing"


def test_labels_are_checked_where_a_set_can_tell_them() -> None:
    model = tiny.build(small_ldm())
    good, bad = SimpleNamespace(labels=torch.tensor([0, 9])), SimpleNamespace(labels=torch.tensor([3, 10]))
    check_labels(model, SimpleNamespace(datasets={"train": good, "test": object()}))
    with pytest.raises(UserError, match="data.params.validation: class_label: label 10 is outside the model's 10"):
        check_labels(model, SimpleNamespace(datasets={"train": good, "validation": bad}))
    check_labels(tiny.build(small_ldm("attention")), SimpleNamespace(datasets={"train": bad}))
    check_labels(torch.nn.Identity(), SimpleNamespace(datasets={"train": bad}))
