"""What a checkpoint says about itself beside its weights, and whether that fits a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ldm.checkpoint.digest import state_digest
from ldm.checkpoint.lora_names import layers_of, stated_scale, style_of, to_plain
from ldm.errors import UserError
from ldm.modules.lora import adapters

MADE_FROM = "made_from"
#: The key under which a checkpoint names the data that its weights were trained on without privacy.
UNPROTECTED_DATA = "unprotected_data"

HEAD_KEYS = ("num_heads", "num_head_channels", "num_heads_upsample", "legacy", "use_new_attention_order")


def checkpoint_metadata(checkpoint: Mapping[str, Any], key: str) -> Any:
    """What a checkpoint carries beside its weights, from a Lightning file or from safetensors metadata; or None."""
    if key in checkpoint:
        return checkpoint[key]
    text = checkpoint.get("metadata", {}).get(key)
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        raise UserError(f"the checkpoint's metadata '{key}' are no readable JSON; copy or download it again") from None


def made_from(checkpoint: Mapping[str, Any]) -> str:
    """Digest of the content of the checkpoint that a run wrote and that this one is, or was made from."""
    return str(checkpoint_metadata(checkpoint, MADE_FROM) or state_digest(checkpoint["state_dict"]))


def inherited_privacy(checkpoint: Mapping[str, Any]) -> Any:
    """Plan and ledger of the private run that a checkpoint comes from, be it by way of public training; or None.

    Where that run had started from another private one, the earlier account is in it as ``start_privacy``.
    """
    return joined_accounts(checkpoint_metadata(checkpoint, "privacy"), checkpoint_metadata(checkpoint, "start_privacy"))


def joined_accounts(*accounts: Any) -> Any:
    """One account of several private runs (each once), the earlier ones nested in the later as ``start_privacy``.

    None when there is none of them.
    """
    flat: list[dict[str, Any]] = []
    for account in accounts:
        while isinstance(account, Mapping):
            own = {key: value for key, value in account.items() if key != "start_privacy"}
            if own and own not in flat:
                flat.append(own)
            account = account.get("start_privacy")
    joined: Any = None
    for own in reversed(flat):
        joined = {**own, "start_privacy": joined} if joined else own
    return joined


def unprotected_data(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """Digests of the data sets that a checkpoint's weights were trained on without privacy, as far as it says so."""
    return tuple(str(name) for name in checkpoint_metadata(checkpoint, UNPROTECTED_DATA) or ())


def check_heads(ours: Mapping[str, Any], stored: Any, source: Any) -> None:
    """Refuse a head count other than the checkpoint's: tensor shapes would agree and the function would not.

    ``ours`` are the network's parameters, ``stored`` the model configuration that the checkpoint carries, if any.
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
    """Raise UserError for a file that holds adapters without the weights that they stand beside."""
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
    """Refuse a checkpoint whose own words contradict the model where shapes cannot: heads, and scaling of adapters.

    An adapter alone is refused, too.
    """
    refuse_adapter(checkpoint["state_dict"], source)
    config = checkpoint_metadata(checkpoint, "model_config")
    check_heads(model.unet_params, config, source)
    facts = checkpoint_metadata(checkpoint, "lora") or {}
    stated = stated_scale(config.get("params") or {}) if isinstance(config, Mapping) else None
    if style_of(checkpoint["state_dict"]) != "plain" or not (facts or stated):
        return  # the scaling of other styles goes by convention
    scaling = facts.get("scaling") or {}
    for name, layer in adapters(model):
        theirs = scaling.get(name, layer.scaling) if scaling or stated is None else stated(name, layer.rank)
        if abs(theirs - layer.scaling) > 1e-6 * abs(theirs):
            raise UserError(
                f"{source}: the adapter of {name} was trained with a scaling of {theirs:g}, the config gives "
                f"{layer.scaling:g}; set model_lora_alpha and model_lora_scaling to those of the checkpoint"
            )
