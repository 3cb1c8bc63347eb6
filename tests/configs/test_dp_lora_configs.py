"""The configurations of the DP-LoRA study: what they say, what they train, what they cost, and that they run.

Models of full size are built on the meta device, so that nothing is allocated; runs are of the same files shrunk.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from jobs.make_jobs import CIN256, CIN256_V2, fine_tunes
from ldm.checkpoint import save_checkpoint
from ldm.config import load_config, to_plain
from ldm.models.diffusion.dp_config import read_dp_config
from ldm.reports.parameter_counts import count_config
from ldm.training.run_account import make_plan
from tests import shipped, tiny
from tests.tiny_runs import Commands, commands

__all__ = ["commands"]

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "dp_lora" / "reproducibility_experiments"
PUBLIC = {
    "autoencoder": {"autoencoder_kl_emnist32_4x4x3", "autoencoder_kl_imagenet32", "autoencoder_kl_imagenet64_32x32x3"},
    "latent-diffusion": {
        "emnist32-conditional",
        "imagenet32-conditional",
        "imagenet32-unconditional",
        "imagenet64-unconditional",
    },
}
CELEBA = ("eps1", "eps5", "eps10-onlyproj", "eps10-onlyqkv", "eps10-rank8", "eps10-rank32", "eps10-rank64")
PRIVATE = {
    "finetuning": {
        *(f"celeba{size}-dp-{what}" for size in (32, 64) for what in CELEBA),
        "celeba32-dp-eps10-k2",
        "celeba64-dp-eps10",
        *(f"celebahq_class_eps{epsilon}" for epsilon in (1, 5, 10)),
        *(f"mnist32-class-dp-eps{epsilon}" for epsilon in (1, 5, 10)),
        *(f"fmnist32-class-dp-eps{epsilon}" for epsilon in (1, 5, 10)),  # a row that the study lacks
        *(f"cifar10-cond-dp-eps{epsilon}" for epsilon in (1, 5, 10)),
    },
    "backup": {
        *(f"celebahq-eps{epsilon}" for epsilon in (1, 5, 10)),
        *(f"celebahq-eps10-C-{size}" for size in ("big", "small")),
        *(f"celebahq-eps10-batch-{size}" for size in (4, 16, 32)),
        *(f"celebahq-eps10-k{copies}" for copies in (1, 4, 8)),
        *(f"celebahq-eps10-r{rank}" for rank in (16, 32)),
        "celebahq-eps10-linear-rank",
        "celebahq-eps10-cosine-rank",
        "celebahq-no-dp-baseline",
        "chq-eps10-qkvonly",
        "chq-eps10-projonly",
    },
}
NAMES = sorted(f"{folder}/{name}" for folder, names in PRIVATE.items() for name in names)
BASELINE = "backup/celebahq-no-dp-baseline"
#: the files that are written out; the others say what they change in one of them
HEADS = (
    "finetuning/celeba32-dp-eps10-k2",
    "finetuning/celeba64-dp-eps10",
    "finetuning/celebahq_class_eps10",
    "finetuning/mnist32-class-dp-eps10",
    "finetuning/cifar10-cond-dp-eps10",
    "backup/celebahq-eps10",
)
RECORDS = {"celeba32": 162_770, "celeba64": 162_770, "celebahq": 28_000, "chq": 28_000, "mnist32": 60_000}
RECORDS |= {"cifar10": 50_000, "fmnist32": 60_000}
LABELS = {
    "celebahq": 2,
    "chq": 2,
    "mnist32": 26,
    "fmnist32": 26,
    "cifar10": 10,
}  # mnist32: the rows of the public letters
RATES = {  # learning rates that base rate and batch come to
    "finetuning/celeba32-dp-eps10-k2": 4.1e-3,
    "finetuning/celeba64-dp-eps10": 4.1e-3,
    "finetuning/celebahq_class_eps10": 2.05e-3,
    "finetuning/mnist32-class-dp-eps10": 2e-5,
    "finetuning/cifar10-cond-dp-eps10": 8e-5,
    "backup/celebahq-eps10": 2.05e-3,
}


def path_of(name: str) -> Path:
    return STUDY / f"{name}.yaml"


def data_of(name: str) -> str:
    """The private data set that a file's name begins with."""
    return re.split("[-_]", name.rpartition("/")[2])[0]


