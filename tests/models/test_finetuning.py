"""What fine-tuning trains and what it starts from: parameter sets, averaged weights, and the refusals of a bad fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.checkpoint import read_checkpoint, save_checkpoint
from ldm.errors import UserError
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import AttentionBlock, ResBlock
from tests import tiny

UNET = "model.diffusion_model."


def trained(kind: str = "spatial", private: bool = False, **params: Any) -> dict[str, torch.nn.Parameter]:
    """Names and parameters that a model with these flags trains."""
    model = tiny.build(tiny.ldm(kind, dp_config={"enabled": private}, **params))
    return dict(model.select_trainable().parameters)


def modules(kind: str, wanted: type | tuple[type, ...]) -> list[str]:
    """Paths of the network's modules of a class, in the order input, middle, output."""
    network = tiny.build(tiny.ldm(kind)).model.diffusion_model
    found = [name for name, module in network.named_modules() if isinstance(module, wanted)]
    order = ("input_blocks", "middle_block", "output_blocks")
    return sorted(found, key=lambda name: order.index(name.split(".")[0]))


def blocks_of(names: Mapping[str, Any], kind: str) -> list[str]:
    """Which attention modules the names belong to."""
    return [
        block
        for block in modules(kind, (SpatialTransformer, AttentionBlock))
        if any(name.startswith(f"{UNET}{block}.") for name in names)
    ]


# ---------------------------------------------------------------------- which parameters


def test_condition_trains_the_spatial_transformers_and_the_class_embedding() -> None:
    names = trained(train_condition_only=True)
    blocks = modules("spatial", SpatialTransformer)
    assert {name for name in names if not name.startswith("cond_stage_model.")} == {
        name
        for name, _ in tiny.build(tiny.ldm()).named_parameters()
        if any(name.startswith(f"{UNET}{block}.") for block in blocks)
    }
    assert [name for name in names if name.startswith("cond_stage_model.")] == ["cond_stage_model.embedding.weight"]


@pytest.mark.parametrize("cond_stage_trainable", [False, True])
def test_condition_trains_the_condition_stage_always_and_attention_never(cond_stage_trainable: bool) -> None:
    embedding = "cond_stage_model.embedding.weight"
    flags = {"cond_stage_trainable": cond_stage_trainable}
    assert embedding in trained(train_condition_only=True, **flags)
    assert (embedding in trained(train_resblocks_only=True, **flags)) == cond_stage_trainable
    assert (embedding in trained(train_input_blocks_only=True, **flags)) == cond_stage_trainable
    assert (embedding in trained(**flags)) == cond_stage_trainable


def test_attention_trains_the_attention_blocks_and_nothing_else() -> None:
    names = trained("attention", train_attention_only=True)
    blocks = modules("attention", AttentionBlock)
    assert len(names) == 6 * len(blocks) == 6 * 7  # norm, qkv and proj_out have a weight and a bias each
    assert blocks_of(names, "attention") == blocks


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_input_blocks_trains_the_attention_of_the_input_half(kind: str) -> None:
    names = trained(kind, train_input_blocks_only=True, cond_stage_trainable=False)
    assert blocks_of(names, kind) == ["input_blocks.1.1", "input_blocks.3.1"]
    assert all(name.startswith(f"{UNET}input_blocks.") for name in names)


def test_res_blocks_trains_the_residual_blocks() -> None:
    names = trained(train_resblocks_only=True, cond_stage_trainable=False)
    blocks = modules("spatial", ResBlock)
    network = tiny.build(tiny.ldm()).model.diffusion_model
    assert list(names) == [
        f"{UNET}{block}.{name}" for block in blocks for name, _ in network.get_submodule(block).named_parameters()
    ]
    assert len(blocks) == 8 and not any(".transformer_blocks." in name for name in names)


def test_without_a_rule_the_whole_network_is_trained() -> None:
    names = trained(cond_stage_trainable=False)
    assert list(names) == [f"model.{name}" for name, _ in tiny.build(tiny.ldm()).model.named_parameters()]


