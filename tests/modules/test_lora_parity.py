"""Adapters compute what those of DP-LDM (loralib) and DP-LoRA (peft) compute, from files with their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.checkpoint.lora_names import style_of, to_plain, to_style
from ldm.models.diffusion.ddpm_base import DiffusionWrapper
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.lora import LoRAConfig, insert_adapters, merge_adapters
from tests import parity

LORALIB = parity.entries("lora", "loralib.")
PEFT = parity.entries("lora", "peft.")
ALIASES = {"to_out.Linear": None}  # named nothing in the published code


def check(model: nn.Module, entry: parity.Entry, *names: str) -> None:
    inputs, _ = parity.io(entry)
    arguments = [inputs["x"], inputs["t"]]
    context = inputs.get("context")
    with torch.no_grad():
        if isinstance(model, DiffusionWrapper):
            output = model(*arguments, c_crossattn=None if context is None else [context])
        else:
            output = model(*arguments, context)
    for name in names:
        parity.check(name, output, entry)


def keys_listed(entry: parity.Entry) -> list[str]:
    name = entry["id"].replace(".", "_")
    lines = (Path(parity.FOLDER) / "keys" / f"{name}.txt").read_text().splitlines()
    return [line.split("\t")[0] for line in lines]


@pytest.mark.parametrize("entry", LORALIB, ids=parity.name)
def test_loralib(entry: parity.Entry) -> None:
    model = UNetModel(**entry["params"])
    weights = parity.load_weights(entry)
    assert style_of(weights) == "loralib" and set(weights) == set(keys_listed(entry))
    model.load_state_dict(to_plain(weights), strict=True)
    check(model.train(), entry, "y_train", "y_eval")
    check(model.eval(), entry, "y_train", "y_eval")
    again = to_style({f"model.{key}": value for key, value in model.state_dict().items()}, "loralib")
    assert set(again) == {f"model.{key}" for key in weights}
    assert all(torch.equal(again[f"model.{key}"], value) for key, value in weights.items())
    merge_adapters(model)
    check(model, entry, "y_eval")


def wrapped(entry: parity.Entry) -> tuple[DiffusionWrapper, dict[str, Tensor]]:
    """The network with adapters, and its weights under the names of the file."""
    params: dict[str, Any] = entry["params"]
    target = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
    conditional = params["unet"].get("context_dim") is not None
    model = DiffusionWrapper({"target": target, "params": params["unet"]}, "crossattn" if conditional else None)
    lora = params["lora"]
    targets = tuple(name for name in lora["target_modules"] if ALIASES.get(name, name))
    insert_adapters(model, LoRAConfig(targets, lora["r"], lora["lora_alpha"]))
    bare, factors = entry["weights"]
    weights = parity.load_weights({"weights": [factors]})
    for key, value in parity.load_weights({"weights": [{**bare, "as": ""}]}).items():
        name = f"model.base_model.model.diffusion_model.{key}"
        layer, _, last = name.rpartition(".")
        weights[f"{layer}.base_layer.{last}" if f"{layer}.lora_A.default.weight" in weights else name] = value
    assert set(weights) == set(keys_listed(entry))
    return model, weights


@pytest.mark.parametrize("entry", PEFT, ids=parity.name)
def test_peft(entry: parity.Entry) -> None:
    model, weights = wrapped(entry)
    assert style_of(weights) == "peft"
    plain = to_plain(weights)
    model.load_state_dict({key.removeprefix("model."): value for key, value in plain.items()}, strict=True)
    check(model.eval(), entry, "y")
    assert set(to_style(plain, "peft")) == set(weights)
    assert {key for key in to_style(plain, "peft") if ".lora_" in key} == {
        f"model.{name}" for name in entry["trainable"]
    }
    merge_adapters(model)
    check(model, entry, "y")
