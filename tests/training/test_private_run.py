"""Whole private runs through the driver: what they train, charge, write and refuse."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from opacus.accountants import RDPAccountant
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ldm.checkpoint import ema_to_parameters, read_checkpoint
from ldm.config import load_config
from ldm.data.module import DataModuleFromConfig
from ldm.errors import UserError
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.dp_config import read_dp_config
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.privacy.sampling import PoissonBatchSampler
from ldm.training import private_run, train
from ldm.training.run_directory import RunDirectory
from ldm.training.unprotected_run import warn_unprotected
from tests import tiny

RATE = 0.25  # 24 records in batches of 6
DELTA = 1e-3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with digits, public checkpoints and a cache of its own."""
    folder = tmp_path_factory.mktemp("private")
    tiny.write_digits(folder / "digits")
    for kind in tiny.KINDS:
        tiny.public_checkpoint(folder / f"{kind}.ckpt", kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


def section(place: Path, kind: str = "spatial", dp: Mapping[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    """The model section of a fine-tuning run."""
    flag = "train_condition_only" if kind == "spatial" else "train_attention_only"
    given = {"ckpt_path": str(place / f"{kind}.ckpt"), flag: True, "dp_config": tiny.dp(**(dp or {}))}
    return tiny.ldm(kind, **{**given, **params})


def config_of(
    place: Path, kind: str = "spatial", dp: Mapping[str, Any] | None = None, batch_size: int = 6, **trainer: Any
) -> dict[str, Any]:
    return tiny.run_config(section(place, kind, dp), place / "digits", batch_size, **trainer)


@dataclass
class Steps:
    """What the private steps of a run were given, in order: the labels of each batch."""

    labels: list[list[int]] = field(default_factory=list)

    @property
    def sizes(self) -> list[int]:
        return [len(labels) for labels in self.labels]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    seen = Steps()
    step = PrivateTraining.step

    def watched(self: PrivateTraining, model: Any, batch: Mapping[str, Any]) -> None:
        assert batch["class_label"].dtype == torch.int64 and batch["moments"].dtype == torch.float32
        seen.labels.append(batch["class_label"].tolist())
        step(self, model, batch)

    monkeypatch.setattr(PrivateTraining, "step", watched)
    return seen


def card_of(run: RunDirectory) -> dict[str, Any]:
    return json.loads(run.privacy_card.read_text())


def last(run: RunDirectory) -> dict[str, Any]:
    return read_checkpoint(run.checkpoints / "last.ckpt")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the running epsilon of the progress bar, half of the time of a run as short as these."""
    monkeypatch.setattr(private_run, "EpsilonMeter", lambda *_, **__: lambda steps: 0.0)


# ---------------------------------------------------------------------- one calibrated run, looked at from all sides


@pytest.fixture(scope="module")
def finished(place: Path) -> RunDirectory:
    """Two epochs at epsilon 2, with images, a validation set and a metric to monitor."""
    config = config_of(place, dp={"noise_multiplier": None, "epsilon": 2, "public_data": ["random dots"]}, max_epochs=2)
    config["model"]["params"]["monitor"] = "val/loss"
    config["data"]["params"]["validation"] = config["data"]["params"]["train"]
    config["data"]["params"]["test"] = config["data"]["params"]["train"]
    images = {"disabled": False, "batch_frequency": 3, "log_first_step": True, "max_images": 4, "steps": 2}
    config["lightning"]["callbacks"]["image_logger"]["params"] = images
    return train(tiny.options(place / "finished", config))


def test_steps_run_are_steps_charged_are_steps_planned(finished: RunDirectory) -> None:
    checkpoint, card = last(finished), card_of(finished)
    assert card["steps"] == {"taken": 8, "planned": 8}
    assert checkpoint["privacy"]["ledger"]["steps"] == checkpoint["global_step"] == 8
    assert checkpoint["privacy"]["ledger"] == card["ledger"] and checkpoint["privacy"]["plan"] == card["plan"]
    assert int(checkpoint["state_dict"]["model_ema.num_updates"]) == 8
    (plan,) = {(card["plan"]["sample_rate"], card["plan"]["expected_batch_size"])}
    assert plan == (RATE, 6)


def test_the_published_epsilon_is_that_of_independent_accountants(finished: RunDirectory) -> None:
    card = card_of(finished)
    sigma = card["plan"]["noise_multiplier"]
    accountant = PLDAccountant()
    accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(RATE, GaussianDpEvent(sigma)), 8))
    exact = accountant.get_epsilon(DELTA)
    assert card["epsilon"]["pld"] == pytest.approx(exact, rel=0.01)
    assert 0.99 * 2 < card["epsilon"]["pld"] <= 2
    renyi = RDPAccountant()
    renyi.history = [(sigma, RATE, 8)]
    assert card["epsilon"]["pld"] <= renyi.get_epsilon(DELTA)
    assert card["epsilon"]["pld"] <= card["epsilon"]["rdp"]


def test_the_card_is_whole_readable_by_all_and_says_what_is_private(finished: RunDirectory) -> None:
    assert finished.privacy_card.stat().st_mode & 0o777 == 0o644
    assert not [path for path in finished.path.rglob(".*") if path.is_file()]
    card = card_of(finished)
    assert card["private"] is True and card["rng"] == "secure" and card["not_covered"] == []
    assert card["public_data"] == ["random dots"]
    assert card["delta"] == DELTA and card["relation"] == "add_or_remove_one"


def test_the_metrics_are_epsilon_and_the_learning_rate_and_epsilon_rises_to_the_target(finished: RunDirectory) -> None:
    with (finished.path / "metrics" / "version_0" / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert set(rows[0]) == {"epoch", "step", "privacy/epsilon", "lr-AdamW"}
    shown = [float(row["privacy/epsilon"]) for row in rows if row["privacy/epsilon"]]
    assert len(shown) == 8 and shown == sorted(shown) and len(set(shown)) == 8
    assert shown[-1] <= 2 and shown[-1] == pytest.approx(card_of(finished)["epsilon"]["pld"], rel=1e-4)


def test_tensorboard_says_no_more_than_that(finished: RunDirectory) -> None:
    events = EventAccumulator(str(finished.path / "tensorboard" / "version_0"))
    events.Reload()
    tags = {name: tags for name, tags in events.Tags().items() if tags}
    assert set(tags) == {"scalars", "images", "tensors"}
    assert tags["images"] == ["samples"] and tags["tensors"] == ["config/text_summary"]
    assert set(tags["scalars"]) == {"epoch", "privacy/epsilon", "lr-AdamW"}


def test_images_are_samples_of_the_model_only(finished: RunDirectory) -> None:
    images = sorted(path.name for path in finished.path.rglob("*.png"))
    assert [name.split("_e-")[0] for name in images] == [f"samples_gs-{step:06d}" for step in (1, 3, 6)]


def test_nothing_else_is_written(finished: RunDirectory) -> None:
    files = {str(path.relative_to(finished.path)).split("/")[0] for path in finished.path.rglob("*") if path.is_file()}
    assert files == {"checkpoints", "configs", "images", "metrics", "privacy.json", "progress.log", "tensorboard"}
    assert {path.name for path in finished.checkpoints.iterdir()} == {"epoch=000001.ckpt", "last.ckpt"}
    # no generator states, no data, no sampler; the loops hold counts of steps
    assert set(last(finished)) == {
        "callbacks",
        "epoch",
        "global_step",
        "loops",
        "lr_schedulers",
        "model_config",
        "optimizer_states",
        "privacy",
        "pytorch-lightning_version",
        "state_dict",
    }


def numbers(content: Any) -> Iterator[float]:
    """Every number in nested containers."""
    if isinstance(content, Mapping):
        for value in content.values():
            yield from numbers(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from numbers(value)
    elif isinstance(content, float):
        yield content


def test_no_checkpoint_was_selected_by_a_score(finished: RunDirectory) -> None:
    state = last(finished)["callbacks"]
    (name,) = [name for name in state if name.startswith("ModelCheckpoint")]
    assert "'monitor': None" in name and state[name]["best_model_score"] is None
    assert list(numbers(last(finished)["loops"])) == [], "counts are whole; a fraction would be a measurement"


def test_what_was_trained_is_what_was_noised(finished: RunDirectory, place: Path) -> None:
    card = card_of(finished)
    start = tiny.build(section(place))
    after = last(finished)["state_dict"]
    changed = {name for name, value in start.named_parameters() if not torch.equal(value, after[name])}
    assert changed == set(card["trained"]["parameters"])
    assert card["trained"]["coordinates"] == sum(after[name].numel() for name in changed)
    dead = set(card["left_out"])
    assert len(dead) == 4 * 7 and dead.isdisjoint(changed)
    assert dead <= {name for name, _ in start.named_parameters()}
    buffers = {name for name, _ in start.named_buffers() if not name.startswith("model_ema.")}
    assert all(torch.equal(start.state_dict()[name], after[name]) for name in buffers & set(after))


def test_frozen_weights_are_the_same_in_training_and_in_sampling(finished: RunDirectory, place: Path) -> None:
    model = tiny.build(section(place))
    state = last(finished)["state_dict"]
    averages = ema_to_parameters(model.model, state)
    trained = set(card_of(finished)["trained"]["parameters"])
    for name, value in averages.items():
        assert torch.equal(value, state[f"model.{name}"]) != (f"model.{name}" in trained), name


def test_wrong_per_record_gradients_end_a_run_before_its_first_step(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(self: LatentDiffusion, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        weight = next(parameter for parameter in self.parameters() if parameter.requires_grad)
        return per_example_losses(self, rows) + weight.square().sum()

    per_example_losses = LatentDiffusion.per_example_losses
    monkeypatch.setattr(LatentDiffusion, "per_example_losses", leaky)
    with pytest.raises(UserError, match="do not add up to its ordinary gradient"):
        train(tiny.options(tmp_path, config_of(place, "attention", max_steps=1)))
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("privacy.json"))


# ---------------------------------------------------------------------- rule 1: one batch is one draw


@pytest.mark.parametrize(("kind", "workers"), [("attention", 0), ("spatial", 2)])
def test_every_batch_is_one_draw_of_the_plans_sampler(kind: str, workers: int, place: Path, steps: Steps) -> None:
    config = config_of(place, kind, {"insecure_seed": 3, "max_batch_size": 2}, num_workers=workers, max_epochs=3)
    run = train(tiny.options(place / f"draws{workers}", config))
    draws = PoissonBatchSampler(tiny.RECORDS, RATE, 12, insecure_seed=3)
    assert steps.labels == [[index % tiny.CLASSES for index in draw] for draw in draws]
    assert card_of(run)["steps"] == {"taken": 12, "planned": 12}
    assert last(run)["global_step"] == 12 and int(last(run)["state_dict"]["model_ema.num_updates"]) == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_empty_draws_are_steps(workers: int, place: Path, steps: Steps) -> None:
    dp = {"insecure_seed": 1, "sample_rate": 0.04}
    config = config_of(place, "attention", dp, batch_size=1, num_workers=workers, max_steps=9)
    run = train(tiny.options(place / f"empty{workers}", config))
    assert len(steps.sizes) == 9 and 3 <= steps.sizes.count(0) < 9
    assert card_of(run)["steps"] == {"taken": 9, "planned": 9}


def test_accumulating_or_dropping_no_draw_when_steps_do_not_fill_an_epoch(place: Path, steps: Steps) -> None:
    run = train(tiny.options(place / "partial", config_of(place, "attention", max_steps=6, min_epochs=2, min_steps=7)))
    assert len(steps.sizes) == 6 == card_of(run)["steps"]["taken"]


# ---------------------------------------------------------------------- rule 5 and the generators


def one_step(place: Path, name: str, **dp: Any) -> RunDirectory:
    return train(tiny.options(place / name, config_of(place, "attention", dp, batch_size=24, max_steps=1), seed=23))


def differing(first: RunDirectory, second: RunDirectory) -> set[str]:
    a, b = (last(run)["state_dict"] for run in (first, second))
    return {name for name in a if not torch.equal(a[name], b[name])}


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Torch's generator when loaders are made, which seed their workers from it: what data sets will draw."""
    seen: list[bytes] = []
    loader = DataModuleFromConfig.train_dataloader

    def watched(self: DataModuleFromConfig) -> Any:
        seen.append(torch.get_rng_state().numpy().tobytes())
        return loader(self)

    monkeypatch.setattr(DataModuleFromConfig, "train_dataloader", watched)
    return seen


def test_two_runs_with_one_training_seed_differ_in_their_noise(place: Path, states: list[bytes]) -> None:
    runs = [one_step(place, f"secure{i}") for i in range(2)]
    assert len(set(states)) == 2
    trained = set(card_of(runs[0])["trained"]["parameters"])
    assert {name for name in differing(*runs) if name.startswith("model.")} == trained
    assert all(card_of(run)["private"] for run in runs)


def test_runs_with_an_insecure_seed_agree_and_say_so(place: Path, states: list[bytes]) -> None:
    runs = [one_step(place, f"insecure{i}", insecure_seed=5) for i in range(2)]
    assert len(set(states)) == 1
    assert differing(*runs) == set()
    card = card_of(runs[0])
    assert card["private"] is False and card["rng"] == "insecure"
    assert card["statement"].startswith("NOT private: insecure_seed 5")


def test_a_start_from_another_private_run_is_said(place: Path, finished: RunDirectory) -> None:
    config = config_of(place, max_steps=1)
    config["model"]["params"]["ckpt_path"] = str(finished.checkpoints / "last.ckpt")
    second = train(tiny.options(place / "second", config))
    card, before = card_of(second), card_of(finished)
    assert card["private"] is True and "1 other private run included" in card["statement"]
    assert card["others"] == [{"plan": before["plan"], "ledger": before["ledger"]}]
    accountant = PLDAccountant()
    for plan, steps in ((before["plan"], 8), (card["plan"], 1)):
        step = PoissonSampledDpEvent(plan["sample_rate"], GaussianDpEvent(plan["noise_multiplier"]))
        accountant.compose(SelfComposedDpEvent(step, steps))
    assert card["epsilon"]["pld"] == pytest.approx(accountant.get_epsilon(DELTA), rel=0.01)
    # the third run charges both, and its weights carry the accounts of both
    config["model"]["params"]["ckpt_path"] = str(second.checkpoints / "last.ckpt")
    third = train(tiny.options(place / "third", config))
    assert [len(account["ledger"]["entries"]) for account in card_of(third)["others"]] == [1, 1]
    nested = last(third)["start_privacy"]
    assert nested["ledger"] == card["ledger"] and nested["start_privacy"]["ledger"] == before["ledger"]
    assert card_of(third)["epsilon"]["pld"] > card["epsilon"]["pld"] > before["epsilon"]["pld"]


def test_an_ancestor_that_cannot_be_charged_is_not_covered(place: Path) -> None:
    insecure = one_step(place, "known-seed", insecure_seed=5)
    config = config_of(place, "attention", max_steps=1)
    config["model"]["params"]["ckpt_path"] = str(insecure.checkpoints / "last.ckpt")
    card = card_of(train(tiny.options(place / "after-insecure", config)))
    assert card["private"] is False and "its noise has a known seed" in card["not_covered"][0]


def test_other_runs_on_the_same_records_are_charged_before_the_noise_is_chosen(
    place: Path, finished: RunDirectory
) -> None:
    config = config_of(
        place, dp={"noise_multiplier": None, "epsilon": 4, "other_runs": [str(finished.path)]}, max_steps=2
    )
    run = train(tiny.options(place / "charged", config))
    card = card_of(run)
    assert 0.99 * 4 < card["epsilon"]["pld"] <= 4 and len(card["others"]) == 1
    alone = config_of(place, dp={"noise_multiplier": None, "epsilon": 4}, max_steps=2)
    plan = card_of(train(tiny.options(place / "alone", alone)))["plan"]
    assert card["plan"]["noise_multiplier"] > plan["noise_multiplier"]
    assert last(run)["start_privacy"]["ledger"] == card_of(finished)["ledger"]


# ---------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def model(place: Path) -> Any:
    return tiny.build(section(place))


@pytest.fixture(scope="module")
def data(place: Path) -> DataModuleFromConfig:
    return DataModuleFromConfig(**config_of(place)["data"]["params"])


def prepared(model: Any, data: Any, dp: Mapping[str, Any] | None = None, **settings: Any) -> private_run.PrivateSession:
    """What the driver does before it builds a Trainer."""
    model.dp_config = read_dp_config(tiny.dp(**(dp or {})))
    given = {"max_epochs": 2, "devices": 1, **settings}
    return private_run.build_session(model, data, given, RunDirectory(Path("nowhere"), "now"))


def test_a_sound_configuration_is_accepted(model: Any, data: Any) -> None:
    session = prepared(model, data, {"DPDM_k": 4, "max_batch_size": 2})
    plan = session.plan
    assert (plan.steps, plan.sample_rate, plan.noise_multiplicity, plan.num_records) == (8, RATE, 4, 24)
    assert session.training.max_batch_size == 2
    fixed = session.trainer_arguments({"devices": 1, "max_epochs": 2})
    assert fixed["max_steps"] == fixed["max_epochs"] == -1, "the ledger ends the run"
    assert fixed["limit_val_batches"] == fixed["limit_test_batches"] == 0


def test_settings_that_yaml_reads_as_text_or_nothing_are_understood(model: Any, data: Any) -> None:
    session = prepared(model, data, {"delta": "1e-3", "max_grad_norm": "0.1", "public_data": "dots"})
    assert (session.plan.delta, session.plan.max_grad_norm, session.public_data) == (1e-3, 0.1, ("dots",))
    nulls = {"epsilon": None, "noise_multiplicity": None, "engine": None, "clipping": None}
    model.dp_config = read_dp_config({**tiny.dp(), **nulls})
    again = private_run.build_session(model, data, {"max_epochs": 2}, RunDirectory(Path("nowhere"), "now"))
    assert again.plan == prepared(model, data).plan


def test_steps_and_epochs_mean_the_same_noise(model: Any, data: Any) -> None:
    wanted = {"noise_multiplier": None, "epsilon": 3}
    by_epochs, by_steps = prepared(model, data, wanted), prepared(model, data, wanted, max_epochs=None, max_steps=8)
    assert by_epochs.plan == by_steps.plan
    assert prepared(model, data, wanted, max_epochs=1000, max_steps=8).plan == by_steps.plan


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches: .*max_batch_size"),
        ({"gradient_clip_val": 1.0}, "gradient_clip_val: .*max_grad_norm"),
        ({"precision": 16}, "precision 16: .* bf16-mixed"),
        ({"precision": "16-mixed"}, "precision 16-mixed"),
        ({"precision": "64-true"}, "precision 64-true"),
        ({"overfit_batches": 1}, "overfit_batches"),
        ({"limit_train_batches": 0.5}, "limit_train_batches"),
        ({"max_epochs": None}, "max_epochs N or --max_steps N"),
        ({"max_epochs": -1, "max_steps": -1}, "max_epochs N or --max_steps N"),
        ({"max_epochs": 0}, "epochs is 0"),
        ({"ckpt_path": "elsewhere/checkpoints/last.ckpt"}, "--resume elsewhere/checkpoints/last.ckpt"),
        ({"strategy": "fsdp", "devices": 2}, "strategy fsdp"),
    ],
)
def test_trainer_settings_that_break_the_guarantee_are_refused(
    settings: dict[str, Any], message: str, model: Any, data: Any
) -> None:
    with pytest.raises(UserError, match=message) as error:
        prepared(model, data, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("dp", "message"),
    [
        ({"max_grad_nrom": 1.0}, "dp_config.max_grad_nrom is unknown; did you mean 'max_grad_norm'"),
        ({"delta": None}, "dp_config.delta is missing"),
        ({"max_grad_norm": None}, "dp_config.max_grad_norm is missing"),
        ({"noise_multiplier": None}, "either epsilon .* or noise_multiplier"),
        ({"epsilon": 1.0}, "either epsilon .* or noise_multiplier"),
        ({"delta": 1 / 24}, "delta 0.0416667 is not below 0.0417 = 1 / 24 records"),
        ({"delta": 0.01, "dataset_size": 200}, "1 / 200 records"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"noise_multiplier": None, "epsilon": 1e-9, "delta": 1e-15}, "epsilon 1e-09 cannot be met"),
        ({"noise_multiplier": None, "epsilon": 0}, "epsilon is 0"),
        ({"noise_multiplier": 0.0}, "noise_multiplier is 0.0"),
        ({"max_batch_size": 0}, "max_batch_size: 0 is no positive number"),
        ({"max_batch_size": "many"}, "max_batch_size: 'many'"),
        ({"dataset_size": 23}, "dataset_size: 23 is stated, but the training set has 24"),
        ({"DPDM_k": 4, "noise_multiplicity": 8}, "DPDM_k 4 and noise_multiplicity 8"),
        ({"noise_multiplicity": 0}, "noise_multiplicity is 0"),
        ({"noise_multiplicity": 2.5}, "noise_multiplicity: 2.5 is no whole number"),
        ({"DPDM_k": "four"}, "DPDM_k: 'four' is no whole number"),
        ({"insecure_seed": True}, "insecure_seed: True is no whole number"),
        ({"delta": "small"}, "delta: 'small' is no number"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm is nan"),
        ({"poisson_sampling": "perhaps"}, "poisson_sampling: 'perhaps'"),
        ({"clipping": "falt"}, "'falt' is unknown.*'flat'"),
        ({"engine": "bookeeping"}, "'bookeeping' is unknown.*'bookkeeping'"),
    ],
)
def test_privacy_settings_that_mean_nothing_are_refused(
    dp: dict[str, Any], message: str, model: Any, data: Any
) -> None:
    with pytest.raises(UserError, match=message) as error:
        prepared(model, data, dp)
    assert "\n" not in str(error.value)


def test_a_batch_norm_is_refused(place: Path, data: Any) -> None:
    model = tiny.build(section(place))
    model.model.diffusion_model.extra = torch.nn.BatchNorm2d(2)
    with pytest.raises(UserError, match="model.diffusion_model.extra: batch normalisation mixes records"):
        prepared(model, data)


@pytest.mark.parametrize("latent_cache", [True, False])
def test_the_latent_scale_is_never_taken_from_private_images(latent_cache: bool, place: Path) -> None:
    config = config_of(place, max_steps=1)
    config["model"]["params"]["scale_by_std"] = True
    config["data"]["params"]["latent_cache"] = latent_cache
    config["model"]["params"]["ckpt_path"] = None
    with pytest.raises(UserError, match="scale_by_std: the checkpoint holds no scale_factor"):
        train(tiny.options(place / "scale", config))


def test_a_private_model_outside_the_driver_is_refused(place: Path) -> None:
    with pytest.raises(UserError, match="no privacy plan was attached; train through main.py"):
        tiny.build(section(place)).on_train_start()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("modelcheckpoint", {"params": {"monitor": "train/loss"}}),
        ("callbacks.checkpoint_callback", {"params": {"monitor": "privacy/epsilon"}}),
        (
            "callbacks.stop_early",
            {"target": "pytorch_lightning.callbacks.EarlyStopping", "params": {"monitor": "train/loss"}},
        ),
    ],
)
def test_selecting_by_a_metric_is_refused_before_anything_is_written(
    path: str, value: dict[str, Any], place: Path, tmp_path: Path
) -> None:
    config = config_of(place, max_steps=1)
    node = config["lightning"]
    *parents, key = path.split(".")
    for parent in parents:
        node = node[parent]
    node[key] = value
    with pytest.raises(UserError, match="monitor: a private run may not select") as error:
        train(tiny.options(tmp_path, config))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "logs").exists()


