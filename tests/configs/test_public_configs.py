"""Every configuration builds, exactly the tensors of the released checkpoint where there is one, in its order.

The models are built on the meta device, so that nothing is allocated.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from ldm.config import get_obj_from_str, instantiate_from_config, load_config, to_plain
from ldm.data.module import SPLITS
from ldm.errors import UserError
from ldm.models.diffusion.schedule import BUFFERS
from tests import state_dicts
from tests.shipped import CONFIGS, FINE_TUNING, WRITTEN_OUT, unallocated

ROOT = CONFIGS.parent
EVERY = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
# put behind another file
OVERLAYS = ("own-images/colour-drawings.yaml", "own-images/statistics.yaml", "quickstart/no-privacy.yaml")
# read by scripts/benchmark.py, no run of their own
BENCHMARKS = (
    "benchmark/camelyon32.yaml",
    "benchmark/celeba32.yaml",
    "benchmark/celeba64.yaml",
    "benchmark/celebahq.yaml",
    "benchmark/cifar10.yaml",
    "benchmark/fmnist.yaml",
    "benchmark/mnist-glyphs.yaml",
    "benchmark/mnist.yaml",
)
COMPLETE = [name for name in EVERY if name not in OVERLAYS + BENCHMARKS]
VARIANTS = [f"finetuning/{name}.yaml" for name in FINE_TUNING if name not in WRITTEN_OUT]  # another epsilon
VARIANTS += [name for name in EVERY if name.startswith("ablation/")]
SLOW_VARIANTS = [pytest.param(name, marks=pytest.mark.slow if name in VARIANTS else ()) for name in COMPLETE]
KL_NAMES = {"kl-f4": "64x64x3", "kl-f8": "32x32x4", "kl-f16": "16x16x16", "kl-f32": "8x8x64"}
FIRST_STAGES = sorted(name for name in state_dicts.names() if name.startswith("first_stage_"))
DIFFUSION = {
    "ldm_celeba256": "celebahq-ldm-vq-4",
    "ldm_cin256": "cin-ldm-vq-f8",
    "ldm_ffhq256": "ffhq-ldm-vq-4",
    "ldm_lsun_beds256": "lsun_bedrooms-ldm-vq-4",
    "ldm_lsun_churches256": "lsun_churches-ldm-kl-8",
    "ldm_text2img256": "text2img256",
    "ldm_txt2img-1p4B-eval": "txt2img-1p4B-eval",
    "dpldm_cin256-v2": "cin256-v2",
}
FINE_TUNED = (
    "celeba32-dp-eps1",
    "celeba64-dp-eps1",
    "celebahq-dp-eps1",
    "celebahq-txt2img-dp-eps10",
    "cifar32-dp-eps10",
    "emnist32-dp-eps10",
)
FARTHER = ("kmnist32-conditional", "svhn32-conditional")  # public sets that the original reads and has no file for
AUTOENCODERS = ("emnist32_4x4x3", "kmnist32_4x4x3", "svhn32_4x4x3", "imagenet32_16x16x3", "imagenet64_32x32x3")
PRE_TRAINED = ("emnist32-conditional", "imagenet32-conditional", "imagenet32-unconditional", "imagenet64-unconditional")
DP_LDM = {
    **{f"dpldm_{name}": f"finetuning/{name}.yaml" for name in FINE_TUNED},
    **{f"dpldm_{name}": f"latent-diffusion/{name}.yaml" for name in (*PRE_TRAINED, "cin256-v2")},
}
#: configuration -> keys in all, and those of network, averages, first stage and condition stage; 12 are the schedule's
KEYS = {
    "latent-diffusion/imagenet32-unconditional.yaml": (896, 338, 340, 206, 0),
    "finetuning/celeba32-dp-eps1.yaml": (896, 338, 340, 206, 0),  # and a scale_factor if the checkpoint brings one
    "latent-diffusion/imagenet64-unconditional.yaml": (506, 338, 0, 156, 0),
    "finetuning/celeba64-dp-eps1.yaml": (506, 338, 0, 156, 0),
    "latent-diffusion/imagenet32-conditional.yaml": (1593, 686, 688, 206, 1),
    "finetuning/cifar32-dp-eps10.yaml": (1593, 686, 688, 206, 1),
    "latent-diffusion/emnist32-conditional.yaml": (1021, 302, 304, 402, 1),
    "finetuning/mnist32-dp-eps10.yaml": (1021, 302, 304, 402, 1),
    "latent-diffusion/cin256-v2.yaml": (906, 688, 0, 205, 1),
    "finetuning/celebahq-dp-eps1.yaml": (906, 688, 0, 205, 1),
    "finetuning/celebahq-txt2img-dp-eps10.yaml": (1368, 686, 0, 248, 422),
}


@cache
def build(file: str) -> Any:
    """The model of a file, for tests that only look at it."""
    return unallocated(CONFIGS / file)


def assert_is(model: torch.nn.Module, listing: str) -> None:
    state = model.state_dict()
    state_dicts.assert_same_keys(state, listing)
    assert list(state) == list(state_dicts.listing(listing))


def test_every_public_model_has_a_configuration():
    assert {name for name in state_dicts.names() if name.startswith("ldm_")} == set(DIFFUSION) - {"dpldm_cin256-v2"}
    assert len(FIRST_STAGES) == len(list((CONFIGS / "first_stage_models").glob("*.yaml")))


@pytest.mark.parametrize("listing", FIRST_STAGES)
def test_first_stage(listing):
    assert_is(build(f"first_stage_models/{listing.removeprefix('first_stage_')}.yaml"), listing)


@pytest.mark.parametrize("name", KL_NAMES)
def test_training_file_is_of_the_same_network(name):
    """The file that trains a KL autoencoder and the one that loads the released weights say the same."""
    trains = load_config([CONFIGS / "autoencoder" / f"autoencoder_kl_{KL_NAMES[name]}.yaml"])
    loads = load_config([CONFIGS / "first_stage_models" / f"{name}.yaml"])
    assert trains.model == loads.model
    assert trains.model.params.embed_dim == trains.model.params.ddconfig.z_channels


@pytest.mark.parametrize("listing", DIFFUSION)
def test_latent_diffusion(listing):
    config = f"latent-diffusion/{DIFFUSION[listing]}.yaml"
    model = build(config)
    assert_is(model, listing)
    assert model.image_size * 2 ** (model.first_stage_model.encoder.num_resolutions - 1) == 256
    assert not any(parameter.requires_grad for parameter in model.first_stage_model.parameters())


# ---------------------------------------------------------------------- every file


@pytest.mark.parametrize("name", SLOW_VARIANTS)
def test_every_file_builds_a_model_that_trains_something(name: str) -> None:
    model = build(name)
    if hasattr(model, "select_trainable"):
        selection = model.select_trainable()
        assert selection.count > 0
        assert not any(key.startswith("first_stage_model.") for key in selection.parameters)
    else:
        assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_no_configuration_by_itself(name: str) -> None:
    assert "target" not in (load_config([CONFIGS / name]).get("model") or {})


@pytest.mark.parametrize("name", COMPLETE)
def test_every_data_set_exists_and_takes_its_parameters(name: str) -> None:
    for split, node in data_sets(name).items():
        signature = inspect.signature(get_obj_from_str(node["target"]))
        try:
            signature.bind(**(node.get("params") or {}))
        except TypeError as error:
            raise AssertionError(f"{split}: {node['target']}: {error}") from None


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMPLETE if name not in VARIANTS])
def test_every_data_set_opens_where_its_files_are(name: str) -> None:
    for split, node in data_sets(name).items():
        get_obj_from_str(node["target"])
        try:
            dataset = instantiate_from_config(node)
        except UserError as error:
            pytest.skip(f"{split}: {error}")
        item = dataset[0]
        assert item["image"].ndim == 3 and item["image"].dtype.name == "float32"
        assert -1 <= item["image"].min() <= item["image"].max() <= 1


@pytest.mark.parametrize("name", COMPLETE)
def test_callbacks_and_schedulers_exist(name: str) -> None:
    for target in targets(OmegaConf.to_container(load_config([CONFIGS / name]))):  # what is still ??? stays so
        get_obj_from_str(target)


def test_every_file_that_a_document_names_exists() -> None:
    named = {
        (page.name, match)
        for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
        for match in re.findall(r"(?<![\w/])configs/[\w./-]+\.yaml", page.read_text())
    }
    assert named
    assert [entry for entry in sorted(named) if not (ROOT / entry[1]).is_file()] == []


def data_sets(name: str) -> dict[str, dict[str, Any]]:
    """The data set nodes of a configuration by split; none where it has no data section."""
    data = load_config([CONFIGS / name]).get("data")
    if not isinstance(data, DictConfig):
        return {}
    return {split: node for split in SPLITS if (node := to_plain(data.params.get(split))) is not None}


def targets(node: Any) -> list[str]:
    """Every dotted name under ``target`` in a configuration."""
    if isinstance(node, dict):
        own = [node["target"]] if isinstance(node.get("target"), str) else []
        return own + [target for value in node.values() for target in targets(value)]
    return [target for value in node for target in targets(value)] if isinstance(node, list) else []


# ---------------------------------------------------------------------- DP-LDM


def test_every_listing_of_dp_ldm_has_a_configuration() -> None:
    assert {name for name in state_dicts.names() if name.startswith("dpldm_")} == set(DP_LDM)


@pytest.mark.parametrize("listing", DP_LDM)
def test_models_of_dp_ldm_have_its_tensors(listing: str) -> None:
    model = build(DP_LDM[listing])
    state = model.state_dict()
    extra = "scale_factor" if listing == "dpldm_celeba32-dp-eps1" else "\0"  # see the next test
    state_dicts.assert_same_keys(state, listing, ignore=extra)
    assert list(state) == [key for key in state_dicts.listing(listing) if key != extra]


@pytest.mark.parametrize("listing", DP_LDM)
def test_checkpoints_of_dp_ldm_load_strictly(listing: str) -> None:
    """All but the schedule, whose values a tensor without memory cannot show."""
    model = unallocated(CONFIGS / DP_LDM[listing])
    rows = {key: row for key, row in state_dicts.listing(listing).items() if key not in BUFFERS}
    state = {
        key: torch.full(shape, 0.5) if key == "scale_factor" else
        torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, (dtype, shape) in rows.items()
    }  # fmt: skip
    model.load_lineage_state(dict(state))
    assert ("scale_factor" in model.state_dict()) == ("scale_factor" in state)
    for key in ("model.diffusion_model.out.2.weight", "first_stage_model.quant_conv.weight"):
        cut = {name: value for name, value in state.items() if name != key and not name.startswith("model_ema.")}
        with pytest.raises(UserError, match=f"1 missing from the file:\\s+{re.escape(key)}"):
            model.load_lineage_state(cut)


@pytest.mark.parametrize("name", KEYS)
def test_key_counts(name: str) -> None:
    found = Counter(key.split(".")[0] for key in build(name).state_dict())
    parts = ("model", "model_ema", "first_stage_model", "cond_stage_model")
    assert (found.total(), *(found[part] for part in parts)) == KEYS[name]
    assert sum(found[key] for key in BUFFERS) == 12


@pytest.mark.parametrize(("name", "first"), [("from1", 1), pytest.param("from13", 13, marks=pytest.mark.slow)])
def test_the_ablation_trains_the_last_spatial_transformers(name: str, first: int) -> None:
    """Sixteen of them, in the order of the forward pass: six on the way down, one in the middle, nine on the way up."""
    model = build(f"ablation/cifar32-dp-eps10-{name}.yaml")
    trained = {key.partition(".transformer_blocks")[0] for key in model.select_trainable().parameters}
    places = [key for key, module in model.named_modules() if type(module).__name__ == "SpatialTransformer"]
    assert len(places) == 16 and {key for key in trained if key in places} == set(places[first - 1 :])
    assert {key.split(".")[0] for key in trained} == {"model", "cond_stage_model"}


@pytest.mark.parametrize("size", AUTOENCODERS)
def test_the_autoencoder_files_train_the_first_stages_of_the_diffusion_files(size: str) -> None:
    trained = load_config([CONFIGS / "autoencoder" / f"autoencoder_kl_{size}.yaml"]).model.params
    users = [name for name in (*PRE_TRAINED, *FARTHER) if name.startswith(size.split("_")[0])]
    assert users
    for name in users:
        used = load_config([CONFIGS / "latent-diffusion" / f"{name}.yaml"]).model.params
        assert used.first_stage_config.params.ddconfig == trained.ddconfig
        assert used.first_stage_config.params.embed_dim == trained.embed_dim
        side = trained.ddconfig.resolution // 2 ** (len(trained.ddconfig.ch_mult) - 1)
        assert size.endswith(f"_{side}x{side}x{trained.embed_dim}") and used.image_size == side
