"""Each layer rule against torch.func, over random shapes and options, in every form its gradients can take."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.privacy.clipping import Clipping, PerRecordClipper
from ldm.privacy.engines.layers import DEFAULT_RULES, Contribution, LayerRule, Materialized, contributions, rule_for
from ldm.privacy.engines.layers.patches import Kernel, by_groups, by_unfolding
from tests.privacy.per_record import (
    Rows,
    clipped_sum,
    median_norm,
    reference_gradients,
    reference_sum,
    relative_difference,
    trainable,
)

pytestmark = pytest.mark.usefixtures("uses")

TOLERANCE = 1e-5
few = settings(max_examples=12, deadline=None, derandomize=True)
small = st.integers(1, 4)
copies_of = st.sampled_from([1, 2, 3])


def rows_for(module: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        output = module(inputs)
    return {"x": inputs, "target": torch.randn(output.shape, generator=torch.Generator().manual_seed(1))}


def contribution(module: nn.Module, rows: Rows, multiplicity: int) -> Contribution:
    """What the rule makes of one use of ``module``, fed with plain autograd's output gradient."""
    output = module(rows["x"])
    grad = (2 * (output - rows["target"]) / multiplicity).detach()
    rule = rule_for(module, DEFAULT_RULES)
    assert rule is not None
    return rule.contribution(module, rows["x"], grad, len(grad) // multiplicity, list(trainable(module)))


def close(actual: Tensor, expected: Tensor, scale: Tensor | None = None) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).norm()
    limit = TOLERANCE * float((expected if scale is None else scale).double().norm()) + 1e-12
    assert float(error) <= limit, (float(error), limit)


def check_layer(module: nn.Module, inputs: Tensor, multiplicity: int) -> None:
    """Norms, sums, selection and joining of every form, for each choice of parameters, agree with torch.func."""
    rows = rows_for(module, inputs)
    everything = reference_gradients(module, rows, multiplicity)
    for chosen in ([name] for name in everything) if len(everything) > 1 else ():
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in chosen)
        check_contribution(contribution(module, rows, multiplicity), [everything[name] for name in chosen])
    module.requires_grad_(True)
    check_contribution(contribution(module, rows, multiplicity), list(everything.values()))
    bound = median_norm(everything)
    got = clipped_sum(module, rows, Clipping(bound), multiplicity=multiplicity)
    assert relative_difference(got, reference_sum(everything, bound)) < TOLERANCE


def check_contribution(found: Contribution, gradients: list[Tensor]) -> None:
    records = len(gradients[0])
    assert found.records == records
    weights = torch.linspace(0.2, 1.0, records)
    keep = torch.arange(0, records, 2)
    squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)
    for form in (found, found.choose_form(), Materialized(found.per_record())):
        close(form.squared_norms(), squares)
        close(form.join(form).squared_norms(), 4 * squares)
        whole, some, twice = form.per_record(), form.select(keep).per_record(), form.join(form).per_record()
        sums = form.weighted_sums(weights)
        for i, gradient in enumerate(gradients):
            close(whole[i], gradient)
            close(some[i], gradient[keep])
            close(twice[i], 2 * gradient)
            # scaled by the summands: a sum may cancel
            close(sums[i], torch.einsum("b,b...->...", weights, gradient), gradient)
    assert found.select(keep[:0]).records == 0
    assert [total.shape for total in found.select(keep[:0]).weighted_sums(weights[:0])] == [
        gradient.shape[1:] for gradient in gradients
    ]


@few
@given(st.lists(small, max_size=2), small, small, small, copies_of, st.booleans())
def test_linear_with_any_number_of_position_axes(
    positions: list[int], fan_in: int, fan_out: int, records: int, multiplicity: int, bias: bool
) -> None:
    torch.manual_seed(0)
    check_layer(
        nn.Linear(fan_in, fan_out, bias=bias), torch.randn(records * multiplicity, *positions, fan_in), multiplicity
    )


