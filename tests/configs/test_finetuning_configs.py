"""The shipped fine-tuning files: what they say, what they train, what they cost, and that each of them runs.

Models of full size are built on the meta device, so that nothing is allocated; runs are of the same files shrunk.
"""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from ldm.checkpoint import read_checkpoint, save_checkpoint
from ldm.config import load_config, to_plain
from ldm.models.diffusion.dp_config import read_dp_config
from ldm.reports.parameter_counts import count_config
from ldm.training.run_account import make_plan
from tests import shipped, tiny
from tests.shipped import FAMILIES, FINE_TUNING, WRITTEN_OUT, family, path_of
from tests.tiny_runs import Commands, commands

__all__ = ["commands"]

RECORDS = {  # family -> records of the private training set, labels in it (None: no labels)
    "mnist32-dp": (60_000, 10),
    "emnist32-dp": (60_000, 10),
    "fmnist32-dp": (60_000, 10),
    "mnist32-kmnist-dp": (60_000, 10),
    "mnist32-svhn-dp": (60_000, 10),
    "cifar32-dp": (50_000, 10),
    "camelyon32-dp": (302_436, 2),
    "celeba32-dp": (162_770, None),
    "celeba64-dp": (162_770, None),
    "celebahq-dp": (28_000, 2),
    "celebahq-txt2img-dp": (24_000, None),
}
SPATIAL, SELF = "train_condition_only", "train_attention_only"
COUNTS = {  # family -> network, picked of it, condition stage, first stage
    "mnist32-dp": (4_606_467, 1_578_304, 130, 102_553_535),
    "emnist32-dp": (4_606_467, 1_578_304, 130, 102_553_535),
    "fmnist32-dp": (4_606_467, 1_578_304, 130, 102_553_535),
    "mnist32-kmnist-dp": (4_606_467, 1_578_304, 50, 102_553_535),  # ten classes of five values
    "mnist32-svhn-dp": (4_606_467, 1_578_304, 50, 102_553_535),
    "cifar32-dp": (90_290_563, 9_275_520, 512_512, 14_639_807),
    "camelyon32-dp": (90_290_563, 9_275_520, 1_024, 14_639_807),
    "celeba32-dp": (162_314_115, 17_887_104, 0, 14_639_807),
    "celeba64-dp": (72_172_803, 7_959_808, 0, 29_935_359),
    "celebahq-dp": (400_920_579, 169_550_400, 1_024, 55_322_782),
    "celebahq-txt2img-dp": (872_300_484, 280_018_880, 581_994_042, 83_653_863),
}
SIGMA = {  # published: family -> 1/q, steps, sigma at epsilon 1, 5 and 10
    "mnist32-dp": (30, 6000, (9.775, 2.427, 1.472)),
    "fmnist32-dp": (30, 6000, (9.775, 2.427, 1.472)),
    "cifar32-dp": (25, 750, (4.243, 1.232, 0.858)),
    "celeba32-dp": (80, 5600, (4.077, 1.156, 0.817)),
    "celeba64-dp": (20, 1400, (8.062, 2.005, 1.245)),
    "celebahq-dp": (12, 600, (7.783, 2.000, 1.252)),  # with the 24,000 records of the split with captions
    "celebahq-txt2img-dp": (94, 940, (1.460, 0.690, 0.552)),
}
RATES = {  # learning rates that base rate and batch come to
    "mnist32-dp": 1e-3,
    "cifar32-dp": 2e-3,
    "celeba32-dp": 1.024e-3,
    "celeba64-dp": 8.192e-4,
    "celebahq-dp": 2.048e-4,
    "celebahq-txt2img-dp": 2.56e-7,
}
ALIKE = ("fmnist32-dp-eps10", "camelyon32-dp-eps10", "mnist32-kmnist-dp-eps10")  # the same network and rule as another
RUNS = [
    pytest.param(name, marks=() if name in WRITTEN_OUT and name not in ALIKE else pytest.mark.slow)
    for name in FINE_TUNING
]
BY_FILE = [pytest.param(name, marks=() if name in WRITTEN_OUT else pytest.mark.slow) for name in FINE_TUNING]


def params_of(name: str) -> Any:
    return load_config([path_of(name)]).model.params


@cache
def plan_of(name: str, *dotlist: str) -> Any:
    """The plan that a run of this file would be calibrated to, by the driver's own function."""
    config = load_config([path_of(name)], dotlist)
    dp = read_dp_config(to_plain(config.model.params.dp_config))
    return make_plan(dp, dp.dataset_size, config.data.params.batch_size, to_plain(config.lightning.trainer))


# ---------------------------------------------------------------------- what the files say


def test_every_data_set_has_a_file_for_epsilon_1_5_and_10() -> None:
    expected = {f"{name}-eps{epsilon}" for name in FAMILIES for epsilon in (1, 5, 10)}
    assert set(FINE_TUNING) == expected | {"emnist32-dp-eps10"}  # the original's name for MNIST


