"""Adapters of the published models: how many values they train, and that their checkpoints load by name and shape."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import pytest
import torch

from ldm.checkpoint.lora_names import layers_of, to_plain
from ldm.errors import UserError
from ldm.modules.lora import is_adapter_name
from tests import state_dicts, tiny

SPATIAL = {"use_spatial_transformer": True, "transformer_depth": 1}
UPDOWN = {"use_scale_shift_norm": True, "resblock_updown": True}
WIDE = {"num_heads": -1, "num_head_channels": 32}
SHIPPED = ["to_q", "to_k", "to_v"]
INTENDED = [*SHIPPED, "to_out.0"]
BOTH = ["qkv", "proj_out"]


def unet(channels: int, mult: list[int], attention: list[int], **params: Any) -> dict[str, Any]:
    shape = {"image_size": 16, "in_channels": 3, "out_channels": 3, "num_res_blocks": 2, "num_heads": 8}
    section = tiny.unet("attention", **shape, model_channels=channels, channel_mult=mult)
    section["params"] = {**section["params"], "attention_resolutions": attention, **params}
    return section


UNETS = {
    "mnist": unet(64, [1, 2], [1, 2], num_res_blocks=1, num_heads=4, context_dim=5, **SPATIAL, **UPDOWN),
    "cifar": unet(128, [1, 2, 2, 4], [1, 2, 4], context_dim=512, **SPATIAL),
    "celeba32": unet(192, [1, 2, 4], [4, 2, 1], **WIDE, **UPDOWN),
    "celeba64": unet(128, [1, 2, 4], [4, 2, 1], **UPDOWN),
    "cin-v2": unet(192, [1, 2, 3, 5], [8, 4, 2], num_heads=1, context_dim=512, **SPATIAL),
    "cin256": unet(256, [1, 2, 4], [4, 2, 1], in_channels=4, out_channels=4, **{**WIDE, "context_dim": 512}, **SPATIAL),
}
STAGES = {"mnist": (26, 5), "cifar": (10, 512), "cin-v2": (2, 512), "cin256": (1000, 512)}


def build(name: str, rank: int, targets: list[str], use_ema: bool = False) -> Any:
    """A model of the published size on the meta device."""
    params: dict[str, Any] = {
        "unet_config": UNETS[name],
        "use_ema": use_ema,
        "use_model_lora": True,
        "model_lora_r": rank,
        "model_lora_target": targets,
    }
    if name in STAGES:
        classes, width = STAGES[name]
        stage = {"embed_dim": width, "n_classes": classes, "key": "class_label"}
        params["cond_stage_config"] = {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": stage}
        params["train_condition_only"] = True
    else:
        params["train_attention_only"] = True
    with torch.device("meta"):
        return tiny.build(tiny.ldm("spatial" if name in STAGES else "attention", **params))


@cache
def counted(name: str, targets: tuple[str, ...]) -> tuple[int, int, int]:
    """Values in the network without adapters, in adapters of rank 1, and trained beside them."""
    model = build(name, 1, list(targets))
    named = dict(model.model.named_parameters())
    trained = model.select_trainable().parameters
    adapters = sum(value.numel() for key, value in trained.items() if is_adapter_name(key))
    network = sum(value.numel() for key, value in named.items() if not is_adapter_name(key))
    return network, adapters, sum(value.numel() for value in trained.values()) - adapters


@pytest.mark.parametrize(
    ("name", "targets", "rank", "network", "adapters", "embedding"),
    [
        ("mnist", SHIPPED, 8, 4_606_467, 56_880, 130),
        ("mnist", INTENDED, 8, 4_606_467, 79_408, 130),
        ("mnist", INTENDED, 4, 4_606_467, 39_704, 130),
        ("cifar", SHIPPED, 8, 90_290_563, 428_032, 5_120),
        ("cifar", INTENDED, 8, 90_290_563, 546_816, 5_120),
        ("celeba32", BOTH, 16, 162_314_115, 718_848, 0),
        ("celeba32", ["qkv"], 16, 162_314_115, 479_232, 0),
        ("celeba32", ["proj_out"], 16, 162_314_115, 239_616, 0),
        ("celeba32", BOTH, 64, 162_314_115, 2_875_392, 0),
        ("celeba64", BOTH, 16, 72_172_803, 479_232, 0),
        ("celeba64", ["qkv"], 16, 72_172_803, 319_488, 0),
        ("celeba64", ["proj_out"], 16, 72_172_803, 159_744, 0),
        ("celeba64", BOTH, 8, 72_172_803, 239_616, 0),
        ("cin-v2", SHIPPED, 8, 400_920_579, 975_872, 1_024),
        ("cin-v2", INTENDED, 8, 400_920_579, 1_313_792, 1_024),
        ("cin256", SHIPPED, 8, 394_984_196, 929_792, 512_000),
        ("cin256", ["to_out.0"], 8, 394_984_196, 319_488, 512_000),
        ("cin256", INTENDED, 8, 394_984_196, 1_249_280, 512_000),
        ("cin256", INTENDED, 32, 394_984_196, 4_997_120, 512_000),
    ],
)
def test_published_counts(
    name: str, targets: list[str], rank: int, network: int, adapters: int, embedding: int
) -> None:
    of_rank_one = counted(name, tuple(targets))
    assert of_rank_one == (network, adapters // rank, embedding) and adapters % rank == 0


def test_the_published_spelling_trains_the_output_projection_here(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = build("mnist", 8, [*SHIPPED, "to_out.Linear"])
    trained = model.select_trainable().parameters
    assert sum(value.numel() for value in trained.values()) == 79_408 + 130
    assert "leave it out to train what the published runs trained" in caplog.text


@pytest.mark.parametrize(
    ("listing", "name", "rank", "targets"),
    [
        ("dplora_celeba64-dp-eps10", "celeba64", 16, BOTH),
        ("dplora_mnist32-class-dp-eps10", "mnist", 8, SHIPPED),
        ("dplora_celebahq_class_eps10", "cin-v2", 8, SHIPPED),
    ],
)
def test_published_checkpoints_load_by_name_and_shape(listing: str, name: str, rank: int, targets: list[str]) -> None:
    keys = state_dicts.listing(listing)
    has_ema = any(key.startswith("model_ema.") for key in keys)
    model = build(name, rank, targets, use_ema=has_ema)
    parts = ("model.", "model_ema.", "cond_stage_model.")
    listed = {key: row for key, row in keys.items() if key.startswith(parts)}
    state = {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, (dtype, shape) in listed.items()
    }
    plain = to_plain(state)
    own = {key: value for key, value in model.state_dict().items() if key.startswith(parts)}
    assert {key: (value.dtype, value.shape) for key, value in plain.items()} == {
        key: (value.dtype, value.shape) for key, value in own.items()
    }
    first_stage = {key: value for key, value in model.state_dict().items() if key.startswith("first_stage_model.")}
    model.load_lineage_state({**first_stage, **state}, source=listing)
    with pytest.raises(UserError, match="unexpected in the file"):
        model.load_lineage_state({**first_stage, **state, "model.stray": torch.empty(1)}, source=listing)
    missing = next(key for key in state if "lora_A" in key and key.startswith("model."))
    with pytest.raises(UserError, match="lora_A beside it|belongs to no parameter of this checkpoint"):
        model.load_lineage_state({**first_stage, **{k: v for k, v in state.items() if k != missing}}, source=listing)


def test_a_rank_other_than_the_file_s_is_an_error_that_names_both() -> None:
    plain = build("mnist", 8, SHIPPED).state_dict()
    assert set(layers_of(plain).values()) == {8}
    plain.pop("betas")  # whose values would be compared
    with pytest.raises(
        UserError, match="rank 8 in the file and 4 in the config; set model_lora_r: 8, or .*--adapt-rank 4"
    ):
        build("mnist", 4, SHIPPED).load_lineage_state(plain, source="file")