@pytest.mark.parametrize(("index", "left_out"), [(-1, 0), (0, 0), (1, 0), (2, 1), (4, 3), (7, 6)])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_ablation_blocks_is_the_first_trained_attention_module(kind: str, index: int, left_out: int) -> None:
    flag = {"train_condition_only": True} if kind == "spatial" else {"train_attention_only": True}
    names = trained(kind, ablation_blocks=index, **flag)
    every = modules(kind, (SpatialTransformer, AttentionBlock))
    assert len(every) == 7
    assert blocks_of(names, kind) == every[left_out:]


def test_the_first_of_several_rules_counts_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        names = trained(train_condition_only=True, train_resblocks_only=True)
    assert list(names) == list(trained(train_condition_only=True))
    assert "condition, res_blocks" in caplog.text


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("attention", {"train_condition_only": True}),
        ("spatial", {"train_attention_only": True}),
        ("spatial", {"train_condition_only": True, "ablation_blocks": 8}),
    ],
)
def test_a_rule_that_matches_no_block_is_refused(kind: str, flags: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="matches nothing in this network"):
        trained(kind, **flags)


def test_the_first_stage_is_never_trained_and_no_tensor_is_trained_twice() -> None:
    for kind, flag in (("spatial", "train_condition_only"), ("attention", "train_attention_only"), ("spatial", None)):
        model = tiny.build(tiny.ldm(kind, **({flag: True} if flag else {})))
        optimizer = model.configure_optimizers()
        given = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        assert len(given) == len(set(given))
        wanting = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        assert set(given) == wanting
        assert wanting.isdisjoint(id(parameter) for parameter in model.first_stage_model.parameters())
        assert not model.train().first_stage_model.training


# ---------------------------------------------------------------------- parameters that records cannot reach

DEAD = {"attn2.to_q.weight", "attn2.to_k.weight", "norm2.weight", "norm2.bias"}


@pytest.mark.parametrize("flags", [{"train_condition_only": True}, {"train_input_blocks_only": True}, {}])
def test_private_training_leaves_out_what_a_one_token_condition_cuts_off(flags: dict[str, Any]) -> None:
    model = tiny.build(tiny.ldm(dp_config={"enabled": True}, **flags))
    selection = model.select_trainable()
    every = set(trained(**flags))
    assert set(selection.dead) | set(selection.parameters) == every
    assert {name.split("transformer_blocks.0.")[1] for name in selection.dead} == DEAD
    assert len(selection.dead) == 4 * len(blocks_of(every, "spatial"))
    assert selection.count == sum(parameter.numel() for parameter in selection.parameters.values())


def test_dead_parameters_are_trained_where_they_are_alive_or_asked_for() -> None:
    unconditional = tiny.build(tiny.ldm("attention", train_attention_only=True, dp_config={"enabled": True}))
    assert unconditional.select_trainable().dead == ()
    asked = trained(private=True, train_condition_only=True, train_dead_parameters=True)
    assert set(asked) == set(trained(train_condition_only=True))


# ---------------------------------------------------------------------- the published numbers


def published_unet(channels: int, mult: list[int], attention: list[int], **params: Any) -> dict[str, Any]:
    shape = {"image_size": 16, "in_channels": 3, "out_channels": 3, "num_res_blocks": 2}
    section = tiny.unet("attention", **shape, model_channels=channels, channel_mult=mult)
    section["params"] = {**section["params"], "attention_resolutions": attention, **params}
    return section


