"""Low-rank adapters in state dicts: three naming styles, scaling, rank, and merging into the weights.

``plain`` (this project): an adapted layer X keeps ``X.weight`` and ``X.bias`` and gains ``X.lora_A.weight``
(r, in, ...) and ``X.lora_B.weight`` (out, r, ...). ``peft`` (DP-LoRA): ``model.base_model.model.`` in front,
``X.base_layer.weight``, ``X.lora_A.default.weight``. ``loralib`` (DP-LDM): ``X.lora_A`` and ``X.lora_B`` as matrices,
and ``X.conv.weight`` where X is a convolution. EMA weights are named ``model_ema.`` plus the parameter name without
dots in every style.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.ema import COUNTERS, PREFIX
from ldm.errors import UserError
from ldm.modules.lora import LoRAConfig

STYLES = ("plain", "peft", "loralib")
PARTS = ("model.", "cond_stage_model.")
WRAPPER = "base_model.model."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
_LORALIB_CONV = re.compile(r"\.(qkv|proj_out)\.conv\.(weight|bias)$")

State = dict[str, Tensor]
Scale = Callable[[str, int], float]
"""The factor in front of B A, given the dotted name of a layer and the rank of its adapter."""


def style_of(keys: Iterable[str]) -> str | None:
    """The naming style of the keys, one of `STYLES`; None without adapter names."""
    found = None
    for key in keys:
        if key.startswith(PREFIX):
            continue
        if any(key.startswith(part + WRAPPER) for part in PARTS) or ".lora_A.default." in key or ".base_layer." in key:
            return "peft"
        if key.endswith((".lora_A", ".lora_B")) or _LORALIB_CONV.search(key):
            return "loralib"
        if key.endswith((DOWN, UP)):
            found = "plain"
    return found


def layers_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Rank by dotted name of every adapted layer of a plain-style state dict.

    Raises UserError when one factor is missing, or the two factors have different ranks.
    """
    ranks = {}
    for key, down in state.items():
        if key.endswith(UP) and key.removesuffix(UP) + DOWN not in state:
            raise UserError(f"{key} has no lora_A beside it; the checkpoint is incomplete")
        if not key.endswith(DOWN):
            continue
        layer = key.removesuffix(DOWN)
        if layer + UP not in state:
            raise UserError(f"{key} has no lora_B beside it; the checkpoint is incomplete")
        if down.shape[0] != state[layer + UP].shape[1]:
            raise UserError(f"the factors of {layer} have ranks {down.shape[0]} and {state[layer + UP].shape[1]}")
        ranks[layer] = int(down.shape[0])
    return ranks


def to_plain(state: Mapping[str, Tensor]) -> State:
    """A state dict of any style under plain names; one without adapters is unchanged."""
    style = style_of(state)
    if style in (None, "plain"):
        return dict(state)
    plain = _renamed(state, _peft_to_plain if style == "peft" else _loralib_to_plain)
    if style == "loralib":
        for layer in [key.removesuffix(DOWN) for key in plain if key.endswith(DOWN)]:
            base = plain.get(f"{layer}.weight")
            if base is not None and base.ndim > 2:
                if base.shape[2:].numel() != 1:
                    raise UserError(
                        f"{layer}: a loralib adapter of a convolution wider than 1 is not low-rank; merge it"
                    )
                _reshape(plain, layer, (1,) * (base.ndim - 2))
    return plain


def to_style(state: Mapping[str, Tensor], style: str) -> State:
    """A plain-style state dict under the names of ``style``; values are unchanged, see `rescaled` for the scaling.

    Without adapters, ``loralib`` gives the names that DP-LDM's network with adapters expects for its base weights.
    """
    if style not in STYLES:
        raise UserError(f"adapter names of the style {style!r} are unknown; choose one of {', '.join(STYLES)}")
    if style == "plain":
        return dict(state)
    layers = set(layers_of(state))
    if style == "peft":
        wrapped = tuple(part for part in PARTS if any(layer.startswith(part) for layer in layers))
        return _renamed(state, lambda key: _plain_to_peft(key, layers, wrapped))
    flat = dict(state)
    for layer in layers:
        base = state.get(f"{layer}.weight", state[layer + DOWN])
        if base.shape[2:].numel() != 1:
            raise UserError(f"{layer}: loralib's names have no place for an adapter of a convolution wider than 1")
        _reshape(flat, layer, ())
    return _renamed(flat, lambda key: _plain_to_loralib(key, flat))


def rescaled(state: Mapping[str, Tensor], factor: Scale) -> State:
    """The state dict with every B (and its EMA) multiplied by ``factor(layer, rank)``."""
    changed = dict(state)
    for layer, rank in layers_of(state).items():
        by = factor(layer, rank)
        for key in (layer + UP, _average_of(layer + UP)):
            if key in changed and by != 1.0:
                changed[key] = changed[key] * by
    return changed