@pytest.mark.parametrize("name", FINE_TUNING)
def test_the_name_says_the_epsilon(name: str) -> None:
    assert params_of(name).dp_config.epsilon == int(name.rpartition("-eps")[2])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_files_of_a_family_differ_in_epsilon_only(name: str) -> None:
    files = [load_config([path_of(f"{name}-eps{epsilon}")]) for epsilon in (1, 5, 10)]
    for config in files:
        del config.model.params.dp_config.epsilon
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("name", FINE_TUNING)
def test_the_budget_is_stated_and_sound(name: str) -> None:
    config = load_config([path_of(name)])
    dp = read_dp_config(to_plain(config.model.params.dp_config))
    records, _ = RECORDS[family(name)]
    assert dp.enabled and dp.poisson_sampling and dp.delta is not None
    assert dp.dataset_size is not None and dp.delta < 1 / dp.dataset_size
    assert records <= dp.dataset_size < 1.02 * records
    batch = config.data.params.batch_size  # a multiple of it is not rounded up: the published rate would change
    assert dp.dataset_size > records or records % batch == 0
    assert config.lightning.trainer.max_epochs > 0
    assert dp.max_batch_size == "auto" and config.data.params.batch_size < records
    assert dp.public_data


@pytest.mark.parametrize("name", FINE_TUNING)
def test_nothing_is_chosen_by_private_data(name: str) -> None:
    config = load_config([path_of(name)])
    assert config.model.params.monitor is None
    assert config.data.params.get("validation") is None
    assert not config.model.params.get("scale_by_std", False)


@pytest.mark.parametrize("name", FINE_TUNING)
def test_it_is_the_network_of_the_public_model_it_starts_from(name: str) -> None:
    """Shapes would agree with another head count or schedule, and the results would not."""
    public = load_config([shipped.pretraining(name)]).model
    own = load_config([path_of(name)]).model
    assert shipped.pretraining(name).parent.name == "latent-diffusion"
    assert own.target == public.target
    assert own.params.unet_config == public.params.unet_config
    kept = ("linear_start", "linear_end", "timesteps", "image_size", "channels", "scale_factor", "conditioning_key")
    assert {key: own.params.get(key) for key in kept} == {key: public.params.get(key) for key in kept}
    for config in (own, public):
        config.params.first_stage_config.params.ckpt_path = None
    assert own.params.first_stage_config == public.params.first_stage_config


@pytest.mark.parametrize("name", FINE_TUNING)
def test_every_label_has_a_row_and_fresh_rows_are_no_more_than_labels(name: str) -> None:
    _, labels = RECORDS[family(name)]
    if labels is None:
        return
    own = params_of(name)
    rows = own.cond_stage_config.params.n_classes
    if "cond_stage_model" in own.get("ignore_keys", ()):
        assert rows == labels
    else:  # the rows come from the public model, and so does their number
        public = load_config([shipped.pretraining(name)]).model.params
        assert rows == public.cond_stage_config.params.n_classes >= labels


@pytest.mark.parametrize("name", FINE_TUNING)
def test_the_condition_stage_is_trainable_where_it_is_trained(name: str) -> None:
    own = params_of(name)
    conditional = own.cond_stage_config != "__is_unconditional__"
    assert bool(own.get(SPATIAL)) == conditional and bool(own.get(SELF)) == (not conditional)
    assert bool(own.get("cond_stage_trainable")) == conditional


@pytest.mark.parametrize("name", RATES)
def test_the_learning_rate_is_the_published_one(name: str) -> None:
    config = load_config([path_of(f"{name}-eps10")])
    assert config.model.base_learning_rate * config.data.params.batch_size == pytest.approx(RATES[name])


def test_the_update_of_cifar_is_the_originals_under_another_divisor() -> None:
    """Adam is blind to the scale of gradients when its eps is scaled with them."""
    config = load_config([path_of("cifar32-dp-eps10")])
    own, batch = config.model.params, config.data.params.batch_size
    chunk = 40  # the original divided by it
    assert own.optimizer_config.eps == pytest.approx(1e-8 * chunk / batch)
    warm_up = own.scheduler_config.params.warm_up_steps[0]
    pieces = math.ceil(50_000 / chunk)
    assert warm_up == pytest.approx(10_000 / pieces * 25)  # epochs of the original's warm-up, in logical steps


# ---------------------------------------------------------------------- what they train


@pytest.mark.parametrize("name", BY_FILE)
def test_the_trained_parameters_are_the_published_ones(name: str) -> None:
    network, picked, condition, first_stage = COUNTS[family(name)]
    counts = count_config(path_of(name))
    parts = counts.parts
    assert (parts["network"], parts.get("condition stage", 0), parts["first stage"]) == (
        network,
        condition,
        first_stage,
    )
    assert counts.trained is not None and "first stage" not in counts.trained
    assert sum(counts.trained.values()) + counts.left_out == picked + condition
    assert counts.trained["network"] <= picked < network