@cache
def plain(name: str) -> dict[str, Any]:
    """The merged values of a file, unset ones as None."""
    return OmegaConf.to_container(load_config([path_of(name)]))  # type: ignore[return-value]


def dp_of(name: str) -> dict[str, Any]:
    return plain(name)["model"]["params"]["dp_config"]


def flat(values: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {where.removeprefix("."): values}
    return {key: value for name, part in values.items() for key, value in flat(part, f"{where}.{name}").items()}


def changes(name: str) -> dict[str, Any]:
    """What a file changes in the one it builds on: last part of the key to value."""
    (_own, base, *_) = shipped.chain(path_of(name))
    now, before = flat(plain(name)), flat(plain(f"{base.parent.name}/{base.stem}"))
    return {key.rpartition(".")[2]: now[key] for key in now if before.get(key, "absent") != now[key]}


# ---------------------------------------------------------------------- what the files say


def test_the_files_are_those_of_the_study() -> None:
    for folder, names in (PUBLIC | PRIVATE).items():
        assert {path.stem for path in (STUDY / folder).glob("*.yaml")} == names
    assert set(NAMES) == set(fine_tunes())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HEADS])
def test_a_variant_changes_what_its_name_says(name: str) -> None:
    stem = name.rpartition("/")[2]
    stated: dict[str, Any] = {}
    if (epsilon := re.search(r"eps(1|5)$", stem)) is not None:
        stated["epsilon"] = int(epsilon[1])
    if (clip := re.search(r"-C-(big|small)$", stem)) is not None:
        stated["max_grad_norm"] = {"big": 1e-3, "small": 2.5e-4}[clip[1]]
    if (batch := re.search(r"-batch-(\d+)$", stem)) is not None:
        stated["batch_size"] = int(batch[1])
    if (copies := re.search(r"-k(\d+)$", stem)) is not None:
        stated["noise_multiplicity"] = int(copies[1])
    if (rank := re.search(r"-r(?:ank)?(\d+)$", stem)) is not None:
        stated["model_lora_r"] = int(rank[1])
    if (only := re.search(r"(qkv|proj)only$|only(qkv|proj)$", stem)) is not None:
        own = data_of(name).startswith("celeba")
        targets = (
            {"qkv": ["qkv"], "proj": ["proj_out"]} if own else {"qkv": ["to_q", "to_k", "to_v"], "proj": ["to_out.0"]}
        )
        stated["model_lora_target"] = targets[only[1] or only[2]]
    if (schedule := re.search(r"-(linear|cosine)-rank$", stem)) is not None:
        stated |= {"name": "layer-wise", "initial_rank": 16, "final_rank": 4, "schedule_type": schedule[1]}
    if stem == "fmnist32-class-dp-eps10":
        stated["target"] = "ldm.data.fashion_mnist.FashionMNISTTrain"
    if name == BASELINE:
        stated |= {"enabled": False, "batch_size": 8, "accumulate_grad_batches": 256}
    assert stated and changes(name) == stated


@pytest.mark.parametrize("name", NAMES)
def test_every_file_says_epsilon_records_length_and_delta(name: str) -> None:
    dp, trainer = dp_of(name), plain(name)["lightning"]["trainer"]
    stated = re.search(r"eps(\d+)", name)
    assert stated is None or dp["epsilon"] == int(stated[1])
    records, batch = RECORDS[data_of(name)], plain(name)["data"]["params"]["batch_size"]
    assert records <= dp["dataset_size"] < 1.02 * records
    assert dp["dataset_size"] > records or records % batch == 0, "a multiple of the batch keeps the published rate"
    assert dp["delta"] < 1 / dp["dataset_size"]
    assert trainer["max_epochs"] in (10, 20, 200)
    assert dp["public_data"]
    read_dp_config(dp)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_chosen_by_private_images(name: str) -> None:
    config = plain(name)
    assert config["model"]["params"]["monitor"] is None
    assert config["data"]["params"].get("validation") is None and "test" not in config["data"]["params"]


@pytest.mark.parametrize("name", NAMES)
def test_learning_rates_and_labels(name: str) -> None:
    config = plain(name)
    head = plain(next((head for head in HEADS if head in (name, base_of(name))), name))
    batch = config["data"]["params"]["batch_size"]
    batch *= config["lightning"]["trainer"].get("accumulate_grad_batches", 1)
    rate = config["model"]["base_learning_rate"] * batch
    expected = RATES[base_of(name)] * batch / head["data"]["params"]["batch_size"]
    assert rate == pytest.approx(expected, rel=0.01)
    condition = config["model"]["params"]["cond_stage_config"]
    found = condition["params"]["n_classes"] if isinstance(condition, dict) else None
    assert found == LABELS.get(data_of(name))


