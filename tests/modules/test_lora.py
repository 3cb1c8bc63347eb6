"""Adapted layers: nothing at the start, exact when merged, alive wherever they are moved; ranks and targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.modules.lora import LoRAConfig, RankSchedule, adapt, adapters, find_targets, insert_adapters, merge_adapters

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (2, 7, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), (3, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 9, 1), (2, 6, 8)),
    "conv2d pointwise": (lambda: nn.Conv2d(6, 4, 1), (2, 6, 3, 3)),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1), (2, 6, 7, 7)),
    "conv2d, circular and wide": (
        lambda: nn.Conv2d(6, 4, (3, 2), padding=(2, 1), dilation=2, padding_mode="circular"),
        (2, 6, 7, 8),
    ),
}


def pair(name: str, moved: bool = False, **options: Any) -> tuple[nn.Module, Any, Tensor]:
    """A layer, the same with an adapter, and an input."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    base = make()
    layer = adapt(base, **{"rank": 3, **options})
    if moved:
        nn.init.normal_(layer.lora_B.weight)
    return base, layer, torch.randn(shape)


@pytest.mark.parametrize("name", LAYERS)
def test_an_adapter_starts_as_nothing_and_shares_the_weights(name: str) -> None:
    base, layer, x = pair(name)
    assert torch.equal(layer(x), base(x))
    assert layer.weight is base.weight and layer.bias is base.bias
    assert set(layer.state_dict()) == {*base.state_dict(), "lora_A.weight", "lora_B.weight"}
    assert layer.rank == 3 and isinstance(layer, type(base))


@pytest.mark.parametrize("scaling", [1.0, 0.25])
@pytest.mark.parametrize("name", LAYERS)
def test_a_merged_layer_computes_the_same(name: str, scaling: float) -> None:
    base, layer, x = pair(name, moved=True, scaling=scaling)
    merged = layer.merged()
    assert type(merged) is type(base) and not torch.equal(layer(x), base(x))
    torch.testing.assert_close(merged(x), layer(x), atol=1e-5, rtol=1e-5)
    expected = base.weight + scaling * torch.einsum(
        "or,r...->o...", layer.lora_B.weight.flatten(1), layer.lora_A.weight
    ).reshape(base.weight.shape)
    torch.testing.assert_close(merged.weight, expected.detach(), atol=1e-6, rtol=1e-6)
    assert merged.weight is not base.weight


def test_nothing_is_merged_by_switching_modes() -> None:
    _, layer, x = pair("linear", moved=True)
    weight, output = layer.weight.clone(), layer(x)
    for _ in range(100):
        layer.eval()
        layer.train()
    assert torch.equal(layer.weight, weight) and torch.equal(layer(x), output)


@pytest.mark.parametrize("name", LAYERS)
def test_an_adapter_learns_after_it_was_moved_to_another_type(name: str) -> None:
    _, layer, x = pair(name)
    layer.double().requires_grad_(False)
    trained = [layer.lora_A.weight.requires_grad_(True), layer.lora_B.weight.requires_grad_(True)]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    before = [value.detach().clone() for value in trained]
    for _ in range(2):  # in the first step A gets no gradient, for B is zero
        optimizer.zero_grad()
        layer(x.double()).square().mean().backward()
        optimizer.step()
    assert all(
        value.dtype == torch.float64 and not torch.equal(value, old) for value, old in zip(trained, before, strict=True)
    )
    assert layer.weight.grad is None


def test_start_values() -> None:
    torch.manual_seed(0)
    gaussian = adapt(nn.Linear(4000, 8), rank=16)
    assert float(gaussian.lora_A.weight.detach().std()) == pytest.approx(1 / 16, rel=0.02)
    assert abs(float(gaussian.lora_A.weight.detach().mean())) < 1e-3 and not gaussian.lora_B.weight.any()
    kaiming = adapt(nn.Linear(4000, 8), rank=16, init="kaiming")
    assert float(kaiming.lora_A.weight.detach().abs().max()) == pytest.approx(1 / 4000**0.5, rel=0.02)
    assert not kaiming.lora_B.weight.any()


def test_an_adapter_lives_where_its_layer_does() -> None:
    layer = adapt(nn.Conv1d(4, 4, 1, dtype=torch.bfloat16, device="meta").eval(), rank=2)
    assert layer.lora_A.weight.dtype == torch.bfloat16 and layer.lora_B.weight.is_meta
    assert not layer.training and not layer.lora_A.training