@pytest.mark.parametrize(("name", "left_out"), [("mnist32-dp-eps10", 82_752), ("celeba32-dp-eps1", 0)])
def test_only_what_no_record_reaches_is_left_out(name: str, left_out: int) -> None:
    counts = count_config(path_of(name))
    assert counts.left_out == left_out


def test_the_token_head_of_the_text_encoder_is_left_out() -> None:
    counts = count_config(path_of("celebahq-txt2img-dp-eps10"))
    assert counts.left_out == 30_522 * 1_280 + 30_522


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_dead_parameters_can_be_trained_for_fidelity(name: str) -> None:
    _, picked, condition, _ = COUNTS[family(name)]
    if family(name) == "celebahq-txt2img-dp":
        return  # its condition is many tokens: nothing of the network is dead
    counts = count_config(path_of(name), ["model.params.train_dead_parameters=true"])
    assert counts.trained is not None
    assert (counts.trained["network"], counts.trained.get("condition stage", 0)) == (picked, condition)


# ---------------------------------------------------------------------- what they cost


@pytest.mark.parametrize("name", [mark for mark in BY_FILE if family(mark.values[0]) in SIGMA])
def test_rate_steps_and_noise_are_the_published_ones(name: str) -> None:
    draws, steps, sigmas = SIGMA[family(name)]
    table = ["model.params.dp_config.dataset_size=24000"] if family(name) == "celebahq-dp" else []
    plan = plan_of(name, *table)
    assert plan.sample_rate == pytest.approx(1 / draws)
    assert plan.steps == steps
    expected = dict(zip((1, 5, 10), sigmas, strict=True))[int(params_of(name).dp_config.epsilon)]
    assert plan.noise_multiplier == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", [mark for mark in BY_FILE if mark.values[0] != "emnist32-dp-eps10"])
def test_the_comment_states_the_noise(name: str) -> None:
    stated = re.search(r"[Ss]igma (\d+\.\d+)( at rate 1/(\d+) for (\d+)\s+steps)?", comment(path_of(name)))
    assert stated is not None, "the first lines of the file say sigma"
    plan = plan_of(name)
    assert plan.noise_multiplier == pytest.approx(float(stated[1]), rel=0.005)
    if stated[2]:
        assert (round(1 / plan.sample_rate), plan.steps) == (int(stated[3]), int(stated[4]))


def comment(path: Path) -> str:
    """The comment at the head of a file, as one line."""
    lines = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    return " ".join(lines)


# ---------------------------------------------------------------------- whole runs


def made_up(name: str) -> dict[str, Any]:
    """Parameters of stand-in records for a file."""
    _, labels = RECORDS[family(name)]
    return {"captions": True} if family(name) == "celebahq-txt2img-dp" else {"classes": labels or 1}


def public_checkpoint(name: str, folder: Path) -> Path:
    """A checkpoint of the shrunk public model, with the section that says what it is."""
    section = to_plain(shipped.shrunk(shipped.pretraining(name), folder).model)
    section.pop("base_learning_rate")
    torch.manual_seed(0)
    model = tiny.build(section)
    tiny.scatter(model)
    if model.use_ema:
        model.model_ema.reset(model.model)
    path = folder / "public.ckpt"
    save_checkpoint({"state_dict": model.state_dict(), "model_config": section}, path)
    return path


@pytest.mark.parametrize("name", RUNS)
def test_a_private_run_trains_what_its_card_names_and_nothing_else(name: str, commands: Commands) -> None:
    public = public_checkpoint(name, commands.folder)
    config = shipped.shrunk(path_of(name), commands.folder, made_up(name))
    file = commands.folder / f"{name}.yaml"
    file.write_text(OmegaConf.to_yaml(config))
    words = ["--base", file, "-t", "--accelerator", "cpu", "--allow-target", "tests"]
    assert commands.train(*words, f"model.params.ckpt_path={public}") == 0, commands.err

    (run,) = commands.runs()
    trained = yaml.safe_load((run / "privacy.json").read_text())["trained"]["parameters"]
    content = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert content["global_step"] == 2 and content["privacy"]["ledger"]
    before, after = read_checkpoint(public)["state_dict"], content["state_dict"]
    fresh = "cond_stage_model." if "cond_stage_model" in config.model.params.get("ignore_keys", ()) else "\0"
    for key, value in after.items():
        if key.startswith(("model.", "cond_stage_model.", "first_stage_model.")) and not key.startswith(fresh):
            assert torch.isfinite(value).all(), key
            assert torch.equal(value, before[key]) != (key in trained), key
    assert trained and set(trained) <= set(after)
