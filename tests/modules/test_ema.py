"""The moving average: numbers and names of the public code, and one definition of what is sampled after fine-tuning."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.errors import UserError
from ldm.modules.ema import LitEma
from tests import parity


def model_of(parameters: dict[str, torch.Tensor], trained: dict[str, bool]) -> nn.Module:
    """A module tree that holds these parameters under their dotted names."""
    root = nn.Module()
    for dotted, value in parameters.items():
        *path, leaf = dotted.split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, nn.Module())
            node = node.get_submodule(part)
        node.register_parameter(leaf, nn.Parameter(value.clone(), requires_grad=trained[dotted]))
    return root


@pytest.mark.parametrize("entry", parity.entries("ema"), ids=parity.name)
def test_five_updates(entry):
    inputs, _ = parity.io(entry)
    trained = {name: flag for name, (_, flag) in entry["toy_parameters"].items()}
    model = model_of({name: inputs[f"start.{name}"] for name in trained}, trained)
    ema = LitEma(model, **entry["params"])
    assert sorted(ema.state_dict()) == sorted(entry["buffers"])
    assert ema.decay.dtype == torch.float32 and ema.num_updates.dtype == torch.int32
    for step in range(5):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if trained[name]:
                    parameter += inputs[f"delta.{name}"][step]
        ema(model)
        for name, value in ema.state_dict().items():
            case = "decay" if name == "decay" else f"step{step + 1}.{name}"
            parity.check(case, value, entry)
    own = model.get_parameter("head.out.weight").clone()
    ema.store(model.parameters())
    ema.copy_to(model)
    parity.check("ema_head", model.get_parameter("head.out.weight"), entry)
    ema.restore(model.parameters())
    assert torch.equal(model.get_parameter("head.out.weight"), own)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def shift(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0


def test_swapped_restores_the_weights_even_after_an_error_and_when_nested(model):
    ema = LitEma(model)
    averaged = model[0].weight.detach().clone()
    shift(model)
    own = model[0].weight.detach().clone()
    with pytest.raises(RuntimeError), ema.swapped(model):
        assert torch.equal(model[0].weight, averaged)
        with ema.swapped(model):
            pass
        raise RuntimeError
    assert torch.equal(model[0].weight, own)


def test_reset_takes_the_current_weights_and_restarts_the_count(model):
    ema = LitEma(model)
    ema(model)
    shift(model)
    ema.reset(model)
    assert torch.equal(ema.get_buffer("0weight"), model[0].weight)
    assert ema.num_updates.item() == 0
    ema(model)
    ema.reset(model, restart_count=False)
    assert ema.num_updates.item() == 1
    constant = LitEma(model, use_num_upates=False)
    constant.reset(model)
    assert constant.num_updates.item() == -1


def test_frozen_shadows_follow_the_frozen_weights(model):
    """A checkpoint's average of a part that is then frozen must not be what gets sampled."""
    ema = LitEma(model)
    ema.get_buffer("0weight").add_(5.0)
    model[0].requires_grad_(False)
    ema(model)
    assert torch.equal(ema.get_buffer("0weight"), model[0].weight)
    assert "0weight" in ema.state_dict(), "keys do not depend on what is frozen later"


def test_frozen_weights_are_copied_again_only_when_they_have_changed(model, monkeypatch):
    ema = LitEma(model)
    model[0].requires_grad_(False)
    ema(model)
    version = ema.get_buffer("0weight")._version
    ema(model)
    assert ema.get_buffer("0weight")._version == version
    shift(model)
    ema(model)
    assert torch.equal(ema.get_buffer("0weight"), model[0].weight)
    ema.get_buffer("0bias").add_(1.0)
    ema(model)
    assert torch.equal(ema.get_buffer("0bias"), model[0].bias)


def test_a_count_that_is_loaded_counts(model):
    ema, twin = LitEma(model), LitEma(model)
    for _ in range(30):
        ema(model)
    twin(model)
    twin.load_state_dict(ema.state_dict())
    shift(model)
    ema(model)
    twin(model)
    assert twin.num_updates.item() == 31 and torch.equal(ema.get_buffer("0weight"), twin.get_buffer("0weight"))


def test_parameters_trained_only_later_are_an_error_until_reset(model):
    model[0].requires_grad_(False)
    ema = LitEma(model)
    model[0].requires_grad_(True)
    with pytest.raises(UserError, match="no EMA shadow"):
        ema(model)
    ema.reset(model)
    ema(model)
    assert "0weight" in ema.state_dict()


def test_shadows_do_not_require_gradients_nor_share_memory(model):
    ema = LitEma(model)
    assert not any(value.requires_grad for value in ema.state_dict().values())
    before = ema.get_buffer("0weight").clone()
    shift(model)
    assert torch.equal(ema.get_buffer("0weight"), before)


def test_user_mistakes(model):
    with pytest.raises(UserError, match=r"within \[0, 1\]"):
        LitEma(model, decay=1.5)
    ema = LitEma(model)
    with pytest.raises(UserError, match="the model lacks"):
        ema.copy_to(nn.Linear(3, 4))
    clash = model_of({"a.b1": torch.zeros(1), "a.b.1": torch.zeros(1)}, {"a.b1": True, "a.b.1": True})
    with pytest.raises(UserError, match="taken"):
        LitEma(clash)
