"""Averaged weights find their way back to parameter names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.checkpoint import ema_to_parameters, split_ema
from ldm.errors import UserError


def network():
    return nn.ModuleDict({"block_1": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), "out": nn.Linear(2, 1)})


def averages(module, names):
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5)}
    shadows = {f"model_ema.{name.replace('.', '')}": p + 1 for name, p in module.named_parameters() if name in names}
    return counters | shadows


def test_names_come_back_with_their_dots():
    module = network()
    trained = ["block_1.0.weight", "out.bias"]
    state = {f"model.{key}": value for key, value in module.state_dict().items()} | averages(module, trained)
    found = ema_to_parameters(module, state)
    assert sorted(found) == trained
    for name, parameter in module.named_parameters():
        if name in found:
            assert torch.equal(found[name], parameter + 1)


def test_a_state_dict_without_averages_gives_none():
    assert ema_to_parameters(network(), network().state_dict()) == {}


def test_split_divides_and_strips():
    module = network()
    weights, ema = split_ema({"model.out.bias": torch.zeros(1), **averages(module, ["out.bias"])})
    assert list(weights) == ["model.out.bias"]
    assert sorted(ema) == ["decay", "num_updates", "outbias"]


def test_an_average_of_another_network_is_an_error():
    module = network()
    state = averages(module, ["out.bias"]) | {"model_ema.inputblocks00weight": torch.zeros(1)}
    line = "1 of 2 averaged weights belong to no parameter of the network, .* of another network: give the YAML file"
    with pytest.raises(UserError, match=line):
        ema_to_parameters(module, state)
    with pytest.raises(UserError, match=r"'out\.bias' is \(4,\) in the file, \(1,\) in the model"):
        ema_to_parameters(module, {"model_ema.outbias": torch.zeros(4)})


def test_parameters_that_share_a_dotless_name_are_an_error():
    module = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(1, 1)}), "ab": nn.Linear(1, 1)})
    with pytest.raises(UserError, match=r"'a\.b\.weight' and 'ab\.weight' have one EMA name"):
        ema_to_parameters(module, {})