def base_of(name: str) -> str:
    """The written-out file that a file builds on, or itself."""
    return next(f"{path.parent.name}/{path.stem}" for path in shipped.chain(path_of(name)) if is_head(path))


def is_head(path: Path) -> bool:
    return f"{path.parent.name}/{path.stem}" in HEADS


@pytest.mark.parametrize("name", HEADS)
def test_network_and_schedule_are_those_of_the_public_model(name: str) -> None:
    """Heads included: with other heads a checkpoint loads and computes another function."""
    start = {CIN256: "cin-ldm-vq-f8", CIN256_V2: "cin256-v2"}.get(fine_tunes()[name].start)
    folder = ROOT / "configs" / "latent-diffusion" if start else STUDY / "latent-diffusion"
    public = load_config([folder / f"{start or fine_tunes()[name].start}.yaml"]).model.params
    mine = copy.deepcopy(plain(name)["model"]["params"])
    public = OmegaConf.to_container(public)
    for key in ("unet_config", "linear_start", "linear_end", "timesteps", "image_size", "channels", "beta_schedule"):
        assert mine.get(key) == public.get(key), key
    mine["first_stage_config"]["params"].pop("ckpt_path", None)
    public["first_stage_config"]["params"].pop("ckpt_path", None)
    assert mine["first_stage_config"] == public["first_stage_config"]
    classes = lambda params: params["cond_stage_config"]["params"]["n_classes"]  # noqa: E731
    same = isinstance(mine["cond_stage_config"], str) or classes(mine) == classes(public)
    assert same == ("ignore_keys" not in mine), "rows of another number cannot be loaded"


@pytest.mark.parametrize("name", sorted(PUBLIC["latent-diffusion"]))
def test_a_public_model_is_trained_over_the_autoencoder_of_its_job(name: str) -> None:
    from jobs.make_jobs import LATENT_DIFFUSION

    over = plain(f"latent-diffusion/{name}")["model"]["params"]["first_stage_config"]["params"]
    trained = plain(f"autoencoder/{LATENT_DIFFUSION[name]}")["model"]["params"]
    assert (over["ddconfig"], over["embed_dim"]) == (trained["ddconfig"], trained["embed_dim"])
    assert over["ddconfig"]["resolution"] == int(re.search(r"\d\d", name)[0])  # type: ignore[index]


def test_public_handwriting_is_letters() -> None:
    """EMNIST's digits come from the collection that MNIST comes from."""
    for name in ("autoencoder/autoencoder_kl_emnist32_4x4x3", "latent-diffusion/emnist32-conditional"):
        for section in ("train", "validation"):
            node = plain(name)["data"]["params"][section]
            assert node["target"].startswith("ldm.data.emnist.EMNIST")
            assert node["params"].get("arrangement", node["params"].get("split", "letters")) == "letters"
    assert plain("latent-diffusion/emnist32-conditional")["model"]["params"]["cond_stage_config"]["params"][
        "n_classes"] == 26  # fmt: skip


# ---------------------------------------------------------------------- what they train