def test_a_misspelt_switch_is_no_silent_run_without_privacy(place: Path, tmp_path: Path) -> None:
    config = config_of(place, dp={"enabled": None, "enable": True}, max_steps=1)
    with pytest.raises(UserError, match="dp_config.enable is unknown; did you mean 'enabled'"):
        train(tiny.options(tmp_path, config))


def test_a_switch_that_is_off_is_said(caplog: pytest.LogCaptureFixture, model: Any) -> None:
    for off in (tiny.dp(enabled=False), {}, None):
        model.dp_config = read_dp_config(off)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            warn_unprotected(model)
        assert not private_run.is_private(model)
        assert len(caplog.records) == 1 and "this run is NOT private" in caplog.text


def test_a_run_without_a_training_set_is_refused(model: Any, place: Path) -> None:
    node = config_of(place)["data"]["params"]
    node["test"] = node.pop("train")
    with pytest.raises(UserError, match="has no train set"):
        prepared(model, DataModuleFromConfig(**node))


def test_the_trainer_neither_samples_nor_looks_at_private_images(model: Any, data: Any) -> None:
    fixed = prepared(model, data).trainer_arguments({"devices": 1, "max_epochs": 2})
    assert fixed["use_distributed_sampler"] is False
    assert fixed["limit_val_batches"] == fixed["limit_test_batches"] == 0