@few
@given(
    st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 4)]),
    st.sampled_from([(1, 1), (3, 3), (2, 3), (1, 4)]),
    st.sampled_from([(1, 1), (2, 1), (3, 2)]),
    st.sampled_from([(0, 0), (1, 1), (2, 0), (3, 3)]),
    st.sampled_from([(1, 1), (2, 1)]),
    st.sampled_from(["zeros", "circular", "reflect", "replicate"]),
    st.sampled_from(["contiguous", "channels_last", "transposed", "strided"]),
    copies_of,
)
def test_conv2d_with_any_option_and_layout(
    channels_groups: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mode: str,
    layout: str,
    multiplicity: int,
) -> None:
    torch.manual_seed(0)
    channels, groups = channels_groups
    module = nn.Conv2d(
        channels, 2 * groups, kernel, stride, padding, dilation, groups, bias=stride[0] == 1, padding_mode=mode
    )
    inputs = torch.randn(3 * multiplicity, channels, 6, 5)
    if layout == "channels_last":
        inputs = inputs.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        inputs = torch.randn(3 * multiplicity, 30, channels).transpose(1, 2).unflatten(2, (6, 5))
    elif layout == "strided":
        inputs = torch.randn(3 * multiplicity, channels, 12, 10)[:, :, ::2, 1::2]
    check_layer(module, inputs, multiplicity)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_with_named_padding(kernel: int, padding: str, groups: int) -> None:
    torch.manual_seed(0)
    check_layer(nn.Conv2d(2, 4, kernel, padding=padding, groups=groups, dilation=2), torch.randn(4, 2, 7, 8), 1)
    check_layer(nn.Conv1d(2, 4, kernel, padding=padding, groups=groups), torch.randn(4, 2, 9), 2)


@pytest.mark.parametrize("multiplicity", [1, 2])
def test_both_ways_to_write_out_kernel_gradients_agree(multiplicity: int) -> None:
    torch.manual_seed(0)
    kernel = Kernel(torch.Size((4, 3, 3, 2)), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
    inputs = torch.randn(4, 6, 7, 6)
    grad_outputs = torch.randn(F.conv2d(inputs, torch.zeros(kernel.shape), None, (2, 1), (1, 0), (1, 2), 2).shape)
    close(
        by_unfolding(inputs, grad_outputs, multiplicity, kernel), by_groups(inputs, grad_outputs, multiplicity, kernel)
    )


@few
@given(small, small, st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2), copies_of)
def test_conv1d(
    fan_in: int, fan_out: int, kernel: int, stride: int, padding: int, dilation: int, multiplicity: int
) -> None:
    torch.manual_seed(0)
    module = nn.Conv1d(fan_in, fan_out, kernel, stride, padding, dilation)
    check_layer(module, torch.randn(3 * multiplicity, fan_in, 7), multiplicity)
    check_layer(module, torch.randn(3 * multiplicity, 7, fan_in).transpose(1, 2), multiplicity)


@few
@given(st.sampled_from([(4, 4), (4, 2), (6, 3), (3, 1)]), st.lists(st.integers(2, 4), max_size=3), copies_of)
def test_group_norm(sizes: tuple[int, int], positions: list[int], multiplicity: int) -> None:
    torch.manual_seed(0)
    channels, groups = sizes
    if channels == groups and not positions:
        positions = [2]  # one number a group has no variance
    module = _shaken(nn.GroupNorm(groups, channels))
    check_layer(module, torch.randn(3 * multiplicity, channels, *positions), multiplicity)
    if len(positions) == 2:
        check_layer(
            module,
            torch.randn(3 * multiplicity, channels, *positions).to(memory_format=torch.channels_last),
            multiplicity,
        )


@few
@given(st.lists(small, max_size=2), st.sampled_from([(4,), (3, 2)]), copies_of)
def test_layer_norm(positions: list[int], shape: tuple[int, ...], multiplicity: int) -> None:
    torch.manual_seed(0)
    check_layer(_shaken(nn.LayerNorm(shape)), torch.randn(2 * multiplicity, *positions, *shape), multiplicity)
    check_layer(
        _shaken(nn.LayerNorm(shape, bias=False)), torch.randn(2 * multiplicity, *positions, *shape), multiplicity
    )


@few
@given(st.lists(small, max_size=2), st.sampled_from([None, 0, -1]), st.integers(1, 3), copies_of)
def test_embedding_with_repeated_rows_and_padding(
    positions: list[int], padding_idx: int | None, width: int, multiplicity: int
) -> None:
    torch.manual_seed(0)
    module = nn.Embedding(3, width, padding_idx=padding_idx)
    # torch.func knows no padding_idx in its gradient, so the reference is the loop over records
    rows = rows_for(module, torch.randint(0, 3, (3 * multiplicity, *positions)))
    naive = clipped_sum(module, rows, Clipping(3.0), "naive", multiplicity)
    for engine in ("bookkeeping", "instantiate"):
        assert relative_difference(clipped_sum(module, rows, Clipping(3.0), engine, multiplicity), naive) < TOLERANCE
    if padding_idx is None:
        check_layer(module, rows["x"], multiplicity)


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_embedding_options_that_break_the_bound_are_refused(option: dict[str, object]) -> None:
    module = nn.Sequential(nn.Embedding(3, 2, **option))
    with pytest.raises(UserError, match=next(iter(option))):
        PerRecordClipper(module, trainable(module), Clipping(1.0))


