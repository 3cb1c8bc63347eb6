"""Metadata of checkpoints, and their consistency with a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ldm.checkpoint.digest import state_digest
from ldm.checkpoint.lora_names import layers_of, stated_scale, style_of, to_plain
from ldm.errors import UserError
from ldm.modules.lora import adapters

MADE_FROM = "made_from"
#: Metadata key for the digests of the data sets that the weights were trained on without privacy.
UNPROTECTED_DATA = "unprotected_data"

HEAD_KEYS = ("num_heads", "num_head_channels", "num_heads_upsample", "legacy", "use_new_attention_order")


def checkpoint_metadata(checkpoint: Mapping[str, Any], key: str) -> Any:
    """The value of a metadata key in a Lightning or .safetensors checkpoint, or None."""
    if key in checkpoint:
        return checkpoint[key]
    text = checkpoint.get("metadata", {}).get(key)
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        raise UserError(f"the checkpoint's metadata '{key}' are no readable JSON; copy or download it again") from None


def made_from(checkpoint: Mapping[str, Any]) -> str:
    """Content digest of the run's checkpoint that this one was made from, or of this one if it is the original."""
    return str(checkpoint_metadata(checkpoint, MADE_FROM) or state_digest(checkpoint["state_dict"]))


def inherited_privacy(checkpoint: Mapping[str, Any]) -> Any:
    """Plan and ledger of the private run that a checkpoint comes from, also after later public training; or None.

    If that run started from another private run, the earlier account is nested in it as ``start_privacy``.
    """
    return joined_accounts(checkpoint_metadata(checkpoint, "privacy"), checkpoint_metadata(checkpoint, "start_privacy"))


def joined_accounts(*accounts: Any) -> Any:
    """One account of several private runs (each once); earlier ones are nested in later ones as ``start_privacy``.

    None when all accounts are None.
    """
    joined: Any = None
    for own in reversed(separate_accounts(*accounts)):
        joined = {**own, "start_privacy": joined} if joined else own
    return joined


def separate_accounts(*accounts: Any) -> list[dict[str, Any]]:
    """The accounts of all private runs that are nested in ``accounts``, each once, later runs first."""
    flat: list[dict[str, Any]] = []
    for account in accounts:
        while isinstance(account, Mapping):
            own = {key: value for key, value in account.items() if key != "start_privacy"}
            if own and own not in flat:
                flat.append(own)
            account = account.get("start_privacy")
    return flat


def unprotected_data(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """Digests of the data sets that the weights were trained on without privacy, according to the metadata."""
    return tuple(str(name) for name in checkpoint_metadata(checkpoint, UNPROTECTED_DATA) or ())


def check_heads(ours: Mapping[str, Any], stored: Any, source: Any) -> None:
    """Raise UserError when the number of attention heads differs from the checkpoint's; tensor shapes do not show it.

    ``ours`` are the network's parameters, ``stored`` the model configuration in the checkpoint, if any.
    """
    if not isinstance(stored, Mapping):
        return
    theirs = (stored.get("params", {}).get("unet_config") or {}).get("params")
    if not isinstance(theirs, Mapping):
        return
    for key in HEAD_KEYS:
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{source}: was trained with unet {key}={theirs.get(key)}, the config says {ours.get(key)}; "
                "the shapes agree but the results would not: use the checkpoint's value"
            )


def refuse_adapter(state: Mapping[str, Any], source: Any) -> None:
    """Raise UserError for a file with adapters but without their base weights."""
    layers = layers_of(to_plain(state))
    beside = [layer for layer in layers if f"{layer}.weight" in state or f"{layer}.base_layer.weight" in state]
    network = any(key.startswith("first_stage_model.") for key in state)
    if layers and not beside and not network and style_of(state) != "loralib":
        raise UserError(
            f"{source}: this is an adapter: it holds what was trained on {len(layers)} layers and no model; put it "
            f"into the model that it was trained from, and give the result: python scripts/merge_lora.py --ckpt "
            f"{source} --base MODEL.ckpt -o merged.safetensors"
        )


def check_metadata(model: Any, checkpoint: Mapping[str, Any], source: Any) -> None:
    """Raise UserError when heads or adapter scaling in the metadata differ from the model's; shapes do not show them.

    A file with adapters only is refused, too.
    """
    refuse_adapter(checkpoint["state_dict"], source)
    config = checkpoint_metadata(checkpoint, "model_config")
    check_heads(model.unet_params, config, source)
    facts = checkpoint_metadata(checkpoint, "lora") or {}
    stated = stated_scale(config.get("params") or {}) if isinstance(config, Mapping) else None
    if style_of(checkpoint["state_dict"]) != "plain" or not (facts or stated):
        return  # other styles have a fixed scaling
    scaling = facts.get("scaling") or {}
    for name, layer in adapters(model):
        theirs = scaling.get(name, layer.scaling) if scaling or stated is None else stated(name, layer.rank)
        if abs(theirs - layer.scaling) > 1e-6 * abs(theirs):
            raise UserError(
                f"{source}: the adapter of {name} was trained with a scaling of {theirs:g}, the config gives "
                f"{layer.scaling:g}; set model_lora_alpha and model_lora_scaling to those of the checkpoint"
            )
