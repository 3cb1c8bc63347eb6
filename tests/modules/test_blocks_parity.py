"""Single blocks: parity with the public code, dense inputs for convolutions, behaviour at the edges."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.errors import UserError
from ldm.modules.attention import BasicTransformerBlock, CrossAttention, LinearAttention, SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import AttentionBlock, Downsample, ResBlock, Upsample
from tests import parity

OURS = [entry for entry in parity.entries("blocks") if not entry["id"].startswith("block.ae_")]


@pytest.mark.parametrize("entry", OURS, ids=parity.name)
def test_block_output(entry):
    module = parity.build(entry)
    inputs, outputs = parity.io(entry)
    first = "q" if "q" in inputs else "x"
    rest = {name: value for name, value in inputs.items() if name not in ("q", "x", "x_small")}
    with torch.no_grad():
        for name in outputs:
            x = inputs["x_small"] if name == "y_small" else inputs[first]
            parity.check(name, module(x, **rest), entry)


AUTOENCODER_BLOCKS = parity.entries("blocks", "block.ae_")


@pytest.mark.parametrize("entry", AUTOENCODER_BLOCKS, ids=parity.name)
def test_autoencoder_block_output(entry):
    module = parity.build(entry)
    inputs, outputs = parity.io(entry)
    extra = (None,) if entry["id"] == "block.ae_resnet_block" else ()
    with torch.no_grad():
        for name in outputs:
            parity.check(name, module(inputs["x_small" if name == "y_small" else "x"], *extra), entry)


def test_a_fully_hidden_context_is_averaged_not_nan():
    attention = CrossAttention(8, 5, heads=2, dim_head=4)
    context = torch.randn(1, 3, 5)
    hidden = attention(torch.randn(1, 6, 8), context, mask=torch.zeros(1, 3, dtype=torch.bool))
    assert torch.allclose(hidden, attention(torch.zeros(1, 6, 8), context), atol=1e-6)


def test_mask_hides_what_it_says():
    attention = CrossAttention(8, 5, heads=2, dim_head=4)
    x, context = torch.randn(2, 6, 8), torch.randn(2, 3, 5)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    got = attention(x, context, mask=mask)
    assert torch.allclose(got[:1], attention(x[:1], context[:1, :2]), atol=1e-6)
    assert torch.allclose(got[1:], attention(x[1:], context[1:]), atol=1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "rearranged", "channels_last"])
@pytest.mark.parametrize("kind", ["spatial_transformer", "attention_block"])
def test_convolutions_after_a_rearrangement_get_dense_inputs(kind, layout):
    """Per-sample gradient code unfolds activations and assumes densely packed (B, C, ...) memory."""
    dense = torch.randn(2, 32, 4, 4)
    x = {
        "contiguous": dense,
        "rearranged": dense.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).unflatten(2, (4, 4)),
        "channels_last": dense.contiguous(memory_format=torch.channels_last),
    }[layout]
    module = SpatialTransformer(32, 2, 16) if kind == "spatial_transformer" else AttentionBlock(32, num_heads=2)
    nn.init.normal_(module.proj_out.weight)
    seen = []
    for layer in module.modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    assert torch.allclose(module(x), module(dense), atol=1e-5)
    assert len(seen) == 4 and all(seen)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (lambda flag: BasicTransformerBlock(16, 2, 8, context_dim=5, checkpoint=flag), [(2, 4, 16), (2, 3, 5)]),
        (lambda flag: AttentionBlock(32, num_heads=2, use_checkpoint=flag), [(2, 32, 4, 4)]),
        (lambda flag: ResBlock(32, 8, 0.0, out_channels=64, use_checkpoint=flag), [(2, 32, 4, 4), (2, 8)]),
    ],
    ids=["transformer", "attention", "residual"],
)
def test_recomputation_gives_the_same_gradients_and_is_off_by_default(make, arguments, monkeypatch):
    calls = []
    original = torch.utils.checkpoint.checkpoint

    def counted(*args, **kwargs):
        calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    plain, recomputed = make(False), make(True)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    recomputed.load_state_dict(plain.state_dict())
    inputs = [torch.randn(shape) for shape in arguments]
    gradients = []
    for module in (plain, recomputed):
        module(*inputs).square().sum().backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    assert calls == [{"use_reentrant": False}]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b)


def test_frozen_layers_can_be_recomputed():
    """The lineage's checkpoint function could not differentiate with frozen tensors inside."""
    block = AttentionBlock(32, num_heads=2, use_checkpoint=True)
    block.qkv.requires_grad_(False)
    nn.init.normal_(block.proj_out.weight)
    block(torch.randn(1, 32, 4, 4)).sum().backward()
    assert block.qkv.weight.grad is None and block.norm.weight.grad is not None


def test_residual_branches_start_at_zero():
    x = torch.randn(2, 32, 4, 4)
    assert torch.equal(AttentionBlock(32)(x), x)
    assert torch.equal(SpatialTransformer(32, 2, 16)(x), x)
    assert torch.equal(ResBlock(32, 8, 0.0)(x, torch.randn(2, 8)), x)


def test_linear_attention_is_softmax_over_key_positions():
    module = LinearAttention(6, heads=2, dim_head=3)
    x = torch.randn(1, 6, 2, 2)
    qkv = module.to_qkv(x).reshape(3, 2, 3, 4)
    heads = [(v @ k.softmax(-1).T) @ q for q, k, v in zip(*qkv, strict=True)]
    want = module.to_out(torch.cat(heads).reshape(1, 6, 2, 2))
    assert torch.allclose(module(x), want, atol=1e-6)


def test_user_mistakes():
    with pytest.raises(UserError, match="does not divide the 32 channels"):
        AttentionBlock(32, num_heads=5)
    with pytest.raises(UserError, match="num_head_channels 5"):
        AttentionBlock(32, num_head_channels=5)
    with pytest.raises(UserError, match="multiple of 32"):
        ResBlock(20, 8, 0.0)
    with pytest.raises(UserError, match="up and down"):
        ResBlock(32, 8, 0.0, up=True, down=True)
    for module in (Upsample, Downsample):
        with pytest.raises(UserError, match="dims is 3"):
            module(32, True, dims=3)
    with pytest.raises(UserError, match="conv_resample"):
        Downsample(32, False, out_channels=64)