SPATIAL = {"use_spatial_transformer": True, "transformer_depth": 1}
UPDOWN = {"use_scale_shift_norm": True, "resblock_updown": True}
WIDE_HEADS = {"num_heads": -1, "num_head_channels": 32}
PUBLISHED = {
    "mnist": (
        published_unet(64, [1, 2], [1, 2], num_res_blocks=1, context_dim=5, **SPATIAL, **UPDOWN),
        {"train_condition_only": True},
        (26, 5),
        (4_606_467, 1_578_304, 130),
    ),
    "celeba32": (
        published_unet(192, [1, 2, 4], [4, 2, 1], **WIDE_HEADS, **UPDOWN),
        {"train_attention_only": True},
        None,
        (162_314_115, 17_887_104, 0),
    ),
    "celeba64": (
        published_unet(128, [1, 2, 4], [4, 2, 1], num_heads=8, **UPDOWN),
        {"train_attention_only": True},
        None,
        (72_172_803, 7_959_808, 0),
    ),
    "cifar32": (
        published_unet(128, [1, 2, 2, 4], [1, 2, 4], num_heads=8, context_dim=512, **SPATIAL),
        {"train_condition_only": True, "ablation_blocks": 9},
        (1001, 512),
        (90_290_563, 9_275_520, 512_512),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models_train_the_published_number_of_values(name: str) -> None:
    unet, flags, classes, expected = PUBLISHED[name]
    params: dict[str, Any] = {"unet_config": unet, "use_ema": False, **flags}
    if classes is not None:
        stage = {"embed_dim": classes[1], "n_classes": classes[0], "key": "class_label"}
        target = "ldm.modules.encoders.modules.ClassEmbedder"
        params["cond_stage_config"] = {"target": target, "params": stage}
    with torch.device("meta"):
        model = tiny.build(tiny.ldm("attention" if classes is None else "spatial", **params))
    parameters = model.select_trainable().parameters
    stage_count = sum(value.numel() for key, value in parameters.items() if key.startswith("cond_stage_model."))
    network_count = sum(value.numel() for key, value in parameters.items() if key.startswith(UNET))
    total = sum(value.numel() for value in model.model.parameters())
    assert (total, network_count, stage_count) == expected


def test_the_published_mnist_model_has_82_752_values_that_no_record_can_reach() -> None:
    unet, flags, (classes, width), _ = PUBLISHED["mnist"]
    stage = {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": {"embed_dim": width}}
    stage["params"].update(n_classes=classes, key="class_label")
    section = tiny.ldm(unet_config=unet, use_ema=False, cond_stage_config=stage, dp_config={"enabled": True}, **flags)
    model = tiny.build(section)
    named = dict(model.named_parameters())
    assert sum(named[name].numel() for name in model.select_trainable().dead) == 82_752


# ---------------------------------------------------------------------- what it starts from


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.public_checkpoint(tmp_path_factory.mktemp("public") / "public.ckpt")


def loaded(path: Path, **params: Any) -> Any:
    return tiny.build(tiny.ldm(ckpt_path=str(path), **params))


def rewritten(path: Path, target: Path, change: Any) -> Path:
    """A copy of a checkpoint whose content ``change`` has been at."""
    content = dict(read_checkpoint(path))
    change(content)
    save_checkpoint(content, target)
    return target


def raw(path: Path) -> dict[str, torch.Tensor]:
    """The network's own weights in a checkpoint."""
    state = read_checkpoint(path)["state_dict"]
    return {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}


def same_weights(model: Any, expected: Mapping[str, torch.Tensor], offset: float = 0.0) -> bool:
    own = model.model.state_dict()
    return all(torch.equal(own[name], value + offset) for name, value in expected.items())


def averages_equal_weights(model: Any) -> bool:
    shadows = model.model_ema.m_name2s_name
    named = dict(model.model.named_parameters())
    return all(torch.equal(model.model_ema.get_buffer(shadow), named[name]) for name, shadow in shadows.items())


def test_fine_tuning_starts_from_the_averaged_weights(public: Path) -> None:
    model = loaded(public)
    assert same_weights(model, raw(public), offset=0.01)
    assert averages_equal_weights(model) and int(model.model_ema.num_updates) == 0


def test_start_from_ema_can_be_switched_off(public: Path) -> None:
    model = loaded(public, start_from_ema=False)
    assert same_weights(model, raw(public))
    assert averages_equal_weights(model)


def test_a_checkpoint_without_averages_gives_its_weights(public: Path, tmp_path: Path) -> None:
    def drop(content: dict[str, Any]) -> None:
        state = content["state_dict"]
        content["state_dict"] = {key: value for key, value in state.items() if not key.startswith("model_ema.")}

    plain = rewritten(public, tmp_path / "plain.ckpt", drop)
    model = loaded(plain)
    assert same_weights(model, raw(public)) and averages_equal_weights(model)
    assert same_weights(loaded(plain, use_ema=False), raw(public))


def test_a_model_without_averages_starts_from_those_of_the_checkpoint(public: Path) -> None:
    assert same_weights(loaded(public, use_ema=False), raw(public), offset=0.01)


def test_only_the_network_can_be_loaded(public: Path) -> None:
    torch.manual_seed(1)
    model = loaded(public, load_only_unet=True)
    assert same_weights(model, raw(public), offset=0.01)
    assert averages_equal_weights(model)  # else sampling would show averages of weights that were never there
    stored = read_checkpoint(public)["state_dict"]["cond_stage_model.embedding.weight"]
    assert not torch.equal(model.cond_stage_model.embedding.weight, stored)


def test_ignored_keys_keep_their_fresh_values(public: Path) -> None:
    torch.manual_seed(1)
    model = loaded(public, ignore_keys=["cond_stage_model", "model.diffusion_model.out."])
    stored = read_checkpoint(public)["state_dict"]
    assert not torch.equal(model.cond_stage_model.embedding.weight, stored["cond_stage_model.embedding.weight"])
    own = model.model.state_dict()
    for name, value in raw(public).items():
        assert torch.equal(own[name], value + 0.01) != name.startswith("diffusion_model.out."), name
    assert averages_equal_weights(model)


@pytest.mark.parametrize(("kind", "flag"), [("spatial", "spatial"), ("attention", "self")])
def test_retrained_attention_starts_afresh(kind: str, flag: str, tmp_path: Path) -> None:
    path = tiny.public_checkpoint(tmp_path / "public.ckpt", kind)
    torch.manual_seed(1)
    model = tiny.build(tiny.ldm(kind, ckpt_path=str(path), retrain_attention=True, attention_flag=flag))
    fresh = [f"diffusion_model.{block}." for block in modules(kind, (SpatialTransformer, AttentionBlock))]
    own = model.model.state_dict()
    for name, value in raw(path).items():
        assert torch.equal(own[name], value + 0.01) != name.startswith(tuple(fresh)), name
    assert averages_equal_weights(model)


def test_the_latent_scale_of_the_checkpoint_wins_and_is_handed_on(public: Path, tmp_path: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        content["state_dict"]["scale_factor"] = torch.tensor(0.25)

    scaled = rewritten(public, tmp_path / "scaled.ckpt", add)
    model = loaded(scaled)  # its own configuration says 0.5
    assert float(model.scale_factor) == 0.25
    save_checkpoint({"state_dict": model.state_dict()}, tmp_path / "next.ckpt")
    assert float(loaded(tmp_path / "next.ckpt").scale_factor) == 0.25
    assert "scale_factor" not in loaded(public).state_dict()  # the key belongs to those who need it


# ---------------------------------------------------------------------- checkpoints of another model


def test_another_number_of_heads_is_refused(public: Path) -> None:
    with pytest.raises(UserError, match="num_heads=2, the config says 4") as error:
        loaded(public, unet_params={"num_heads": 4})
    assert "\n" not in str(error.value)


def test_heads_are_not_checked_against_a_checkpoint_that_says_nothing(public: Path, tmp_path: Path) -> None:
    silent = rewritten(public, tmp_path / "silent.ckpt", lambda content: content.pop("model_config"))
    loaded(silent, unet_params={"num_heads": 4})


@pytest.mark.parametrize("change", [{"linear_end": 0.02}, {"timesteps": 500}, {"beta_schedule": "cosine"}])
def test_another_noise_schedule_is_refused(public: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="another noise schedule"):
        loaded(public, **change)


def test_a_network_of_another_width_is_refused(public: Path) -> None:
    with pytest.raises(UserError, match=r"\(32, 5\) in the file, \(32, 7\) in the model"):
        loaded(public, unet_params={"context_dim": 7})


def test_missing_weights_are_refused(public: Path, tmp_path: Path) -> None:
    cut = rewritten(public, tmp_path / "cut.ckpt", lambda content: content["state_dict"].pop(f"{UNET}out.2.weight"))
    with pytest.raises(UserError, match=r"1 missing from the file"):
        loaded(cut, start_from_ema=False)
