"""Every row of the tables of edge cases in `clipping` and `noise`."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.privacy.clipping import ENGINES, STYLES, Clipping, PerRecordClipper
from ldm.privacy.noise import GaussianNoise

C = 0.5
Rows = Mapping[str, Tensor]


class Two(nn.Module):
    """Two layers; ``factor`` scales a row's loss, ``use`` says whether the second layer takes part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)

    def losses(self, rows: Rows) -> Tensor:
        hidden = self.first(rows["x"])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(rows["bf16"].any())):
            out = self.second(hidden)
        return rows["factor"] * (out.float().sum(1) * rows["use"] + hidden.sum(1))


def batch(count: int, **changes: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(count)
    rows = {"x": torch.randn(count, 3, generator=generator), "factor": torch.full((count,), 100.0)}
    rows |= {"use": torch.ones(count), "bf16": torch.zeros(count)}
    return rows | {key: torch.full((count,), value) for key, value in changes.items()}


def joined(*parts: Rows) -> dict[str, Tensor]:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def total(
    rows: Rows, style: str = "flat", engine: str = "bookkeeping", multiplicity: int = 1, gamma: float = 0.01
) -> Tensor:
    torch.manual_seed(0)
    net = Two()
    clipper = PerRecordClipper(net, dict(net.named_parameters()), Clipping(C, style, gamma), engine)
    clipper.accumulate(net.losses, rows, multiplicity)
    return torch.cat([value.flatten() for value in clipper.pop_sums().values()])


@pytest.mark.parametrize("engine", ENGINES)
def test_no_records_leave_zeros(engine: str) -> None:
    assert not total(batch(0), engine=engine).any()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_gradient_that_is_not_finite_contributes_zero(engine: str, value: float) -> None:
    alone, together = total(batch(2), engine=engine), total(joined(batch(2), batch(1, factor=value)), engine=engine)
    assert torch.equal(alone, together)


@pytest.mark.parametrize("gamma", [0.0, 0.01])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_of_zero_contributes_zero(engine: str, style: str, gamma: float) -> None:
    assert not total(batch(2, factor=0.0), style, engine, gamma=gamma).any()


def test_a_short_gradient_enters_as_it_is_or_lengthened() -> None:
    short = batch(1, factor=1e-3)
    plain = total(short)
    assert float(plain.norm()) < 0.02 * C
    assert float(plain.norm()) < float(total(short, "automatic", gamma=1e-4).norm()) < C


@pytest.mark.parametrize("engine", ENGINES)
def test_copies_are_one_gradient_of_the_mean_loss(engine: str) -> None:
    rows = batch(3, factor=1e-3)
    mean = total(rows, engine=engine) / 3
    assert torch.allclose(total(rows, engine=engine, multiplicity=3), mean, rtol=1e-5, atol=1e-9)
    assert float(total(batch(3), engine=engine, multiplicity=3).norm()) <= C * (1 + 1e-6)


def test_frozen_and_forgotten_parameters_are_refused() -> None:
    net = Two()
    named = dict(net.named_parameters())
    with pytest.raises(UserError, match="trainable but not private"):
        PerRecordClipper(net, {"first.weight": named["first.weight"]}, Clipping(C))
    clipper = PerRecordClipper(net, named, Clipping(C))
    named["first.bias"].requires_grad_(False)
    with pytest.raises(UserError, match="frozen after"):
        clipper.accumulate(net.losses, batch(1))
    with pytest.raises(UserError, match="is frozen"):
        PerRecordClipper(net, named, Clipping(C))


def test_a_parameter_out_of_reach_is_refused_first_and_zero_later() -> None:
    net = Two()
    named = dict(net.named_parameters())

    def first_layer_only(rows: Rows) -> Tensor:
        return net.first(rows["x"]).sum(1)

    with pytest.raises(UserError, match="does not reach private parameter"):
        PerRecordClipper(net, named, Clipping(C)).accumulate(first_layer_only, batch(2))
    clipper = PerRecordClipper(net, named, Clipping(C))
    clipper.accumulate(net.losses, batch(2))
    clipper.pop_sums()
    clipper.accumulate(first_layer_only, batch(2))
    sums = clipper.pop_sums()
    assert not sums["second.weight"].any() and sums["first.weight"].any()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("changes", [{"use": 0.0}, {"bf16": 1.0}])
def test_the_bound_is_the_same_without_effect_and_in_bf16(engine: str, changes: dict[str, float]) -> None:
    assert 0.99 * C < float(total(batch(1, **changes), engine=engine).norm()) <= C * (1 + 1e-6)


def test_batch_norm_in_training_mode_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False))
    clipper = PerRecordClipper(net, dict(net.named_parameters()), Clipping(C))
    with pytest.raises(UserError, match="mixes records"):
        clipper.accumulate(lambda rows: net(rows["x"]).sum(1), {"x": torch.randn(4, 3)})


def test_noise_reaches_every_coordinate_whatever_the_tensor() -> None:
    sums = {"flat": torch.zeros(5, 4), "turned": torch.zeros(4, 5).t(), "scalar": torch.zeros(())}
    GaussianNoise(1.0).add_(sums)
    numbers = torch.cat([value.flatten() for value in sums.values()])
    assert len(set(numbers.tolist())) == len(numbers) == 41


def test_noise_counts_a_step_without_tensors() -> None:
    noise = GaussianNoise(1.0)
    noise.add_({})
    assert noise.steps == 1


def test_noise_refuses_half_precision_before_it_starts() -> None:
    sums = {"a": torch.zeros(3), "b": torch.zeros(3, dtype=torch.bfloat16)}
    with pytest.raises(UserError, match="bfloat16, noise needs float32"):
        GaussianNoise(1.0).add_(sums)
    assert not sums["a"].any()


def test_noise_goes_by_name_and_says_when_it_is_known() -> None:
    found = []
    for names in (("a", "b"), ("b", "a")):
        sums = {name: torch.zeros(3) for name in names}
        noise = GaussianNoise(1.0, insecure_seed=1)
        noise.add_(sums)
        found.append({name: sums[name].tolist() for name in "ab"})
    assert found[0] == found[1]
    assert not noise.secure and GaussianNoise(1.0).secure