@pytest.mark.parametrize("settings", [{"profiler": "simple"}, {"max_time": "00:01:00:00"}], ids=str)
def test_settings_that_measure_time_are_refused(settings: dict[str, Any], model: Any, data: Any) -> None:
    with pytest.raises(UserError, match="the time that steps take, which reveals how many records were drawn"):
        prepared(model, data, **settings)


def test_a_private_run_takes_no_constant_from_its_records(model: Any, data: Any) -> None:
    before = {name: value.clone() for name, value in model.named_buffers()}
    prepared(model, data)
    assert float(model.scale_factor) == 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_the_draws_of_a_private_run_are_secret(model: Any, data: Any) -> None:
    draws = [list(prepared(model, data).data.train_batch_sampler) for _ in range(2)]
    assert draws[0] != draws[1]


# ---------------------------------------------------------------------- rule 3: one plan


@pytest.mark.parametrize(
    ("dp", "said"), [({}, True), ({"sample_rate": 0.5}, True), ({"dataset_size": 24}, False)], ids=str
)
def test_a_number_of_records_that_comes_from_the_private_data_is_said(
    dp: dict[str, Any], said: bool, model: Any, data: Any, caplog: pytest.LogCaptureFixture
) -> None:
    prepared(model, data, dp)
    assert ("dp_config.dataset_size is not given" in caplog.text) == said


