"""Capture of inputs and output gradients: small and large uses, uses left out, gradients that are not computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.privacy.clipping import Clipping, PerRecordClipper
from ldm.privacy.engines import capture
from ldm.privacy.engines.capture import Capture, Use, find_layers
from ldm.privacy.engines.layers import DEFAULT_RULES
from ldm.privacy.engines.layers.linear import LinearRule
from tests.privacy.per_record import clipped_sum, loss_of, relative_difference, trainable

ROWS = 4


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def caught(
    net: nn.Module, inputs: Tensor, forward: Callable[[Tensor], Tensor] | None = None
) -> tuple[list[tuple[str, Tensor, Tensor]], Capture]:
    """What the layers of ``net`` hand over in one pass, in that order, and the capture."""
    received: list[tuple[str, Tensor, Tensor]] = []

    class Receiver:
        def enter(self, use: Use) -> None:
            received.append((use.layer.path, use.inputs, use.grad))

        def enter_small(self, uses: list[Use]) -> None:
            for use in uses:
                self.enter(use)

    layers = find_layers(net, trainable(net), DEFAULT_RULES)
    with Capture(layers, ROWS, Receiver(), inputs.device) as capturing:
        output = (forward or net)(inputs)
        capturing.backward(output.square().sum())
    return received, capturing


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 3), nn.Tanh(), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("limit", "order"),
    [(-1, ["4", "2", "0"]), (1 << 20, ["4", "2", "0"]), (50, ["2", "0", "4"]), (180, ["4", "2", "0"])],
)
def test_inputs_and_output_gradients_are_those_of_autograd(
    limit: int, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "_FEW_NUMBERS", {"cpu": limit})
    net, inputs = chain(), torch.randn(ROWS, 3)
    received, capturing = caught(net, inputs)
    assert [path for path, _, _ in received] == order  # large ones as backward passes them, then the small ones
    assert capturing.uses == {"0": 1, "2": 1, "4": 1}
    seen = inputs
    expected = {}
    for path, layer in net.named_children():
        output = layer(seen)
        expected[path] = (seen, output)
        seen = output
    gradients = torch.autograd.grad(seen.square().sum(), [expected[path][1] for path in order])
    for (path, layer_inputs, grad), gradient in zip(received, gradients, strict=True):
        torch.testing.assert_close(layer_inputs, expected[path][0])
        torch.testing.assert_close(grad, gradient)
        assert not (layer_inputs.requires_grad or grad.requires_grad)


@pytest.mark.usefixtures("uses")
def test_no_weight_gradient_is_computed_and_no_hook_is_left() -> None:
    net = chain()
    computed = []
    for name, parameter in net.named_parameters():
        parameter.register_hook(lambda _, name=name: computed.append(name))
    received, _ = caught(net, torch.randn(ROWS, 3))
    assert len(received) == 3
    assert computed == []
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(layer._forward_hooks for layer in net.modules())


@pytest.mark.usefixtures("uses")
def test_uses_that_do_not_reach_the_loss_are_counted_but_not_handed_over() -> None:
    net = chain()

    def forward(inputs: Tensor) -> Tensor:
        net[4](net[3](net[2](net[1](net[0](inputs)))))
        return net[0](inputs)

    received, capturing = caught(net, torch.randn(ROWS, 3), forward)
    assert [path for path, _, _ in received] == ["0"]
    assert capturing.uses == {"0": 2, "2": 1, "4": 1}


@pytest.mark.usefixtures("uses")
def test_recomputed_regions_count_once() -> None:
    net = chain()

    def forward(inputs: Tensor) -> Tensor:
        return net[4](torch.utils.checkpoint.checkpoint(net[:4], inputs, use_reentrant=False))

    received, capturing = caught(net, torch.randn(ROWS, 3), forward)
    assert [path for path, _, _ in received] == ["4", "2", "0"]
    assert capturing.uses == {"0": 1, "2": 1, "4": 1}


class PartOfAProduct(nn.Linear):
    """A layer that answers a part of what it computed: a view that does not show all of it."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([super().forward(input), torch.zeros(len(input), 1)], 1)[:, :-1]


@pytest.mark.usefixtures("uses")
def test_a_change_in_place_of_a_partial_view_is_fine() -> None:
    net = nn.Sequential(PartOfAProduct(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    rows = {"x": torch.randn(ROWS, 3), "target": torch.randn(ROWS, 3)}
    clipper = PerRecordClipper(
        net, trainable(net), Clipping(1.0), rules={**DEFAULT_RULES, PartOfAProduct: LinearRule()}
    )
    clipper.accumulate(loss_of(net), rows)
    assert relative_difference(clipper.pop_sums(), clipped_sum(net, rows, Clipping(1.0), "naive")) < 1e-5


@pytest.mark.usefixtures("uses")
@pytest.mark.parametrize("in_place", [False, True])
def test_a_reshaped_output_is_fine(in_place: bool) -> None:
    # Three and four axes: what the layer returns shows a two-axis product.
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=in_place), nn.Linear(4, 4), nn.SiLU(inplace=in_place))
    for shape in [(ROWS, 5, 3), (ROWS, 2, 5, 3)]:
        wide = torch.randn(*shape[:-2], 3, 5).transpose(-1, -2)  # not contiguous
        rows = {"x": wide, "target": torch.randn(*shape[:-1], 4)}
        expected = clipped_sum(net, rows, Clipping(1.0), "naive")
        assert relative_difference(clipped_sum(net, rows, Clipping(1.0)), expected) < 1e-5


def test_one_layer_may_have_a_small_and_a_large_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_FEW_NUMBERS", {"cpu": 60})
    layer = nn.Linear(3, 3)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(x)).mean(1, keepdim=True))

    net = Twice()
    rows = {"x": torch.randn(ROWS, 6, 3), "target": torch.randn(ROWS, 1, 3)}
    received, _ = caught(net, rows["x"])
    assert [tuple(inputs.shape) for _, inputs, _ in received] == [(ROWS, 6, 3), (ROWS, 1, 3)]
    expected = clipped_sum(net, rows, Clipping(0.1), "naive")
    assert relative_difference(clipped_sum(net, rows, Clipping(0.1)), expected) < 1e-5


class ChangesItsInput(nn.Module):
    """Uses a layer and then writes over what the layer saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = x.clone()
        output = self.layer(seen)
        seen.add_(1.0)
        return output


@pytest.mark.usefixtures("uses")
def test_an_input_that_was_changed_in_place_is_an_error() -> None:
    net = ChangesItsInput()
    rows = {"x": torch.randn(ROWS, 3), "target": torch.randn(ROWS, 3)}
    with pytest.raises((UserError, RuntimeError), match="in place|inplace"):
        clipped_sum(net, rows, Clipping(1.0))
