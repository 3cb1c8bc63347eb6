"""Adapters of a latent diffusion model: what they compute, what is trained, clipped and averaged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.modules.lora import adapters, is_adapter_name
from ldm.privacy.clipping import ENGINES, Clipping, PerRecordClipper
from tests import tiny

PROJECTIONS = {"spatial": ["to_q", "to_k", "to_v", "to_out.0"], "attention": ["qkv", "proj_out"]}
EMBEDDING = "cond_stage_model.embedding.weight"

BOUND = 1e-3
# The engines add the same products in other orders. A clipped gradient has norm C; through the fifty or so products of
# the tiny network float32 keeps each number to about 100 * 2**-24 = 6e-6 of that, on any processor.
ROUNDING = 6e-6


def adapted(kind: str = "spatial", moved: bool = False, **params: Any) -> Any:
    """A tiny model with adapters of rank 3 on its attention projections; ``moved`` takes them away from their start."""
    options = {"use_model_lora": True, "model_lora_r": 3, "model_lora_target": PROJECTIONS[kind], **params}
    torch.manual_seed(0)
    model = tiny.build(tiny.ldm(kind, **options))
    if moved:
        tiny.scatter(model)
    return model


def rows(count: int, kind: str = "spatial") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = {
        "z": torch.randn(count, 2, 4, 4, generator=generator),
        "t": torch.randint(0, 1000, (count,), generator=generator),
        "noise": torch.randn(count, 2, 4, 4, generator=generator),
    }
    if kind == "spatial":
        found["cond:class_label"] = torch.arange(count) % tiny.CLASSES
    return found


@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_engine_clips_adapters_as_the_plain_loop_does(kind: str, multiplicity: int) -> None:
    model = adapted(kind, moved=True, dp_config={"enabled": True})
    selection = model.select_trainable()
    batch = rows(4 * multiplicity, kind)
    sums = {}
    for engine in ENGINES:
        clipper = PerRecordClipper(model, selection.parameters, Clipping(1e-3), engine)
        clipper.verify(model.per_example_losses, batch, multiplicity)
        clipper.accumulate(model.per_example_losses, batch, multiplicity)
        sums[engine] = torch.cat([value.flatten() for value in clipper.pop_sums().values()])
    assert 0 < float(sums["naive"].norm()) <= 4 * BOUND
    for engine in ENGINES:
        torch.testing.assert_close(sums[engine], sums["naive"], rtol=1e-4, atol=ROUNDING * BOUND)


def test_a_base_weight_gets_no_gradient_and_no_rule() -> None:
    model = adapted(moved=True)
    model.select_trainable()
    model.per_example_losses(rows(3)).mean().backward()
    with_gradient = {name for name, value in model.named_parameters() if value.grad is not None}
    assert with_gradient and all(is_adapter_name(name) for name in with_gradient - {EMBEDDING})


def test_plain_weights_load_before_there_are_adapters(tmp_path: Path) -> None:
    path = tiny.public_checkpoint(tmp_path / "public.ckpt")
    plain = tiny.build(tiny.ldm(ckpt_path=str(path)))
    model = adapted(ckpt_path=str(path))
    own = model.state_dict()
    for name, value in plain.state_dict().items():
        assert name.startswith("model_ema.") or torch.equal(own[name], value), name
    batch = rows(3)
    with torch.no_grad():
        assert torch.equal(model.per_example_losses(batch), plain.per_example_losses(batch)), (
            "adapters start at nothing"
        )
    assert len(list(adapters(model.model))) == 7 * 8
    assert set(model.model_ema.m_name2s_name) == {n for n, _ in model.model.named_parameters() if is_adapter_name(n)}


@pytest.mark.parametrize("flags", [{}, {"train_condition_only": True}, {"train_attention_only": True}])
def test_adapters_are_all_that_the_network_trains(flags: dict[str, Any]) -> None:
    model = adapted(cond_stage_trainable=False, **flags)
    names = set(model.select_trainable().parameters)
    assert {name for name in names if name.startswith("model.")} == {
        name for name, _ in model.named_parameters() if is_adapter_name(name)
    }
    assert (EMBEDDING in names) == bool(flags.get("train_condition_only"))
    assert {name for name, value in model.named_parameters() if value.requires_grad} == names


def test_a_private_run_leaves_out_the_adapters_that_one_token_cuts_off() -> None:
    selection = adapted(dp_config={"enabled": True}).select_trainable()
    assert {name.split("blocks.0.")[-1].rsplit(".", 2)[0] for name in selection.dead} == {"attn2.to_q", "attn2.to_k"}
    assert len(selection.dead) == 7 * 4


def test_to_out_linear_is_read_as_the_output_projection(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = adapted(model_lora_target=["to_q", "to_out.Linear"])
    assert "is read as 'to_out.0'" in caplog.text and "leave it out" in caplog.text
    assert {name.split("attn")[1][2:] for name, _ in adapters(model.model)} == {"to_q", "to_out.0"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"model_lora_target": ["to_qq"]}, "'to_qq' names no layer .* near it are to_q, "),
        ({"model_lora_target": ["attn1"]}, "names .*attn1 .CrossAttention.; .* near it are to_"),
        ({"model_lora_target": []}, "model_lora_target is empty"),
        ({"model_lora_r": 0}, "rank is 0; give a whole number"),
        ({"model_lora_alpha": -1}, "alpha is -1"),
        ({"model_lora_init": "gausian"}, "did you mean 'gaussian'"),
        ({"model_lora_scaling": "rs"}, "choose one of standard, rslora"),
        ({"model_lora_rank_schedule": {"shape": "linear"}}, "model_lora_rank_schedule.shape: is unknown"),
        ({"use_model_lora": False}, "use_model_lora is not; set use_model_lora: true"),
        ({"use_lora": True}, "both set"),
        ({"use_model_lora": False, "model_lora_target": [], "use_lora": True}, "needs unet_config.params.lora_rank"),
        ({"cond_lora_target": ["embedding"]}, "use_cond_lora is not"),
        ({"use_cond_lora": True, "cond_lora_target": ["embedding"]}, "names embedding .Embedding.; "),
    ],
)
def test_mistakes_are_answered(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapted(**params)


def test_noise_multiplicity_has_a_second_spelling(caplog: pytest.LogCaptureFixture) -> None:
    assert adapted(DPDM_k=4, dp_config={"enabled": True}).dp_config.noise_multiplicity == 4
    with pytest.raises(UserError, match="DPDM_k is 4 but dp_config.noise_multiplicity is 2"):
        adapted(DPDM_k=4, dp_config={"enabled": True, "noise_multiplicity": 2})
    with caplog.at_level(logging.WARNING):
        assert adapted(DPDM_k=4).dp_config.noise_multiplicity == 1
    assert "this run takes one" in caplog.text


# ---------------------------------------------------------------------- other layers, other switches


def test_feed_forward_residual_and_projection_layers_can_be_adapted() -> None:
    targets = ["ff.net.0.proj", "net.2", "proj_in", "in_layers.2", "time_embed.0", "op"]
    model = adapted(moved=True, model_lora_target=targets[:-1], dp_config={"enabled": True})
    kinds = {type(layer).__name__ for _, layer in adapters(model.model)}
    assert kinds == {"AdaptedLinear", "AdaptedConv2d"}
    selection = model.select_trainable()
    assert not selection.dead
    batch = rows(3)
    sums = {}
    for engine in ("bookkeeping", "naive"):
        clipper = PerRecordClipper(model, selection.parameters, Clipping(1e-3), engine)
        clipper.accumulate(model.per_example_losses, batch)
        sums[engine] = torch.cat([value.flatten() for value in clipper.pop_sums().values()])
    torch.testing.assert_close(sums["bookkeeping"], sums["naive"], rtol=1e-4, atol=ROUNDING * BOUND)


@pytest.mark.parametrize(
    ("flags", "blocks"),
    [
        ({"train_condition_only": True, "ablation_blocks": 6}, {"output_blocks.2", "output_blocks.3"}),
        ({"train_input_blocks_only": True}, {"input_blocks.1", "input_blocks.3"}),
    ],
)
def test_a_narrower_rule_narrows_the_adapters(flags: dict[str, Any], blocks: set[str]) -> None:
    names = [name for name in adapted(**flags).select_trainable().parameters if name.startswith("model.")]
    assert all(is_adapter_name(name) for name in names)
    assert {name.removeprefix("model.diffusion_model.").split(".1.transformer")[0] for name in names} == blocks


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_switches_of_dp_ldm(kind: str) -> None:
    params = {"use_model_lora": False, "model_lora_target": [], "use_lora": True}
    model = adapted(kind, unet_params={"lora_rank": 4}, **params)
    found = dict(adapters(model.model))
    assert len(found) == 7 * (8 if kind == "spatial" else 2)
    assert {(layer.rank, layer.scaling) for layer in found.values()} == {(4, 0.25)}
    names = set(model.select_trainable().parameters)
    assert {name for name in names if name.startswith("model.")} == {
        name for name, _ in model.named_parameters() if is_adapter_name(name)
    }
    assert (EMBEDDING in names) == (kind == "spatial"), "the condition stage is trained in full"
    with pytest.raises(UserError, match="lora_rank is set but use_lora is not"):
        adapted(kind, unet_params={"lora_rank": 4}, use_model_lora=False, model_lora_target=[])


def test_training_with_averages_moves_the_adapters_and_their_averages_only() -> None:
    model = adapted(moved=True, train_condition_only=True).train()
    model.model_ema.reset(model.model)
    optimizer = torch.optim.AdamW(model.select_trainable().parameters.values(), lr=1e-2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.shared_step(tiny.batch(4))[0].backward()
    optimizer.step()
    model.average_weights()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    factors = {name for name, _ in model.model.named_parameters() if is_adapter_name(name)}
    averages = {f"model_ema.{name.replace('.', '')}" for name in factors}
    assert moved == {f"model.{name}" for name in factors} | averages | {EMBEDDING, "model_ema.num_updates"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_adapters_learn_after_the_model_was_moved(dtype: torch.dtype) -> None:
    model = adapted(moved=True, dp_config={"enabled": True}).to(dtype)
    selection = model.select_trainable()
    before = {name: value.detach().clone() for name, value in selection.parameters.items()}
    clipper = PerRecordClipper(model, selection.parameters, Clipping(1.0))
    batch = {key: value.to(dtype) if value.is_floating_point() else value for key, value in rows(3).items()}
    clipper.accumulate(model.per_example_losses, batch)
    with torch.no_grad():
        for name, value in clipper.pop_sums().items():
            selection.parameters[name].sub_(10 * value.to(dtype))
    still = [name for name, value in selection.parameters.items() if torch.equal(value, before[name])]
    assert [name for name in still if is_adapter_name(name)] == []
    assert all(value.dtype == dtype for value in selection.parameters.values())


@pytest.mark.parametrize("multiplicity", [1, 4])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_record_moves_the_sum_by_at_most_c(engine: str, multiplicity: int) -> None:
    model = adapted(moved=True, dp_config={"enabled": True})
    selection = model.select_trainable()
    bound, records = 1e-4, 3  # below every gradient: a record uses the bound up
    batch = {key: value.repeat_interleave(multiplicity, 0) for key, value in rows(records).items()}

    def total(keep: list[int]) -> Tensor:
        clipper = PerRecordClipper(model, selection.parameters, Clipping(bound), engine)
        clipper.accumulate(model.per_example_losses, {key: value[keep] for key, value in batch.items()}, multiplicity)
        return torch.cat([value.flatten() for value in clipper.pop_sums().values()])

    everyone = total(list(range(records * multiplicity)))
    for left_out in range(records):
        change = float(
            (everyone - total([row for row in range(records * multiplicity) if row // multiplicity != left_out])).norm()
        )
        assert 0.99 < change / bound <= 1 + 3e-6


# ---------------------------------------------------------------------- the condition stage

TEXT = {
    "cond_stage_key": "caption",
    "cond_stage_config": {
        "target": "ldm.modules.encoders.modules.BERTEmbedder",
        "params": {"n_embed": 5, "n_layer": 1, "vocab_size": 20, "max_seq_len": 4, "use_tokenizer": False},
    },
}


def test_the_condition_stage_has_adapters_of_its_own_scaling() -> None:
    lora = {"use_cond_lora": True, "cond_lora_r": 2, "cond_lora_target": ["to_q", "to_v"], "model_lora_r": 6}
    model = adapted(moved=True, cond_stage_trainable=False, dp_config={"enabled": True}, **TEXT, **lora)
    found = dict(adapters(model.cond_stage_model))
    assert found and {(layer.rank, layer.scaling) for layer in found.values()} == {(2, 1.0)}
    selection = model.select_trainable()
    trained = [name for name in selection.parameters if name.startswith("cond_stage_model.")]
    assert trained == [
        f"cond_stage_model.{n}" for n, _ in model.cond_stage_model.named_parameters() if is_adapter_name(n)
    ]
    batch = {**rows(3, "attention"), "cond": torch.arange(12).reshape(3, 4) % 20}
    sums = {}
    for engine in ("bookkeeping", "naive"):
        clipper = PerRecordClipper(model, selection.parameters, Clipping(1e-3), engine)
        clipper.accumulate(model.per_example_losses, batch)
        sums[engine] = clipper.pop_sums()
    for name in trained:
        assert sums["naive"][name].any(), name
        torch.testing.assert_close(sums["bookkeeping"][name], sums["naive"][name], rtol=1e-4, atol=ROUNDING * BOUND)
    with pytest.raises(UserError, match="has no condition stage of its own"):
        adapted("attention", use_cond_lora=True, cond_lora_target=["to_q"])
