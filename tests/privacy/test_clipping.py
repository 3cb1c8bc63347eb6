"""The clipper: engines against torch.func, copies, chunks, shared layers, checkpointing, broken records, mistakes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.privacy.clipping import ENGINES, STYLES, Clipping, PerRecordClipper
from tests.privacy.per_record import (
    MixedNet,
    clipped_sum,
    flat,
    loss_of,
    median_norm,
    mixed_rows,
    reference_gradients,
    reference_sum,
    relative_difference,
    trainable,
)

pytestmark = pytest.mark.usefixtures("uses")

TOLERANCE = 1e-5
FAST = ("bookkeeping", "instantiate")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("multiplicity", [1, 4, 8])
def test_engines_agree_with_torch_func(engine: str, multiplicity: int) -> None:
    net, rows = MixedNet(), mixed_rows(4 * multiplicity)
    gradients = reference_gradients(net, rows, multiplicity)
    bound = median_norm(gradients)
    got = clipped_sum(net, rows, Clipping(bound), engine, multiplicity)
    assert relative_difference(got, reference_sum(gradients, bound)) < TOLERANCE
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in got.values())


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("style", STYLES)
def test_engines_agree_in_every_style(engine: str, style: str) -> None:
    net, rows = MixedNet(), mixed_rows(6)
    clipping = Clipping(5.0, style)
    naive = clipped_sum(net, rows, clipping, "naive", 2)
    assert relative_difference(clipped_sum(net, rows, clipping, engine, 2), naive) < TOLERANCE


def test_styles_follow_their_formulas() -> None:
    squares = torch.tensor([[1.0, 16.0, 0.0]])
    assert torch.allclose(Clipping(2.0).factors(squares), torch.tensor([[1.0, 0.5, 1.0]]), rtol=1e-5)
    automatic = Clipping(2.0, "automatic", gamma=0.5).factors(squares)
    assert torch.allclose(automatic, torch.tensor([[2 / 1.5, 2 / 4.5, 2 / 0.5]]), rtol=1e-5)
    layers = Clipping(2.0, "per_layer")
    groups = layers.groups(["a.weight", "a.bias", "b.c.weight", "b.c.bias"])
    assert (groups.count, list(groups.index.values())) == (2, [0, 0, 1, 1])
    twice = layers.factors(squares.repeat(2, 1))
    assert torch.allclose(twice, torch.tensor([[1.0, 0.5 / 2**0.5, 1.0]]).repeat(2, 1), rtol=1e-5)
    for style in STYLES:
        clipping = Clipping(2.0, style)
        assert (clipping.sensitivity(), clipping.sensitivity("replace_one")) == (2.0, 4.0)
    with pytest.raises(UserError, match="add_or_remove_one"):
        Clipping(1.0).sensitivity("add_or_remove")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("bound", [1e-6, 0.3, 7.0])
def test_factor_times_norm_stays_below_the_bound_in_exact_arithmetic(style: str, bound: float) -> None:
    squares = torch.rand(1, 5000) * 10.0 ** torch.randint(-14, 14, (1, 5000))
    norms = squares.double().sqrt()
    # the norm that the sum sees may be larger by fp32 rounding
    assert float((Clipping(bound, style).factors(squares).double() * norms * (1 + 1e-6)).max()) <= bound


def test_vanishing_gradients_stay_within_the_bound_when_lifted() -> None:
    factors = Clipping(2.0, "automatic", gamma=0.0).factors(torch.zeros(1, 1))
    assert float(factors) * 1e-13 <= 2.0  # a norm whose square vanished in fp32
    assert float(factors) * 0.0 == 0.0


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unclipped_sum_is_the_ordinary_gradient(engine: str) -> None:
    net, rows = MixedNet(), mixed_rows(6)
    expected = torch.autograd.grad(loss_of(net)(rows).sum() / 3, list(trainable(net).values()))
    got = clipped_sum(net, rows, Clipping(1e6), engine, 3)
    assert relative_difference(got, dict(zip(trainable(net), expected, strict=True))) < TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
def test_chunks_add_up_and_take_starts_afresh(engine: str) -> None:
    net, rows, multiplicity = MixedNet(), mixed_rows(10), 2
    whole = clipped_sum(net, rows, Clipping(5.0), engine, multiplicity)
    clipper = PerRecordClipper(net, trainable(net), Clipping(5.0), engine)
    for start, stop in ((0, 2), (2, 8), (8, 8), (8, 10)):
        clipper.accumulate(loss_of(net), {key: value[start:stop] for key, value in rows.items()}, multiplicity)
    assert relative_difference(clipper.pop_sums(), whole) < TOLERANCE
    assert float(flat(clipper.pop_sums()).abs().max()) == 0.0


@pytest.mark.parametrize("engine", ENGINES)
def test_no_records_give_zeros_of_the_right_shape(engine: str) -> None:
    net = MixedNet()
    clipper = PerRecordClipper(net, trainable(net), Clipping(1.0), engine)
    clipper.accumulate(loss_of(net), mixed_rows(0), multiplicity=4)
    sums = clipper.pop_sums()
    assert {name: value.shape for name, value in sums.items()} == {n: p.shape for n, p in trainable(net).items()}
    assert float(flat(sums).abs().max()) == 0.0


@pytest.mark.parametrize("engine", ENGINES)
def test_only_the_chosen_parameters_get_a_sum(engine: str) -> None:
    net, rows = MixedNet(), mixed_rows(4)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in ("mix.weight", "gate.bias", "layer_norm.weight"))
    gradients = reference_gradients(net, rows)
    bound = median_norm(gradients)
    got = clipped_sum(net, rows, Clipping(bound), engine)
    assert sorted(got) == ["gate.bias", "layer_norm.weight", "mix.weight"]
    assert relative_difference(got, reference_sum(gradients, bound)) < TOLERANCE


class Reused(nn.Module):
    """One linear layer used twice on different lengths, another used twice of which one use is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(3, 3)
        self.half_used = nn.Conv1d(3, 3, 3, padding=1)
        self.half_used_norm = nn.GroupNorm(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.twice(x)) + self.twice(x.mean(1, keepdim=True))
        image = self.half_used_norm(self.half_used(hidden.transpose(1, 2)))
        self.half_used(image)
        with torch.no_grad():  # a preview, as in self-conditioning
            preview = self.twice(x)
        return self.half_used(image) + preview.transpose(1, 2)


