"""Adapters that somebody broke: what the tests of sensitivity and the check before the first step make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import UserError
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.modules.lora import adapters
from ldm.modules.lora.layers import Adapter
from ldm.privacy.clipping import Clipping, PerRecordClipper
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from tests import tiny

BOUND, RECORDS = 1e-4, 3  # the bound is below every gradient: a record uses it up
TARGETS = {"spatial": ["to_q", "to_k", "to_v", "to_out.0"], "attention": ["qkv", "proj_out"]}


def adapted(kind: str = "spatial", **params: Any) -> Any:
    """A tiny model in training mode whose adapters are where every run finds them: B at zero, all else away from it."""
    torch.manual_seed(0)
    options = {"use_model_lora": True, "model_lora_r": 3, "model_lora_target": TARGETS[kind], **params}
    model = tiny.build(tiny.ldm(kind, dp_config={"enabled": True}, **options))
    tiny.scatter(model)
    for _, layer in adapters(model):
        torch.nn.init.zeros_(layer.lora_B.weight)
    return model.train()


def training_of(model: Any) -> PrivateTraining:
    constants = {"sample_rate": 0.25, "steps": 4, "noise_multiplier": 1.0, "max_grad_norm": BOUND, "delta": 1e-3}
    return PrivateTraining(
        model, model.select_trainable(), PrivacyPlan(**constants, expected_batch_size=4), Ledger(), max_batch_size=2
    )


def largest_change(model: Any, style: str = "flat", multiplicity: int = 2) -> float:
    """How far, in units of C, leaving out one record moves the clipped sum at most."""
    selection = model.select_trainable()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        batch = model.expand_batch(tiny.batch(RECORDS), multiplicity, None)

    def total(keep: list[int]) -> Tensor:
        clipper = PerRecordClipper(model, selection.parameters, Clipping(BOUND, style))
        clipper.accumulate(model.per_example_losses, {key: value[keep] for key, value in batch.items()}, multiplicity)
        return torch.cat([value.double().flatten() for value in clipper.pop_sums().values()])

    rows = range(RECORDS * multiplicity)
    everyone = total(list(rows))
    return max(
        float((everyone - total([row for row in rows if row // multiplicity != record])).norm()) / BOUND
        for record in range(RECORDS)
    )


def centred(self: Adapter, x: Tensor) -> Tensor:
    """The low-rank path after the mean over the batch was taken off."""
    narrow = self.lora_A(x)
    return self.lora_B(narrow - 0.5 * narrow.mean(0, keepdim=True))


def merged_by_hand(self: Adapter, x: Tensor) -> Tensor:
    """The low-rank path, and A once more where no rule sees it."""
    narrow = self.lora_A(x)
    beside = F.linear(x, self.lora_A.weight) if x.shape[-1] == self.lora_A.weight.shape[1] else 0.0
    return self.lora_B(narrow + beside)


def without_its_layers(self: Adapter, x: Tensor) -> Tensor:
    """The low-rank path as two products of which the layers know nothing."""
    return F.linear(F.linear(x, self.lora_A.weight), self.lora_B.weight)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_adapters_at_their_start_pass_the_check_and_stay_there(kind: str) -> None:
    model = adapted(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training_of(model).verify(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        (centred, "depends on the other records of its batch"),
        (merged_by_hand, r"lora_A\.weight' do not add up"),
        (without_its_layers, "do not add up|does not depend"),
    ],
)
def test_a_broken_low_rank_path_ends_a_run_before_its_first_step(
    path: Callable[[Adapter, Tensor], Tensor], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Adapter, "low_rank", path)
    model = adapted()
    with pytest.raises(UserError, match=complaint):
        training_of(model).verify(model)


@pytest.mark.parametrize("style", ["flat", "automatic", "per_layer"])
def test_leaving_out_a_record_moves_the_sum_by_at_most_c(style: str) -> None:
    model = adapted()
    tiny.scatter(model, seed=2)
    assert 0.9 < largest_change(model, style) <= 1 + 1e-5


def test_the_measurement_catches_adapters_that_mix_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Adapter, "low_rank", centred)
    model = adapted()
    tiny.scatter(model, seed=2)
    assert largest_change(model) > 1.01


def test_adapters_that_share_a_factor_are_one_parameter_to_the_bound() -> None:
    """Tied factors (as of layers that share A) are clipped together: twice used is not twice C."""
    model = adapted()
    tiny.scatter(model, seed=2)
    layers = [layer for name, layer in adapters(model.model) if name.endswith("attn1.to_v")]
    wide = next(other for other in layers[1:] if other.lora_A.weight.shape == layers[0].lora_A.weight.shape)
    wide.lora_A.weight = layers[0].lora_A.weight
    assert 0.9 < largest_change(model) <= 1 + 1e-5
    training_of(model).verify(model)


def test_one_adapted_layer_in_two_places_is_one_parameter_to_the_bound() -> None:
    model = adapted()
    tiny.scatter(model, seed=2)
    attention = model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1
    attention.to_k = attention.to_v
    assert 0.9 < largest_change(model) <= 1 + 1e-5
    training_of(model).verify(model)
