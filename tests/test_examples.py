"""The scripts of ``examples/`` run and show what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from ldm.errors import UserError

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_plain_model_learns_within_its_epsilon() -> None:
    accuracy, epsilon = load("dp_sgd_mlp").main()
    assert accuracy > 0.7, "chance is 0.5"
    assert 7.9 < epsilon <= 8


def test_a_layer_of_ones_own_is_clipped_by_its_rule() -> None:
    example = load("own_layer_rule")
    assert 0.499 < example.main() <= 0.5
    example.ScaleRule.contribution = lambda self, *arguments: example.Materialized(
        [2 * part for part in right(self, *arguments).gradients]
    )
    with pytest.raises(UserError, match="'1.weight' do not add up"):
        example.main()


def right(rule: object, module: object, inputs: Tensor, grad: Tensor, records: int, wanted: object):
    return load("own_layer_rule").ScaleRule().contribution(module, inputs, grad, records, wanted)


def test_positions_are_summed() -> None:
    example = load("own_layer_rule")
    layer, inputs, grad = example.Scale(3), torch.randn(4, 5, 3), torch.randn(4, 5, 3)
    (found,) = example.ScaleRule().contribution(layer, inputs, grad, 2, ["weight"]).gradients
    assert torch.allclose(found, (inputs * grad).sum(1).unflatten(0, (2, 2)).sum(1), atol=1e-5)