def with_rank(state: Mapping[str, Tensor], rank: int | Mapping[str, int]) -> State:
    """Adapters with another rank: padded with zeros, which does not change B A, or without their last directions.

    ``rank`` is one number or one per layer. Reducing the rank changes the network's output.
    """
    changed = dict(state)
    for layer, old in layers_of(state).items():
        new = rank if isinstance(rank, int) else rank.get(layer, old)
        for end, axis in ((DOWN, 0), (UP, 1)):
            for key in (layer + end, _average_of(layer + end)):
                if key in changed and new != old:
                    changed[key] = _resized(changed[key], new, axis)
    return changed


def merged(state: Mapping[str, Tensor], scale: Scale) -> State:
    """The state dict without adapters: s B A of each adapter is added to its weight.

    Raises UserError for an adapter without its weight, and for a state dict with EMA weights.
    """
    if any(key.startswith(PREFIX) for key in state):
        raise UserError("choose between raw and averaged weights before merging")
    plain = dict(state)
    for layer, rank in layers_of(state).items():
        base = f"{layer}.weight"
        if base not in plain:
            raise UserError(f"there is no {base} to merge its adapter into; give the checkpoint of the base model")
        down, up = plain.pop(layer + DOWN), plain.pop(layer + UP)
        change = scale(layer, rank) * (up.double().flatten(1) @ down.double().flatten(1))
        plain[base] = (plain[base].double() + change.reshape(plain[base].shape)).to(plain[base].dtype)
    return plain


def default_scale(style: str | None) -> Scale:
    """The default scaling of a style: 1 for ``peft`` (DP-LoRA has alpha = r), 1 / r for ``loralib`` (alpha 1)."""
    return (lambda layer, rank: 1.0 / rank) if style == "loralib" else (lambda layer, rank: 1.0)


def stated_scale(params: Mapping[str, Any]) -> Scale | None:
    """The scaling in a model's configuration; None without adapters."""
    options = dict(params or {})
    if not any(options.get(switch) for switch in ("use_lora", "use_model_lora", "use_cond_lora")):
        return None
    scaling = str(options.get("model_lora_scaling") or "standard")
    network = LoRAConfig(alpha=options.get("model_lora_alpha"), scaling=scaling)
    if options.get("use_lora"):
        network = LoRAConfig(alpha=1.0)
    condition = LoRAConfig(scaling=scaling)
    return lambda layer, rank: (condition if layer.startswith("cond_stage_model.") else network).scale(rank)


# ---------------------------------------------------------------------- names


def _average_of(key: str) -> str:
    """The name of a network parameter's EMA weight."""
    return PREFIX + key.removeprefix("model.").replace(".", "") if key.startswith("model.") else ""


def _renamed(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> State:
    """Rename parameters and, accordingly, their EMA weights."""
    names = {key: rename(key) for key in state if not key.startswith(PREFIX)}
    for key, new in list(names.items()):
        if _average_of(key) in state:
            names[_average_of(key)] = _average_of(new)
    renamed: State = {}
    for key, value in state.items():
        new = names.get(key, key)
        if key not in names and key.removeprefix(PREFIX) not in COUNTERS:
            raise UserError(f"the averaged weight {key!r} belongs to no parameter of this checkpoint")
        if new in renamed:
            raise UserError(f"{key!r} and another tensor are both {new!r}; the checkpoint mixes naming styles")
        renamed[new] = value
    return renamed


def _peft_to_plain(key: str) -> str:
    for part in PARTS:
        if key.startswith(part + WRAPPER):
            key = part + key.removeprefix(part + WRAPPER)
    return (
        key.replace(".base_layer.", ".").replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")
    )


def _plain_to_peft(key: str, layers: set[str], wrapped: tuple[str, ...]) -> str:
    layer, _, last = key.rpartition(".")
    if key.endswith((DOWN, UP)):
        key = f"{layer}.default.{last}"
    elif layer in layers:
        key = f"{layer}.base_layer.{last}"
    for part in wrapped:
        if key.startswith(part):
            return part + WRAPPER + key.removeprefix(part)
    return key


def _loralib_to_plain(key: str) -> str:
    if key.endswith((".lora_A", ".lora_B")):
        return f"{key}.weight"
    return _LORALIB_CONV.sub(r".\1.\2", key)


def _plain_to_loralib(key: str, state: Mapping[str, Tensor]) -> str:
    if key.endswith((DOWN, UP)):
        return key.removesuffix(".weight")
    layer, _, last = key.rpartition(".")
    # match attention blocks only; their convolutions have one axis, the proj_out of a spatial transformer has two
    if key.startswith("model.") and layer.endswith((".qkv", ".proj_out")) and state[f"{layer}.weight"].ndim == 3:
        return f"{layer}.conv.{last}"
    return key


# ---------------------------------------------------------------------- values


def _reshape(state: State, layer: str, tail: tuple[int, ...]) -> None:
    for end in (DOWN, UP):
        for key in (layer + end, _average_of(layer + end)):
            if key in state:
                state[key] = state[key].reshape(*state[key].shape[:2], *tail)


def _resized(factor: Tensor, rank: int, axis: int) -> Tensor:
    kept = factor.narrow(axis, 0, min(rank, factor.shape[axis]))
    if kept.shape[axis] == rank:
        return kept.clone()
    shape = list(kept.shape)
    shape[axis] = rank - kept.shape[axis]
    return torch.cat([kept, kept.new_zeros(shape)], axis)
