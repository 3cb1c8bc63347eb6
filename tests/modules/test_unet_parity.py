"""The UNet computes what the public code computes, for every head layout and both attention types."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.errors import UserError
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from tests import parity

SMALL = dict(
    image_size=8,
    in_channels=3,
    out_channels=3,
    model_channels=32,
    attention_resolutions=[2],
    num_res_blocks=1,
    channel_mult=[1, 2],
    num_heads=2,
)
WITH_CONTEXT = {**SMALL, "use_spatial_transformer": True, "context_dim": 5}


def randomised(model: nn.Module) -> nn.Module:
    """Give the layers that start at zero some weight, so that every path shows in the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.count_nonzero() == 0:
                parameter.normal_(std=0.1, generator=generator)
    return model


MODELS = [entry for entry in parity.entries("unet") if entry["class"].endswith("UNetModel")]


@pytest.mark.parametrize("entry", [e for e in MODELS if not parity.shape_only(e)], ids=parity.name)
def test_unet_output(entry):
    model = parity.build(entry)
    inputs, _ = parity.io(entry)
    with torch.no_grad():
        got = model(inputs["x"], timesteps=inputs["t"], context=inputs.get("context"))
    parity.check("y", got, entry)


@pytest.mark.parametrize("entry", [e for e in MODELS if parity.shape_only(e)], ids=parity.name)
def test_head_rule(entry):
    with torch.device("meta"):
        model = UNetModel(**entry["params"])
    state = model.state_dict()
    assert {key: list(state[key].shape) for key in entry["shapes"]} == entry["shapes"]
    assert {name: model.get_submodule(name).heads for name in entry["heads"]} == entry["heads"]


def test_label_embedding_moves_the_output_and_is_required():
    model = randomised(UNetModel(**SMALL, num_classes=4)).eval()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    with torch.no_grad():
        first, second = (model(x, t, y=torch.tensor(labels)) for labels in ([0, 1], [0, 2]))
    assert torch.equal(first[0], second[0]) and not torch.allclose(first[1], second[1])
    assert model.label_emb.weight.shape == (4, 128)
    with pytest.raises(UserError, match="y is missing"):
        model(x, t)
    with pytest.raises(UserError, match="y is given"):
        UNetModel(**SMALL)(x, t, y=torch.tensor([0, 1]))


def test_codebook_head_gives_one_logit_per_entry():
    model = randomised(UNetModel(**SMALL, n_embed=7))
    assert model(torch.randn(2, 3, 8, 8), torch.tensor([1, 2])).shape == (2, 7, 8, 8)
    assert {"id_predictor.0.weight", "id_predictor.1.weight", "out.2.weight"} <= set(model.state_dict())


@pytest.mark.parametrize("params", [SMALL, WITH_CONTEXT], ids=["attention_block", "spatial_transformer"])
def test_recomputation_changes_nothing(params):
    plain = randomised(UNetModel(**params))
    recomputed = UNetModel(**params, use_checkpoint=True)
    recomputed.load_state_dict(plain.state_dict())
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 900])
    context = torch.randn(2, 1, 5) if "context_dim" in params else None
    for model in (plain, recomputed):
        model(x, t, context).square().mean().backward()
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-7)


@pytest.mark.parametrize("params", [SMALL, WITH_CONTEXT], ids=["attention_block", "spatial_transformer"])
def test_records_do_not_see_each_other(params):
    """Clipping one record's gradient bounds its influence only if no layer mixes the rows of a batch."""
    model = randomised(UNetModel(**params)).double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    t = torch.tensor([1, 500, 999])
    context = torch.randn(3, 2, 5, dtype=torch.float64) if "context_dim" in params else None
    together = model(x, t, context)
    alone = [model(x[i : i + 1], t[i : i + 1], None if context is None else context[i : i + 1]) for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-10)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("params", [SMALL, WITH_CONTEXT], ids=["attention_block", "spatial_transformer"])
def test_vectorised_per_record_gradients_equal_the_loop(params):
    model = randomised(UNetModel(**params)).double()
    names = [name for name, _ in model.named_parameters() if "proj" in name or "qkv" in name or "to_" in name]
    trained = {name: model.get_parameter(name).detach() for name in names}
    x, t = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.tensor([1, 500])
    context = torch.randn(2, 1, 5, dtype=torch.float64)

    def loss(values, x, t, context):
        inputs = (x[None], t[None], context[None] if "context_dim" in params else None)
        return torch.func.functional_call(model, values, inputs).square().sum()

    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))(trained, x, t, context)
    for i in range(2):
        single = torch.func.grad(loss)(trained, x[i], t[i], context[i])
        for name in names:
            assert torch.allclose(rows[name][i], single[name], atol=1e-9), name


def test_every_parameter_sits_in_a_plain_layer_and_gets_a_gradient():
    """Per-record hooks know these layers; a parameter outside them or used behind their back would be missed."""
    model = randomised(UNetModel(**WITH_CONTEXT, num_classes=3))
    known = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Embedding)
    owners = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    assert all(type(module) in known for module in owners)
    visited = set()
    for module in owners:
        module.register_forward_hook(lambda module, *_: visited.add(module))
    model(torch.randn(1, 3, 8, 8), torch.tensor([3]), torch.randn(1, 2, 5), torch.tensor([1])).sum().backward()
    assert visited == set(owners)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_half_precision_runs_on_cpu():
    model = randomised(UNetModel(**WITH_CONTEXT)).bfloat16()
    x = torch.randn(1, 3, 8, 8)
    got = model(x.bfloat16(), torch.tensor([3]), torch.randn(1, 2, 5).bfloat16())
    assert got.dtype == torch.bfloat16 and torch.isfinite(got).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": 3}, "dims is 3"),
        ({"num_heads": -1}, "num_heads or num_head_channels"),
        ({"num_heads": 3}, "does not divide"),
        ({"model_channels": 20}, "multiple of 32"),
        ({"use_spatial_transformer": True}, "needs context_dim"),
        ({"context_dim": 5}, "use_spatial_transformer is not"),
        ({"use_spatial_transformer": True, "context_dim": [5]}, "one whole number"),
        ({"use_spatial_transformer": True, "context_dim": 5, "num_heads": -1, "num_head_channels": 99}, "lower"),
        ({"num_res_blocks": 0}, "num_res_blocks"),
        ({"channel_mult": []}, "channel_mult"),
    ],
)
def test_user_mistakes(change, message):
    with pytest.raises(UserError, match=message), torch.device("meta"):
        UNetModel(**{**SMALL, **change})