class Tied(nn.Module):
    """An embedding whose table is also the output layer, and two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(torch.tanh(self.first(self.table(x)))))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("multiplicity", [1, 2])
def test_a_layer_used_twice_has_its_cross_terms(engine: str, multiplicity: int) -> None:
    net = Reused()
    rows = {"x": torch.randn(4, 6, 3), "target": torch.randn(4, 3, 6)}
    gradients = reference_gradients(net, rows, multiplicity)
    bound = median_norm(gradients)
    got = clipped_sum(net, rows, Clipping(bound), engine, multiplicity)
    assert relative_difference(got, reference_sum(gradients, bound)) < TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
def test_tied_parameters_are_one_parameter(engine: str) -> None:
    net = Tied()
    rows = {"x": torch.randint(0, 5, (6, 3)), "target": torch.randn(6, 3, 5)}
    gradients = reference_gradients(net, rows, 2)
    bound = median_norm(gradients)
    got = clipped_sum(net, rows, Clipping(bound), engine, 2)
    assert "second.weight" not in got
    assert relative_difference(got, reference_sum(gradients, bound)) < TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
def test_activation_checkpointing_changes_nothing(engine: str) -> None:
    plain, checkpointed, rows = MixedNet(), MixedNet(checkpoint=True), mixed_rows(6)
    checkpointed.load_state_dict(plain.state_dict())
    expected = clipped_sum(plain, rows, Clipping(5.0), engine, 2)
    assert relative_difference(clipped_sum(checkpointed, rows, Clipping(5.0), engine, 2), expected) < 1e-6


class Nested(nn.Module):
    """Checkpoint inside checkpoint, around a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        return _checkpoint(lambda h: self.norm(_checkpoint(self.layer, torch.tanh(self.layer(h)))), x)