CIN = ["model.params.cond_stage_config.params.n_classes=1000"]
SHIPPED = ["model.params.model_lora_target=[to_q,to_k,to_v]"]  # the published fourth target named nothing
COUNTS: list[tuple[str, list[str], int, int]] = [  # file, settings, adapters, condition stage
    ("finetuning/mnist32-class-dp-eps10", [], 79_408, 130),
    ("finetuning/mnist32-class-dp-eps10", SHIPPED, 56_880, 130),
    ("finetuning/cifar10-cond-dp-eps10", [], 546_816, 5_120),
    ("finetuning/cifar10-cond-dp-eps10", SHIPPED, 428_032, 5_120),
    ("finetuning/celebahq_class_eps10", [], 1_313_792, 1_024),
    ("finetuning/celebahq_class_eps10", SHIPPED, 975_872, 1_024),
    ("backup/celebahq-eps10", [], 1_249_280, 1_024),
    ("backup/celebahq-eps10", CIN, 1_249_280, 512_000),
    ("backup/chq-eps10-qkvonly", [], 929_792, 1_024),
    ("backup/chq-eps10-projonly", [], 319_488, 1_024),
    ("backup/celebahq-eps10-r16", [], 2_498_560, 1_024),
    ("backup/celebahq-eps10-r32", [], 4_997_120, 1_024),
    ("finetuning/celeba32-dp-eps10-k2", [], 718_848, 0),
    ("finetuning/celeba32-dp-eps10-onlyqkv", [], 479_232, 0),
    ("finetuning/celeba32-dp-eps10-onlyproj", [], 239_616, 0),
    ("finetuning/celeba32-dp-eps10-rank8", [], 359_424, 0),
    ("finetuning/celeba32-dp-eps10-rank32", [], 1_437_696, 0),
    ("finetuning/celeba32-dp-eps10-rank64", [], 2_875_392, 0),
    ("finetuning/celeba64-dp-eps10", [], 479_232, 0),
    ("finetuning/celeba64-dp-eps10-onlyqkv", [], 319_488, 0),
    ("finetuning/celeba64-dp-eps10-onlyproj", [], 159_744, 0),
    ("finetuning/celeba64-dp-eps10-rank8", [], 239_616, 0),
    ("finetuning/celeba64-dp-eps10-rank32", [], 958_464, 0),
    ("finetuning/celeba64-dp-eps10-rank64", [], 1_916_928, 0),
]
QUICK = {"finetuning/mnist32-class-dp-eps10", "finetuning/cifar10-cond-dp-eps10", "finetuning/celeba64-dp-eps10"}
NETWORKS = {
    "finetuning/mnist32-class-dp-eps10": 4_606_467,
    "finetuning/cifar10-cond-dp-eps10": 90_290_563,
    "finetuning/celeba32-dp-eps10-k2": 162_314_115,
    "finetuning/celeba64-dp-eps10": 72_172_803,
    "finetuning/celebahq_class_eps10": 400_920_579,
    "backup/celebahq-eps10": 394_984_196,
}


@pytest.mark.parametrize(
    ("name", "settings", "adapters", "condition"),
    [
        pytest.param(*row, id="-".join([row[0], *row[1]]), marks=() if row[0] in QUICK else pytest.mark.slow)
        for row in COUNTS
    ],
)
def test_what_is_trained_is_what_the_reference_counts(
    name: str, settings: list[str], adapters: int, condition: int
) -> None:
    """With the layers that receive noise alone, as the published runs had them."""
    counts = count_config(path_of(name), [*settings, "model.params.train_dead_parameters=true"])
    assert counts.trained is not None
    trained = {part: count for part, count in counts.trained.items() if count}
    expected = {"network": adapters, "condition stage": condition}
    assert sum(trained.values()) == adapters + condition, trained
    assert trained.get("condition stage", 0) == expected["condition stage"]
    assert counts.parts["network"] == NETWORKS[base_of(name)]


@pytest.mark.parametrize("name", ["finetuning/mnist32-class-dp-eps10"])
def test_adapters_of_layers_without_a_gradient_are_left_out_of_a_private_run(name: str) -> None:
    """One condition token: its softmax is 1 whatever query and key are."""
    counts = count_config(path_of(name))
    assert counts.trained is not None and counts.left_out > 0
    assert sum(counts.trained.values()) + counts.left_out == 79_408 + 130


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_scheduled_ranks_lie_between_their_ends(kind: str) -> None:
    counts = count_config(path_of(f"backup/celebahq-eps10-{kind}-rank"), ["model.params.train_dead_parameters=true"])
    assert counts.trained is not None
    assert 1_249_280 / 2 < sum(counts.trained.values()) - 1_024 < 2 * 1_249_280


# ---------------------------------------------------------------------- what they cost


@cache
def plan_of(name: str) -> Any:
    """The plan that a run of this file would be calibrated to, by the driver's own function."""
    config = load_config([path_of(name)])
    dp = read_dp_config(to_plain(config.model.params.dp_config))
    return make_plan(dp, dp.dataset_size, config.data.params.batch_size, to_plain(config.lightning.trainer))


