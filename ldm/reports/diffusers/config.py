"""Configurations of the diffusers library that stand for those of a latent diffusion model here.

A part either has a class in the library, or a small subclass in `ldm.reports.diffusers.parts`, or no equivalent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm.checkpoint.diffusers_names import network_places
from ldm.errors import UserError
from ldm.modules.diffusionmodules.model import norm_groups

#: The library whose classes a folder names.
LIBRARY = "diffusers"


@dataclass(frozen=True)
class Part:
    """One component: module and class that load it, the values of its ``config.json``.

    ``module`` is ``diffusers``, or the name of a module of `ldm.reports.diffusers.parts`, which the folder carries.
    """

    module: str
    name: str
    config: Mapping[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)


def no_equivalent(what: str) -> UserError:
    """The one line about a model that the library cannot compute."""
    return UserError(
        f"no diffusers folder: {what}, for which diffusers has no equivalent; "
        "hand over the release folder itself, which dp-ldm sample reads"
    )


def network_part(params: Mapping[str, Any], classes: int | None) -> Part:
    """The denoising network with the parameters of `UNetModel`. ``classes``: of the class embedding, None without one.

    Raises UserError for a network without an equivalent.
    """
    mult = [int(value) for value in params["channel_mult"]]
    widths = [int(params["model_channels"]) * value for value in mult]
    attended = [2**level in list(params["attention_resolutions"]) for level in range(len(mult))]
    blocks, spatial = int(params["num_res_blocks"]), bool(params.get("use_spatial_transformer"))
    resamples = "block" if params.get("resblock_updown") else "conv"
    if not params.get("conv_resample", True) and resamples == "conv":
        raise no_equivalent("its network resamples without convolutions (conv_resample: false)")
    if params.get("n_embed") is not None or params.get("num_classes") is not None:
        raise no_equivalent("its network predicts codes or takes labels itself (n_embed, num_classes)")
    cross = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
    down, up = cross if spatial else ("AttnDownBlock2D", "AttnUpBlock2D")
    config: dict[str, Any] = {
        "sample_size": params["image_size"],
        "in_channels": params["in_channels"],
        "out_channels": params["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "down_block_types": [down if has else "DownBlock2D" for has in attended],
        "up_block_types": [up if has else "UpBlock2D" for has in reversed(attended)],
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "dropout": float(params.get("dropout", 0.0)),
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "resnet_time_scale_shift": "scale_shift" if params.get("use_scale_shift_norm") else "default",
    }
    places = network_places(len(mult), blocks, attended, resamples)
    name = "UNet2DConditionModel" if spatial else "UNet2DModel"
    config |= _with_context(params, widths, classes) if spatial else _without_context(params)
    if resamples == "conv":
        return Part(LIBRARY, name, config, places)
    return Part("unet", f"Resampling{name}", config, places)


def _with_context(params: Mapping[str, Any], widths: list[int], classes: int | None) -> dict[str, Any]:
    if classes is None:
        raise no_equivalent("its condition is neither a class nor absent")
    heads = [_heads(params, width) for width in widths]
    return {
        "cross_attention_dim": params["context_dim"],
        "attention_head_dim": heads,  # the library's name for the number of heads
        "transformer_layers_per_block": int(params.get("transformer_depth", 1)),
        "encoder_hid_dim": classes,  # one-hot classes; the projection is the class embedding
        "encoder_hid_dim_type": "text_proj",
    }


def _heads(params: Mapping[str, Any], width: int) -> int:
    head_width = params.get("num_head_channels", -1)
    return int(params["num_heads"]) if head_width == -1 else width // int(head_width)


def _without_context(params: Mapping[str, Any]) -> dict[str, Any]:
    if params.get("num_head_channels", -1) == -1:
        raise no_equivalent("its attention blocks have a fixed number of heads (num_heads), not a head width")
    return {"attention_head_dim": int(params["num_head_channels"]), "add_attention": True}


def heads_of_blocks(params: Mapping[str, Any], width: int) -> int:
    """Heads of an attention block of ``width``; negative when query, key and value are split before the heads."""
    heads = _heads(params, width)
    return -heads if params.get("use_new_attention_order") else heads


def autoencoder_part(section: Mapping[str, Any], scale: float) -> Part:
    """The first stage of a configuration. ``scale``: the factor of its latents. Raises UserError as `network_part`."""
    kind = str(section["target"]).rsplit(".", 1)[-1]
    if kind not in ("AutoencoderKL", "VQModelInterface"):
        raise no_equivalent(f"its first stage is {kind}")
    params = section["params"]
    dd = params["ddconfig"]
    attention = "linear" if dd.get("use_linear_attn") else dd.get("attn_type", "vanilla")
    if attention == "linear" or not dd.get("resamp_with_conv", True) or dd.get("tanh_out") or dd.get("give_pre_end"):
        raise no_equivalent("its autoencoder has linear attention, resamples without convolutions, or ends otherwise")
    widths = [int(dd["ch"]) * int(value) for value in dd["ch_mult"]]
    attended = [int(dd["resolution"]) // 2**level in list(dd["attn_resolutions"]) for level in range(len(widths))]
    if attention == "none":
        attended = [False] * len(widths)
    groups = {norm_groups(width) for width in widths}
    own = len(groups) > 1
    config: dict[str, Any] = {
        "in_channels": dd["in_channels"],
        "out_channels": dd["out_ch"],
        "sample_size": dd["resolution"],
        "latent_channels": dd["z_channels"],
        "block_out_channels": widths,
        "layers_per_block": dd["num_res_blocks"],
        "down_block_types": ["AttnDownEncoderBlock2D" if has else "DownEncoderBlock2D" for has in attended],
        "up_block_types": ["AttnUpDecoderBlock2D" if has else "UpDecoderBlock2D" for has in reversed(attended)],
        "norm_num_groups": 1 if own else groups.pop(),
        "mid_block_add_attention": attention == "vanilla",
        "scaling_factor": scale,
    }
    if kind == "AutoencoderKL":
        if params["embed_dim"] != dd["z_channels"]:
            raise no_equivalent("its latents have other channels than its encoder (embed_dim, z_channels)")
        config["force_upcast"] = False
    else:
        config |= {"num_vq_embeddings": params["n_embed"], "vq_embed_dim": params["embed_dim"]}
    name = "AutoencoderKL" if kind == "AutoencoderKL" else "VQModel"
    return Part("vae", f"Grouped{name}", config) if own else Part(LIBRARY, name, config)