def _checkpoint(function, *inputs: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=False)


@pytest.mark.parametrize("engine", FAST)
def test_nested_checkpoints_around_a_layer_used_twice(engine: str) -> None:
    net, rows = Nested(), {"x": torch.randn(4, 5, 3), "target": torch.randn(4, 5, 3)}
    naive = clipped_sum(net, rows, Clipping(1.0), "naive", 2)
    assert relative_difference(clipped_sum(net, rows, Clipping(1.0), engine, 2), naive) < TOLERANCE


@pytest.mark.parametrize("engine", FAST)
def test_a_change_in_place_of_a_layers_output_is_fine(engine: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3), nn.SiLU(inplace=True))
    rows = {"x": torch.randn(4, 2, 3), "target": torch.randn(4, 2, 3)}
    naive = clipped_sum(net, rows, Clipping(1.0), "naive")
    assert relative_difference(clipped_sum(net, rows, Clipping(1.0), engine), naive) < TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("style", STYLES)
def test_a_broken_record_contributes_nothing_and_is_counted(engine: str, poison: float, style: str) -> None:
    net, rows = MixedNet(), mixed_rows(8)
    whole = {key: value[[0, 1, 4, 5, 6, 7]] for key, value in rows.items()}
    expected = clipped_sum(net, whole, Clipping(5.0, style), engine, 2)
    rows["x"][3, 0, 0, 0] = poison
    clipper = PerRecordClipper(net, trainable(net), Clipping(5.0, style), engine)
    clipper.accumulate(lambda batch: loss_of(net)(batch) * (1 if poison != 1e30 else 1e30), rows, 2)
    sums = clipper.pop_sums()
    assert bool(flat(sums).isfinite().all())
    if poison == 1e30:
        assert clipper.skipped >= 1
    else:
        assert clipper.skipped == 1
        assert relative_difference(sums, expected) < TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
def test_only_broken_records_give_zeros(engine: str) -> None:
    net, rows = MixedNet(), mixed_rows(2)
    rows["x"].fill_(float("nan"))
    clipper = PerRecordClipper(net, trainable(net), Clipping(5.0), engine)
    clipper.accumulate(loss_of(net), rows)
    assert clipper.skipped == 2
    assert float(flat(clipper.pop_sums()).abs().max()) == 0.0