def test_shipped_private_configurations_state_the_number_of_records() -> None:
    found = {}
    for path in (Path(__file__).parents[2] / "configs").rglob("*.yaml"):
        dp = load_config([path]).get("model", {}).get("params", {}).get("dp_config") or {}
        if dp.get("enabled"):
            found[path.name] = dp.get("dataset_size")
    assert found["finetune-dp-eps10.yaml"] == 4096
    assert [name for name, size in found.items() if size is None] == []


def test_the_plan_does_not_depend_on_a_single_record(model: Any, place: Path, tmp_path: Path) -> None:
    """With the published size stated, the data set at hand may lack or gain a record without the plan moving."""
    plans = []
    for count in (23, 24):
        node = config_of(place)["data"]["params"]
        node["train"]["params"]["root"] = str(tiny.write_digits(tmp_path / str(count), count))
        plans.append(prepared(model, DataModuleFromConfig(**node), {"dataset_size": 24}).plan)
    assert plans[0] == plans[1]


def test_the_sampler_draws_at_the_rate_that_is_charged(model: Any, data: Any) -> None:
    session = prepared(model, data, {"sample_rate": 0.5}, max_steps=3)
    sampler = session.data.train_batch_sampler
    assert isinstance(sampler, PoissonBatchSampler)
    assert sampler.sample_rate == session.plan.event().sample_rate == 0.5
    assert len(sampler) == 2 and sampler.num_records == 24
    drawn = np.mean([len(sampler.draw()) for _ in range(400)])
    assert drawn == pytest.approx(12, abs=0.6)


def test_images_of_private_runs_hold_no_training_image(finished: RunDirectory, place: Path) -> None:
    """The grids are made of four samples each; a training image would appear in them as it is."""
    raw = (place / "digits" / "train-images-idx3-ubyte").read_bytes()[16:]
    records = np.frombuffer(raw, dtype=np.uint8).reshape(tiny.RECORDS, -1).astype(float)
    for path in finished.path.rglob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"), dtype=float)
        height, width = pixels.shape
        for top in range(height - tiny.SIDE + 1):
            for left in range(width - tiny.SIDE + 1):
                window = pixels[top : top + tiny.SIDE, left : left + tiny.SIDE].reshape(1, -1)
                assert np.abs(records - window).mean(axis=1).min() > 20