SIGMA = {  # published (PRV): file -> 1/q, steps, sigma; celeba32 with the delta of celeba64
    "backup/celebahq-eps10": (14, 140, 0.773),
    "backup/celebahq-eps5": (14, 140, 1.087),
    "backup/celebahq-eps1": (14, 140, 3.389),
    "finetuning/celeba64-dp-eps1": (20, 400, 4.414),
    "finetuning/celeba64-dp-eps5": (20, 400, 1.263),
    "finetuning/celeba64-dp-eps10": (20, 400, 0.875),
    "finetuning/celeba32-dp-eps10-k2": (20, 400, 0.875),
    "finetuning/mnist32-class-dp-eps1": (30, 6000, 9.775),
    "finetuning/mnist32-class-dp-eps5": (30, 6000, 2.427),
    "finetuning/mnist32-class-dp-eps10": (30, 6000, 1.472),
    "finetuning/cifar10-cond-dp-eps1": (625, 12_500, 0.948),
    "finetuning/cifar10-cond-dp-eps5": (625, 12_500, 0.563),
    "finetuning/cifar10-cond-dp-eps10": (625, 12_500, 0.474),
}
CHEAP = ("backup/celebahq-eps10", "finetuning/celeba64-dp-eps10")


def priced(names: Any) -> list[Any]:
    return [pytest.param(name, marks=() if name in CHEAP else pytest.mark.slow) for name in sorted(names)]


@pytest.mark.parametrize("name", priced(SIGMA))
def test_rate_steps_and_noise_are_the_published_ones(name: str) -> None:
    draws, steps, sigma = SIGMA[name]
    plan = plan_of(name)
    assert (round(1 / plan.sample_rate), plan.steps) == (draws, steps)
    assert plan.noise_multiplier == pytest.approx(sigma, rel=0.01)


@pytest.mark.parametrize(
    "name", priced(name for name in NAMES if "igma" in path_of(name).read_text().partition("\nbase")[0])
)
def test_the_comment_states_the_noise(name: str) -> None:
    words = " ".join(line[1:].strip() for line in path_of(name).read_text().splitlines() if line.startswith("#"))
    stated = re.search(r"[Ss]igma ([\d.]+\d)", words)
    rate = re.search(r"rate 1/(\d+) for ([\d,]+) steps", words)
    plan = plan_of(name)
    assert stated is not None and plan.noise_multiplier == pytest.approx(float(stated[1]), rel=0.002)
    assert rate is None or (int(rate[1]), int(rate[2].replace(",", ""))) == (round(1 / plan.sample_rate), plan.steps)


def test_noise_does_not_depend_on_the_number_of_draws_a_record() -> None:
    """The plan holds K, and calibration does not read it: K is inside the record."""
    plan = plan_of("backup/celebahq-eps10")
    assert plan.noise_multiplicity == 2
    config = load_config([path_of("backup/celebahq-eps10-k8")])
    dp = read_dp_config(to_plain(config.model.params.dp_config))
    dp = replace(dp, epsilon=None, noise_multiplier=plan.noise_multiplier)
    eight = make_plan(dp, 28_000, 2048, {"max_epochs": 10})
    assert eight.noise_multiplicity == 8
    assert eight.event() == plan.event()


# ---------------------------------------------------------------------- whole runs


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name.startswith("finetuning/c") else pytest.mark.slow) for name in HEADS]
)
def test_a_private_run_trains_adapters_and_the_embedding_and_nothing_else(name: str, commands: Commands) -> None:
    section = to_plain(shipped.shrunk(shipped.chain(path_of(name))[-1], commands.folder).model)
    section.pop("base_learning_rate")
    torch.manual_seed(0)
    model = tiny.build(section)
    tiny.scatter(model)
    if model.use_ema:
        model.model_ema.reset(model.model)
    public = commands.folder / "public.ckpt"
    save_checkpoint({"state_dict": model.state_dict(), "model_config": section}, public)

    config = shipped.shrunk(path_of(name), commands.folder, {"classes": 2})
    file = commands.folder / "run.yaml"
    file.write_text(OmegaConf.to_yaml(config))
    words = ["--base", file, "-t", "--accelerator", "cpu", "--allow-target", "tests"]
    assert commands.train(*words, f"model.params.ckpt_path={public}") == 0, commands.err
    (run,) = commands.runs()
    trained = yaml.safe_load((run / "privacy.json").read_text())["trained"]["parameters"]
    embedding = {"cond_stage_model.embedding.weight"} if config.model.params.get("train_condition_only") else set()
    assert embedding <= set(trained) and len(trained) > len(embedding)
    assert all(".lora_" in key for key in set(trained) - embedding)