@pytest.mark.parametrize("engine", ENGINES)
def test_the_module_is_left_as_it_was(engine: str) -> None:
    net, rows = MixedNet(), mixed_rows(4)
    net.stem.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    clipped_sum(net, rows, Clipping(5.0), engine)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(layer._forward_hooks or layer._backward_hooks or layer._forward_pre_hooks for layer in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_hooks_are_gone_after_a_failing_loss() -> None:
    net, rows = MixedNet(), mixed_rows(4)
    clipper = PerRecordClipper(net, trainable(net), Clipping(5.0))

    def broken(batch: dict[str, Tensor]) -> Tensor:
        loss_of(net)(batch)
        raise RuntimeError("from the loss")

    with pytest.raises(RuntimeError, match="from the loss"):
        clipper.accumulate(broken, rows)
    assert not any(layer._forward_hooks for layer in net.modules())


def test_an_ambient_autocast_does_not_reach_norms_and_sums() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    rows = {"x": torch.randn(6, 5, 8), "target": torch.randn(6, 5, 4)}

    def full_precision(batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return loss_of(net)(batch)

    expected = clipped_sum(net, rows, Clipping(2.0))
    clipper = PerRecordClipper(net, trainable(net), Clipping(2.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        clipper.accumulate(full_precision, rows)
    assert torch.equal(flat(clipper.pop_sums()), flat(expected))


def test_reduced_precision_products_are_kept_out_of_norms_and_sums() -> None:
    # A layer on its own, whose output gradient does not depend on its forward pass.
    net, rows = nn.Linear(256, 256), {"x": torch.randn(64, 4, 256), "target": torch.randn(64, 4, 256)}

    def linear_loss(batch: dict[str, Tensor]) -> Tensor:
        return (net(batch["x"]) * batch["target"]).sum((1, 2))

    def total() -> Tensor:
        clipper = PerRecordClipper(net, trainable(net), Clipping(1.0))
        clipper.accumulate(linear_loss, rows)
        return flat(clipper.pop_sums())

    expected = total()
    torch.set_float32_matmul_precision("medium")  # bf16 on CPUs that have it
    try:
        assert torch.equal(total(), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("engine", FAST)
def test_low_precision_parameters_and_losses_still_give_fp32_sums(engine: str) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.GroupNorm(2, 8), nn.Linear(8, 4)).to(torch.bfloat16)
    rows = {"x": torch.randn(6, 8).to(torch.bfloat16), "target": torch.randn(6, 4)}
    got = clipped_sum(net, rows, Clipping(2.0), engine)
    naive = clipped_sum(net, rows, Clipping(2.0), "naive")
    assert all(value.dtype == torch.float32 for value in got.values())
    assert relative_difference(got, naive) < 2e-2


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.scale


@pytest.mark.parametrize("engine", FAST)
def test_a_parameter_that_no_rule_covers_is_named_at_construction(engine: str) -> None:
    net = nn.Sequential(Bare())
    with pytest.raises(UserError, match=r"'0\.scale' belongs to a Bare"):
        PerRecordClipper(net, trainable(net), Clipping(1.0), engine)
    rows = {"x": torch.randn(3, 2), "target": torch.randn(3, 2)}
    gradients = reference_gradients(net, rows)
    naive = clipped_sum(net, rows, Clipping(1.0), "naive")  # the slow twin needs no rule
    assert relative_difference(naive, reference_sum(gradients, 1.0)) < TOLERANCE


class DeadEnd(nn.Module):
    """``unused`` never runs, ``bypassed`` has its weight used outside its forward."""

    def __init__(self, dead: str) -> None:
        super().__init__()
        self.alive = nn.Linear(2, 2)
        self.dead = dead
        if dead == "unused":
            self.unused = nn.Linear(2, 2)
        if dead == "bypassed":
            self.bypassed = nn.Linear(2, 2, bias=False)
        if dead == "detached":
            self.detached = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.dead == "bypassed":
            x = F.linear(x, self.bypassed.weight)
        if self.dead == "detached":
            x = x + self.detached(x).detach()
        return self.alive(x)


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("dead", ["unused", "bypassed", "detached"])
def test_a_parameter_without_a_gradient_path_is_named_in_the_first_chunk(engine: str, dead: str) -> None:
    net = DeadEnd(dead)
    clipper = PerRecordClipper(net, trainable(net), Clipping(1.0), engine)
    rows = {"x": torch.randn(3, 2), "target": torch.randn(3, 2)}
    clipper.accumulate(loss_of(net), {key: value[:0] for key, value in rows.items()})  # an empty chunk tells nothing
    with pytest.raises(UserError, match=f"{dead}.weight"):
        clipper.accumulate(loss_of(net), rows)


class Sideways(nn.Module):
    """Uses its weight inside the layer's forward and outside of it; drops out at random."""

    def __init__(self, outside: float) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.dropout = nn.Dropout(0.5)
        self.outside = outside

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.dropout(x)) + self.outside * F.linear(x, self.layer.weight)


@pytest.mark.parametrize("engine", ENGINES)
def test_verification_compares_with_the_ordinary_gradient(engine: str) -> None:
    rows = {"x": torch.randn(1, 3), "target": torch.randn(1, 3)}
    for outside in (0.0, 0.5):
        net = Sideways(outside)
        clipper = PerRecordClipper(net, trainable(net), Clipping(1.0), engine)
        if outside and engine != "naive":
            with pytest.raises(UserError, match=r"layer\.weight.*outside"):
                clipper.verify(loss_of(net), rows)
        else:
            clipper.verify(loss_of(net), rows)
        assert float(flat(clipper.pop_sums()).abs().max()) == 0.0


def test_verification_passes_on_every_kind_of_layer_and_in_bf16() -> None:
    net = MixedNet()
    clipper = PerRecordClipper(net, trainable(net), Clipping(1.0))
    clipper.verify(loss_of(net), mixed_rows(6), 2, tolerance=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        clipper.verify(loss_of(net), mixed_rows(6), 2)


def test_parameters_that_only_zeros_reach_are_listed() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    nn.init.zeros_(net[1].weight)
    rows = {"x": torch.randn(3, 2), "target": torch.randn(3, 2)}
    clipper = PerRecordClipper(net, trainable(net), Clipping(1.0))
    assert clipper.untouched() == ["0.weight", "0.bias", "1.weight", "1.bias"]
    clipper.accumulate(loss_of(net), rows)
    assert clipper.untouched() == ["0.weight", "0.bias"]


def test_replaced_and_frozen_parameters_are_noticed() -> None:
    net, rows = MixedNet(), mixed_rows(2)
    clipper = PerRecordClipper(net, trainable(net), Clipping(1.0))
    net.gate.bias.requires_grad_(False)
    with pytest.raises(UserError, match=r"gate\.bias.*frozen"):
        clipper.accumulate(loss_of(net), rows)
    net.gate.bias.requires_grad_(True)
    net.gate.weight = nn.Parameter(net.gate.weight.detach().clone())
    with pytest.raises(UserError, match=r"gate\.weight.*replaced"):
        clipper.accumulate(loss_of(net), rows)
    net = MixedNet()
    clipper = PerRecordClipper(net, trainable(net), Clipping(1.0))
    net.gate = nn.Linear(6, 5)
    with pytest.raises(UserError, match=r"gate\.weight.*replaced"):
        clipper.accumulate(loss_of(net), rows)


def test_batch_norm_in_training_mode_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    net[1].requires_grad_(False)
    rows = {"x": torch.randn(4, 3), "target": torch.randn(4, 3)}
    with pytest.raises(UserError, match="mixes records"):
        clipped_sum(net, rows, Clipping(1.0))
    net.eval()
    assert clipped_sum(net, rows, Clipping(1.0))["0.weight"].shape == (3, 3)


class SharedPositions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.positions(torch.arange(4)[None])


def test_a_layer_that_does_not_see_rows_first_is_named() -> None:
    net = SharedPositions()
    rows = {"x": torch.randn(3, 4, 3), "target": torch.randn(3, 4, 3)}
    with pytest.raises(UserError, match=r"'positions'.*\(1, 4\).*3 rows"):
        clipped_sum(net, rows, Clipping(1.0))


def test_user_mistakes_are_answered_in_one_line() -> None:
    net, rows = MixedNet(), mixed_rows(4)
    every = trainable(net)

    def fails(match: str, **changes: object) -> None:
        arguments = {"parameters": every, "clipping": Clipping(1.0), "engine": "bookkeeping", **changes}
        with pytest.raises(UserError, match=match) as caught:
            PerRecordClipper(net, **arguments)
        assert "\n" not in str(caught.value)

    fails("did you mean 'naive'", engine="nave")
    fails("no private parameters", parameters={})
    fails(r"'gate\.wieght'.*did you mean 'gate\.weight'", parameters={"gate.wieght": net.gate.weight})
    fails(r"'stem\.weight' is trainable but not private", parameters={"gate.weight": net.gate.weight})
    for bound in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="max_grad_norm"):
            Clipping(bound)
    with pytest.raises(UserError, match="did you mean 'flat'"):
        Clipping(1.0, "flatt")
    with pytest.raises(UserError, match="gamma"):
        Clipping(1.0, "automatic", gamma=-1.0)

    clipper = PerRecordClipper(net, every, Clipping(1.0))
    with pytest.raises(UserError, match="multiplicity is 0"):
        clipper.accumulate(loss_of(net), rows, 0)
    with pytest.raises(UserError, match="4 rows, which 3 noise draws"):
        clipper.accumulate(loss_of(net), rows, 3)
    with pytest.raises(UserError, match="'token' has 2 rows but 'x' has 4"):
        clipper.accumulate(loss_of(net), {**rows, "token": rows["token"][:2]})
    with pytest.raises(UserError, match=r"shape \(\) for 4 rows"):
        clipper.accumulate(lambda batch: loss_of(net)(batch).mean(), rows)
    with pytest.raises(UserError, match="does not depend"):
        clipper.accumulate(lambda batch: batch["x"].flatten(1).sum(1), rows)
    net.requires_grad_(False)
    fails("is frozen")


# ---------------------------------------------------------------------- records without weight, checks put off


@pytest.mark.parametrize("multiplicity", [1, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_records_without_weight_change_nothing(engine: str, multiplicity: int) -> None:
    net, rows = MixedNet(), mixed_rows(5 * multiplicity)
    own = {key: value[: 3 * multiplicity] for key, value in rows.items()}
    expected = clipped_sum(net, own, Clipping(0.5), engine, multiplicity)
    clipper = PerRecordClipper(net, trainable(net), Clipping(0.5), engine)
    clipper.accumulate(loss_of(net), rows, multiplicity, weighted=3)
    assert relative_difference(clipper.pop_sums(), expected) < 1e-6
    clipper.accumulate(loss_of(net), rows, multiplicity, weighted=0)
    assert not flat(clipper.pop_sums()).any()


@pytest.mark.parametrize("engine", ENGINES)
def test_broken_records_without_weight_are_neither_summed_nor_counted(engine: str) -> None:
    net, rows = MixedNet(), mixed_rows(5)
    expected = clipped_sum(net, {key: value[1:3] for key, value in rows.items()}, Clipping(0.5), engine)
    rows["target"][0], rows["target"][3:] = torch.nan, torch.inf
    clipper = PerRecordClipper(net, trainable(net), Clipping(0.5), engine)
    clipper.accumulate(loss_of(net), rows, weighted=3)
    assert relative_difference(clipper.pop_sums(), expected) < 1e-6 and clipper.skipped == 1


@pytest.mark.parametrize("broken", [None, 1])
@pytest.mark.parametrize("engine", ["bookkeeping", "instantiate"])
def test_checks_that_are_put_off_to_the_end_of_the_step_change_nothing(engine: str, broken: int | None) -> None:
    """As on a GPU, where the host would wait for every answer."""
    net, rows = MixedNet(), mixed_rows(6)
    if broken is not None:
        rows["target"][broken] = torch.nan
    sums, skipped, calls = [], [], 0

    def loss(batch: dict[str, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return loss_of(net)(batch)

    for later in ((), ("cpu",)):
        clipper = PerRecordClipper(net, trainable(net), Clipping(0.5), engine)
        clipper._check_later = later
        calls = 0
        for start in (0, 3):
            clipper.accumulate(loss, {key: value[start : start + 3] for key, value in rows.items()})
        sums.append(clipper.pop_sums())
        skipped.append(clipper.skipped)
        assert calls == (4 if later and broken is not None else 2)
        assert not flat(clipper.pop_sums()).any()
    assert torch.equal(flat(sums[0]), flat(sums[1])) and bool(flat(sums[0]).isfinite().all())
    assert skipped == [int(broken is not None)] * 2
