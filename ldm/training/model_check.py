"""Checks that the parts of a diffusion model fit each other, from its configuration alone, before it is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.errors import UserError

#: Conditioning keys with which the network's input is the latent alone.
LATENT_ALONE = (None, "crossattn", "adm")


def check_parts(params: Mapping[str, Any]) -> None:
    """Compare channels of latent, network and first stage, and the width of the condition, of these ``model.params``.

    Parts of other classes, and values that the configuration leaves to defaults, are not compared. Raises UserError
    with the setting to change.
    """
    network = _params(params.get("unet_config"))
    channels = params.get("channels")
    if not network or not isinstance(channels, int):
        return
    first = params.get("first_stage_config")
    width = _params(first).get("embed_dim")
    encodes = isinstance(first, Mapping) and ".Autoencoder" in str(first.get("target"))
    if encodes and isinstance(width, int) and width != channels:
        raise UserError(
            f"model.params.channels: {channels}, and the first stage makes latents of {width} channels (embed_dim); "
            f"set model.params.channels={width}"
        )
    if conditioning(params) in LATENT_ALONE:
        for key in ("in_channels", "out_channels"):
            if isinstance(network.get(key), int) and network[key] != channels:
                raise UserError(
                    f"model.params.unet_config.params.{key}: {network[key]}, and the network works on {channels} "
                    "channels (model.params.channels); set both alike"
                )
    side, levels = params.get("image_size"), network.get("channel_mult")
    if isinstance(side, int) and isinstance(levels, list) and side % 2 ** (len(levels) - 1):
        raise UserError(
            f"model.params.image_size: {side}, and the network halves latents {len(levels) - 1} times; give a multiple "
            f"of {2 ** (len(levels) - 1)}"
        )
    stage = params.get("cond_stage_config")
    given, wanted = _params(stage).get("embed_dim"), network.get("context_dim")
    classes = isinstance(stage, Mapping) and str(stage.get("target")).endswith(".ClassEmbedder")
    if classes and isinstance(given, int) and isinstance(wanted, int) and given != wanted:
        raise UserError(
            f"model.params.unet_config.params.context_dim: {wanted}, and the class embedding has {given} values "
            "(cond_stage_config.params.embed_dim); set both alike"
        )


def conditioning(params: Mapping[str, Any]) -> Any:
    """How the condition reaches the network; None without a condition. Without a key, as `LatentDiffusion` decides."""
    if params.get("cond_stage_config") in (None, "__is_unconditional__"):
        return None
    return params.get("conditioning_key") or ("concat" if params.get("concat_mode", True) else "crossattn")


def _params(section: Any) -> Mapping[str, Any]:
    found = section.get("params") if isinstance(section, Mapping) else None
    return found if isinstance(found, Mapping) else {}