@pytest.mark.parametrize("layer", [nn.Embedding(3, 4), nn.GroupNorm(2, 4), adapt(nn.Linear(2, 2), 1)])
def test_other_layers_are_refused(layer: nn.Module) -> None:
    with pytest.raises(UserError, match="cannot have an adapter"):
        adapt(layer, 2)


def test_a_convolution_in_groups_is_refused() -> None:
    with pytest.raises(UserError, match="in 2 groups cannot have an adapter"):
        adapt(nn.Conv2d(4, 4, 1, groups=2), 2)


@pytest.mark.parametrize(
    ("options", "scales"),
    [
        ({}, {1: 1.0, 8: 1.0, 64: 1.0}),
        ({"alpha": 1.0}, {1: 1.0, 8: 1 / 8, 64: 1 / 64}),
        ({"alpha": 16}, {8: 2.0, 4: 4.0}),
        ({"alpha": 16, "scaling": "rslora"}, {4: 8.0, 16: 4.0}),
        ({"scaling": "rslora"}, {4: 2.0, 16: 4.0}),
    ],
)
def test_scaling(options: dict[str, Any], scales: dict[int, float]) -> None:
    assert {rank: LoRAConfig(("x",), **options).scale(rank) for rank in scales} == pytest.approx(scales)


def test_ranks_fall_along_the_network() -> None:
    assert RankSchedule().ranks(7) == [16, 14, 12, 10, 8, 6, 4]
    assert RankSchedule(schedule_type="cosine").ranks(7) == [16, 15, 13, 10, 7, 5, 4]
    assert RankSchedule(schedule_type="cosine").ranks(64)[:: 63 // 3] == [16, 13, 7, 4]
    assert RankSchedule(initial_rank=2, final_rank=1).ranks(1) == [2]
    for shape in ("linear", "cosine"):
        ranks = RankSchedule(schedule_type=shape).ranks(56)
        assert (ranks[0], ranks[-1]) == (16, 4) and ranks == sorted(ranks, reverse=True)


class Net(nn.Module):
    """Names like those of the lineage's networks."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv1d(4, 12, 1)
        self.proj_out = nn.Conv1d(4, 4, 1)
        self.attn = nn.ModuleDict({"to_q": nn.Linear(4, 4), "to_out": nn.Sequential(nn.Linear(4, 4), nn.Dropout())})
        self.last = nn.ModuleDict({"qkv": nn.Linear(4, 4), "xqkv": nn.Linear(4, 4)})


def test_targets_are_endings_of_dotted_names() -> None:
    assert find_targets(Net(), ["qkv"]) == ["qkv", "last.qkv"]
    assert find_targets(Net(), ["to_out.0", "qkv", "attn.to_q"]) == ["qkv", "attn.to_q", "attn.to_out.0", "last.qkv"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["kv"], "'kv' names no layer of the network; near it are qkv, "),
        (["to_out"], r"names attn.to_out \(Sequential\); .*near it are to_out.0"),
        (["to_out.Linear"], "near it are to_out.0"),
        ([], "no LoRA targets"),
    ],
)
def test_a_target_that_fits_nothing_is_named(targets: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_targets(Net(), targets)


def test_a_schedule_gives_every_layer_its_rank_and_its_scaling() -> None:
    net = Net()
    schedule = RankSchedule(initial_rank=3, final_rank=1)
    names = insert_adapters(net, LoRAConfig(("qkv", "proj_out"), alpha=6.0, schedule=schedule))
    assert names == ["qkv", "proj_out", "last.qkv"]
    assert {name: (layer.rank, layer.scaling) for name, layer in adapters(net)} == {
        "qkv": (3, 2.0),
        "proj_out": (2, 3.0),
        "last.qkv": (1, 6.0),
    }


def test_adapters_are_inserted_once_and_merged_away() -> None:
    net = Net()
    insert_adapters(net, LoRAConfig(("qkv",), rank=2))
    with pytest.raises(UserError, match="has an adapter already"):
        insert_adapters(net, LoRAConfig(("qkv",), rank=2))
    with torch.no_grad():
        net.qkv.lora_B.weight.normal_()
    x = torch.randn(2, 4, 5)
    expected = net.qkv(x)
    assert merge_adapters(net) == ["qkv", "last.qkv"]
    assert list(net.state_dict()) == list(Net().state_dict()) and type(net.qkv) is nn.Conv1d
    torch.testing.assert_close(net.qkv(x), expected, atol=1e-5, rtol=1e-5)
