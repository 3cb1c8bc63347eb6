"""Loads the numeric fixtures: models with random weights, their inputs and the outputs of the public lineage code.

Use in a test::

    @pytest.mark.parametrize("entry", parity.entries("unet"), ids=parity.name)
    def test_unet(entry):
        model = parity.build(entry)          # constructed, weights loaded, eval mode
        inputs, _ = parity.io(entry)
        parity.check("y", model(inputs["x"], inputs["t"]), entry)
"""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "fixtures" / "parity"

Entry = dict[str, Any]


@cache
def _index() -> dict[str, Entry]:
    return {entry["id"]: entry for entry in json.loads((FOLDER / "index.json").read_text())["entries"]}


@cache
def _tensors(file: str) -> dict[str, Tensor]:
    return load_file(FOLDER / file)


def entries(group: str, prefix: str = "") -> list[Entry]:
    """All cases of a group (blocks, schedule, unet, autoencoder, ...) whose id starts with ``prefix``."""
    found = [entry for entry in _index().values() if entry["group"] == group and entry["id"].startswith(prefix)]
    if not found:
        raise LookupError(f"no fixtures in group {group!r} with an id starting with {prefix!r}")
    return found


def entry(case: str) -> Entry:
    """The case with this id."""
    return _index()[case]


def name(entry: Entry) -> str:
    """The id of a case, for ``pytest.mark.parametrize(..., ids=parity.name)``."""
    return entry["id"]


def find_class(entry: Entry) -> Any:
    """The class or function that the case names, from our code."""
    module, _, attribute = entry["class"].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def load_weights(entry: Entry) -> dict[str, Tensor]:
    """The merged state dict of a case, made of copies; schedule buffers of diffusion models are not in it."""
    merged: dict[str, Tensor] = {}
    for item in entry.get("weights", []):
        tensors = dict(_tensors(item["file"])) if "file" in item else {}
        tensors.update({key: torch.tensor(value) for key, value in item.get("values", {}).items()})
        select, drop, rename = item.get("select", ""), item.get("drop"), item.get("rename", {})
        for key, tensor in tensors.items():
            if not key.startswith(select) or (drop is not None and drop in key):
                continue
            short = key.removeprefix(select)
            merged[item.get("as", "") + rename.get(short, short)] = tensor.clone()
    return merged


def build(entry: Entry, strict: bool = True) -> nn.Module:
    """Construct the class of a case from its parameters, load its weights and set its mode (eval unless it says train).

    Nested configs arrive as OmegaConf objects, as from a YAML file. ``strict=False`` lets keys stay missing (schedule
    buffers of whole diffusion models); unexpected keys never pass.
    """
    params = {
        key: OmegaConf.create(value) if isinstance(value, dict) else value for key, value in entry["params"].items()
    }
    positional = params.pop("*args", [])
    module = find_class(entry)(*positional, **params)
    outcome = module.load_state_dict(load_weights(entry), strict=strict)
    if outcome.unexpected_keys:
        raise AssertionError(f"{entry['id']}: the model has no {outcome.unexpected_keys}")
    return module.train(entry.get("mode") == "train")


def io(entry: Entry) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``(inputs, expected outputs)`` by name, as copies; inputs given as plain values come back as they are."""
    tensors = _tensors(entry["io"]) if "io" in entry else {}

    def get(source: str | dict[str, Any]) -> Any:
        return source["value"] if isinstance(source, dict) else tensors[source].clone()

    inputs = {key: get(source) for key, source in entry.get("inputs", {}).items()}
    outputs = {key: tensors[spec["tensor"]].clone() for key, spec in entry.get("outputs", {}).items()}
    return inputs, outputs


def shape_only(entry: Entry) -> bool:
    """Whether a case lists parameter shapes instead of weights and outputs."""
    return "shapes" in entry


def check(name: str, got: Any, entry: Entry) -> None:
    """Compare one output with the fixture at the fixture's tolerance (0 means equal); the shape must agree too."""
    spec = entry["outputs"][name]
    want = _tensors(entry["io"])[spec["tensor"]]
    got = torch.as_tensor(np.asarray(got) if isinstance(got, (list, tuple)) else got).detach()
    torch.testing.assert_close(
        got.to(want.dtype),
        want,
        atol=spec["atol"],
        rtol=spec["rtol"],
        msg=lambda text: f"{entry['id']}, output {name}: {text}",
    )
