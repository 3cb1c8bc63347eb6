"""`FlatSums`: one tensor, a view for each parameter, and one operation for all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.privacy.clipping import Clipping, PerRecordClipper
from ldm.privacy.sums import FlatSums, whole_tensors

SHAPES = {"net.weight": (3, 5), "net.bias": (3,), "scale": (), "alpha": (2, 1, 4)}


def parameters() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}


def test_every_number_of_every_view_is_in_the_flat_tensor_once() -> None:
    sums = FlatSums(parameters())
    assert list(sums) == list(SHAPES) and {name: tuple(view.shape) for name, view in sums.items()} == SHAPES
    for number, view in enumerate(sums.values(), start=1):
        view.fill_(number)
    counts = torch.bincount(sums.flat.long(), minlength=5).tolist()
    assert counts[1:] == [view.numel() for view in sums.values()]
    starts = [sums[name].data_ptr() for name in sorted(SHAPES)]
    assert starts == sorted(starts) and all((start - sums.flat.data_ptr()) % 16 == 0 for start in starts)


def test_views_are_contiguous_float32_without_gradients_and_cannot_be_replaced() -> None:
    sums = FlatSums({"half": torch.zeros(4, 2, dtype=torch.bfloat16), **parameters()})
    for view in sums.values():
        assert view.dtype == torch.float32 and view.is_contiguous() and not view.requires_grad
    with pytest.raises(TypeError):
        sums["scale"] = torch.ones(())  # type: ignore[index]


def test_adding_reaches_the_named_views_only() -> None:
    sums = FlatSums(parameters())
    sums.add_({"net.bias": torch.ones(3), "scale": torch.tensor(2.0)})
    sums.add_({"net.bias": torch.ones(3)})
    assert sums["net.bias"].tolist() == [2, 2, 2] and float(sums["scale"]) == 2 and float(sums.flat.sum()) == 8
    assert whole_tensors(sums)[0] is sums.flat
    assert [len(one) for one in whole_tensors({"b": torch.zeros(2), "a": torch.zeros(1)})] == [1, 2]


def test_the_sums_of_a_step_are_not_those_of_the_next() -> None:
    net = nn.Linear(3, 2)
    clipper = PerRecordClipper(net, dict(net.named_parameters()), Clipping(1.0))
    for _ in range(2):
        clipper.accumulate(lambda rows: net(rows["x"]).sum(1), {"x": torch.ones(4, 3)})
    first = clipper.pop_sums()
    before = first.flat.clone()
    clipper.accumulate(lambda rows: net(rows["x"]).sum(1), {"x": torch.ones(1, 3)})
    assert torch.equal(first.flat, before) and float(before.norm()) == pytest.approx(8.0, rel=1e-4)
    assert float(clipper.pop_sums().flat.norm()) == pytest.approx(1.0, rel=1e-4)
    assert not clipper.pop_sums().flat.any()


def test_sums_that_start_with_values_hold_them_and_nothing_else() -> None:
    """Also where memory is not cleared before it is written: the gaps between the views are zero."""
    shapes = parameters()
    values = {name: torch.full(value.shape, 2.0) for name, value in shapes.items()}
    for _ in range(20):
        torch.full((len(FlatSums(shapes).flat),), float("nan"))  # what the allocator may hand out next
        sums = FlatSums(shapes, values)
        assert all(torch.equal(sums[name], values[name]) for name in shapes)
        assert float(sums.flat.sum()) == 2.0 * sum(value.numel() for value in shapes.values())
    some = dict(list(values.items())[1:])
    sums, (first, *_) = FlatSums(shapes, some), shapes
    assert float(sums[first].abs().sum()) == 0 and float(sums.flat.sum()) == sum(float(v.sum()) for v in some.values())
    with pytest.raises(KeyError):
        FlatSums(shapes, {**some, "unknown": torch.ones(1)})