def test_long_layers_are_written_out_and_wide_ones_are_not() -> None:
    long = contribution(nn.Linear(4, 4), rows_for(nn.Linear(4, 4), torch.randn(2, 64, 4)), 1)
    wide = contribution(nn.Linear(64, 64), rows_for(nn.Linear(64, 64), torch.randn(2, 4, 64)), 1)
    assert isinstance(long.choose_form(), Materialized)
    assert not isinstance(wide.choose_form(), Materialized)


def test_factored_norm_stays_an_upper_bound_when_positions_cancel() -> None:
    # Opposite output gradients on nearly equal inputs: the Gram form subtracts large numbers.
    torch.manual_seed(0)
    inputs = torch.randn(64, 1, 32).repeat(1, 16, 1) + 1e-4 * torch.randn(64, 16, 32)
    grad = torch.randn(64, 1, 32) * torch.tensor([1.0, -1.0]).repeat(8)[None, :, None]
    rule = rule_for(nn.Linear(32, 32), DEFAULT_RULES)
    assert rule is not None
    weight = rule.contribution(nn.Linear(32, 32), inputs, grad, 64, ["weight"])
    true = torch.einsum("btp,btd->bpd", grad.double(), inputs.double()).flatten(1).norm(dim=1)
    assert bool((weight.squared_norms().double().sqrt() >= true * (1 - 1e-6)).all())


class Scaled(nn.Linear):
    """Overrides forward, so the parent's rule would be wrong."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Renamed(nn.Linear):
    """Inherits forward, so the parent's rule is right."""


class OtherConv(nn.Conv2d):
    """Inherits forward but not what it calls."""

    def _conv_forward(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(inputs, 2 * weight, bias)


def test_a_rule_holds_only_for_subclasses_that_compute_the_same() -> None:
    assert rule_for(Renamed(2, 2), DEFAULT_RULES) is not None
    assert rule_for(Scaled(2, 2), DEFAULT_RULES) is None
    assert rule_for(OtherConv(2, 2, 1), DEFAULT_RULES) is None
    patched = nn.Linear(2, 2)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    assert rule_for(patched, DEFAULT_RULES) is None
    check_layer(Renamed(3, 2), torch.randn(4, 3), 2)


class DoubleRule(LayerRule):
    """Rule for ``Scaled``: the plain rule on a doubled output gradient."""

    def contribution(self, module, inputs, grad, records, wanted):  # type: ignore[no-untyped-def]
        return DEFAULT_RULES[nn.Linear].contribution(module, inputs, 2 * grad, records, wanted)


def test_a_rule_can_be_added_for_a_custom_layer() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(Scaled(3, 2))
    rows = rows_for(module, torch.randn(4, 3))
    clipper = PerRecordClipper(module, trainable(module), Clipping(1.0), rules={**DEFAULT_RULES, Scaled: DoubleRule()})
    clipper.accumulate(lambda batch: (module(batch["x"]) - batch["target"]).square().sum(1), rows)
    assert relative_difference(clipper.pop_sums(), clipped_sum(module, rows, Clipping(1.0), "naive")) < TOLERANCE


@pytest.mark.parametrize(
    ("layer", "given"),
    [
        (nn.Linear(3, 2), nn.GroupNorm),
        (nn.Linear(3, 2), nn.LayerNorm),
        (nn.Conv2d(3, 2, 3), nn.Linear),
        (nn.GroupNorm(1, 4), nn.Conv1d),
        (nn.Embedding(4, 3), nn.Linear),
        (nn.Linear(3, 2, bias=False), nn.Embedding),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
@pytest.mark.parametrize("engine", ["bookkeeping", "instantiate"])
def test_a_rule_that_is_given_another_kind_of_layer_is_refused(
    layer: nn.Module, given: type[nn.Module], engine: str
) -> None:
    rules = {**DEFAULT_RULES, type(layer): DEFAULT_RULES[given]}
    module = nn.Sequential(layer)
    with pytest.raises(
        UserError, match=rf"layer '0' \({type(layer).__name__}\) was given .*; correct the rules mapping"
    ):
        PerRecordClipper(module, trainable(module), Clipping(1.0), engine=engine, rules=rules)


def _shaken(module: nn.Module) -> nn.Module:
    """Norm layers start at scale 1 and shift 0, which would hide a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    return module


@pytest.mark.parametrize(("positions", "wide"), [(4, 6), (9, 6), (9, 64)])
def test_sums_over_positions_of_any_layout(positions: int, wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contributions, "_BLOCK_NUMBERS", {"cpu": 2 * wide * wide})  # two records at a time
    torch.manual_seed(0)
    left, right = torch.randn(5, wide, positions).transpose(1, 2), torch.randn(5, wide, positions).transpose(1, 2)
    expected = torch.einsum("btp,btd->pd", left.double(), right.double())
    for first, second in ((left, right), (left.contiguous(), right.contiguous())):
        close(contributions.position_product(first, second), expected)
