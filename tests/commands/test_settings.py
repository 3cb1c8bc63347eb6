"""One spelling of settings, `key.path=value`, in every command that reads a YAML file, and a misspelt key is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm.commands.table import dispatch
from ldm.config import load_config
from ldm.errors import UserError
from ldm.samples import SampleSet
from ldm.training.settings import check_settings
from tests import tiny
from tests.tiny_runs import small_checkpoint, small_ldm, write_yaml


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the YAML of a private run, and a checkpoint of its model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    section = small_ldm(train_condition_only=True, dp_config=tiny.dp(dataset_size=30))
    write_yaml(tmp_path / "run.yaml", tiny.run_config(section, tmp_path / "digits", max_steps=2))
    small_checkpoint(tmp_path / "model.ckpt", small_ldm())
    return tmp_path


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("modle.params.scale_factor=2", "there is no section 'modle'; did you mean 'model'"),
        ("model.parms.scale_factor=2", "model has no key 'parms'; did you mean 'params'"),
        ("model.base_learning_rat=1", "did you mean 'base_learning_rate'"),
        ("model.params.scale_facto=2", "model.params has no key 'scale_facto'; did you mean 'scale_factor'"),
        ("model.params.dp_config.epsilonn=2", "dp_config has no key 'epsilonn'; did you mean 'epsilon'"),
        ("model.params.unet_config.params.model_chanels=8", "did you mean 'model_channels'"),
        ("data.params.batchsize=5", "data.params has no key 'batchsize'; did you mean 'batch_size'"),
        ("data.params.train.params.sise=8", "did you mean 'size'"),
        ("lightning.trainer.max_step=3", "did you mean 'max_steps'"),
        ("lightning.calbacks.x=3", "did you mean 'callbacks'"),
        ("sampling.sorce=draws", "sampling has no key 'sorce'; did you mean 'source'"),
        ("model.params.qwertz=1", "no key 'qwertz'; it has "),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest(place: Path, setting: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        check_settings(load_config(["run.yaml"], [setting]), [setting])
    assert message in str(refusal.value) and str(refusal.value).startswith(f"'{setting}': ")


@pytest.mark.parametrize(
    "setting",
    [
        "model.params.dp_config.noise_multiplicity=2",
        "model.params.dp_config.DPDM_k=2",
        "model.params.ckpt_path=a.ckpt",
        "model.params.unet_config.params.attention_resolutions=[1]",
        "lightning.trainer.gpus=1",
        "lightning.callbacks.image_logger.params.disabled=false",
        "data.params.train.params.size=16",
        "data.params.validation={target: ldm.data.mnist.MNISTVal}",
    ],
)
def test_keys_that_exist_are_taken(place: Path, setting: str) -> None:
    check_settings(load_config(["run.yaml"], [setting]), [setting])


@pytest.mark.parametrize(
    "command",
    [
        "train run.yaml",
        "audit run.yaml --device cpu",
        "budget --yaml run.yaml",
        "sweep run.yaml --try model.base_learning_rate=1,2 --charge composition",
        "sample --yaml run.yaml --ckpt model.ckpt --output a.png --device cpu",
    ],
)
def test_every_command_that_reads_a_file_names_a_misspelt_key(place: Path, command: str) -> None:
    before = set(place.rglob("*"))
    words = command.split()
    with pytest.raises(UserError, match="did you mean 'max_grad_norm'"):
        dispatch([words[0], "model.params.dp_config.max_grad_nrm=1", *words[1:]])
    assert set(place.rglob("*")) == before


@pytest.mark.parametrize("command", ["release run out", "evaluate --samples a.pt --real b.pt", "verify out"])
def test_a_command_that_reads_no_file_says_so(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        dispatch([*command.split(), "model.params.scale_factor=2"])
    assert stop.value.code == 2
    assert "is a setting of a YAML file, and dp-ldm" in capsys.readouterr().err


def test_a_finished_run_is_audited_as_it_was_trained(place: Path) -> None:
    (place / "logs").mkdir()
    with pytest.raises(UserError, match="a finished run is audited as it was trained"):
        dispatch(["audit", "logs", "model.params.dp_config.max_grad_norm=9", "--device", "cpu"])


def test_samples_follow_the_settings_and_name_them(place: Path) -> None:
    words = ["sample", "--yaml", "run.yaml", "--ckpt", "model.ckpt", "-n", "2", "--steps", "2", "--device", "cpu"]
    dispatch([*words, "--output", "a.pt"])
    dispatch([*words, "--output", "b.pt", "model.params.scale_factor=2.0"])
    plain, other = SampleSet.load("a.pt"), SampleSet.load("b.pt")
    assert not torch.equal(plain.images, other.images)
    assert other.meta["settings"] == ["model.params.scale_factor=2.0"] and "settings" not in plain.meta
