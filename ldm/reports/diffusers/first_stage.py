"""An autoencoder of the diffusers library as a first stage here: weights under own names, and their YAML section."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from ldm.checkpoint import load_weights, read_checkpoint, save_safetensors
from ldm.checkpoint.diffusers_names import autoencoder_from_diffusers
from ldm.config import instantiate_from_config
from ldm.errors import UserError
from ldm.files import check_new_folder, new_folder, read_json
from ldm.modules.diffusionmodules.model import norm_groups

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
OUT_WEIGHTS, OUT_YAML = "autoencoder.safetensors", "autoencoder.yaml"
_LARGEST_CONFIG = 2**20
_BLOCKS = {
    "DownEncoderBlock2D": False,
    "AttnDownEncoderBlock2D": True,
    "UpDecoderBlock2D": False,
    "AttnUpDecoderBlock2D": True,
}


def import_autoencoder(folder: Path, out: Path) -> dict[str, Any]:
    """Write ``autoencoder.safetensors`` and ``autoencoder.yaml`` into the new folder ``out``; returns the section.

    ``folder`` holds the ``config.json`` and weights of an AutoencoderKL or VQModel, or a pipeline with one in ``vae/``
    or ``vqvae/``. The weights are loaded strictly into the model of the section before anything is written. Raises
    UserError for another folder, and for an autoencoder that this project's cannot compute.
    """
    check_new_folder(out)
    folder = next((folder / name for name in ("vae", "vqvae") if (folder / name / CONFIG).is_file()), folder)
    values = _config(folder)
    section = first_stage_section(values, folder)
    state = _state(folder, len(values["block_out_channels"]))
    load_weights(
        instantiate_from_config(section),
        state,
        source=f"the weights file in {folder}",
        model=f"the autoencoder of its {CONFIG}",
        advice="download the folder again, so that both are of one model",
    )
    section["params"]["ckpt_path"] = OUT_WEIGHTS
    scale = float(values.get("scaling_factor", 1.0))
    with new_folder(out) as staging:
        save_safetensors(state, staging / OUT_WEIGHTS, {"made_by": "an autoencoder of the diffusers library"})
        head = (
            "# A first stage from the diffusers library. In a latent diffusion model, this section is\n"
            f"# model.params.first_stage_config, with model.params.scale_factor: {scale:g} beside it.\n"
        )
        text = yaml.safe_dump({"model": section}, sort_keys=False)
        (staging / OUT_YAML).write_text(head + text, encoding="utf-8")
    return section


def first_stage_section(values: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The YAML section for a ``config.json``. Raises UserError naming ``source`` where there is none."""
    kind = values.get("_class_name")
    if kind not in ("AutoencoderKL", "VQModel"):
        raise UserError(f"{source}: holds {kind}; an AutoencoderKL or a VQModel can be a first stage")
    widths = [int(width) for width in values["block_out_channels"]]
    base = widths[0]
    down, up = values["down_block_types"], values["up_block_types"]
    attended = [_has_attention(name, source) for name in down]
    _require(attended == [_has_attention(name, source) for name in reversed(up)], source, "uneven attention")
    _require(all(width % base == 0 for width in widths), source, "widths that are no multiples of the first")
    _require(values.get("act_fn", "silu") == "silu", source, f"the activation {values.get('act_fn')}")
    _require(values.get("norm_type", "group") == "group", source, "spatial norms")
    groups = values.get("norm_num_groups", 32)
    _require(all(norm_groups(width) == groups for width in widths), source, f"norms of {groups} groups")
    for key in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        _require(bool(values.get(key, True)), source, f"no layers of {key}")
    _require(not values.get("lookup_from_codebook"), source, "lookup_from_codebook")
    for key in ("shift_factor", "latents_mean"):
        _require(values.get(key) is None, source, f"latents moved by {key}")
    resolution = int(values.get("sample_size", 256))
    channels = int(values["latent_channels"])
    kl = kind == "AutoencoderKL"
    ddconfig = {
        "double_z": kl,
        "z_channels": channels,
        "resolution": resolution,
        "in_channels": int(values["in_channels"]),
        "out_ch": int(values["out_channels"]),
        "ch": base,
        "ch_mult": [width // base for width in widths],
        "num_res_blocks": int(values["layers_per_block"]),
        "attn_resolutions": [resolution // 2**level for level, has in enumerate(attended) if has],
        "dropout": 0.0,
    }
    params: dict[str, Any] = {
        "embed_dim": channels if kl else int(values.get("vq_embed_dim") or channels),
        **({} if kl else {"n_embed": int(values["num_vq_embeddings"])}),
        "lossconfig": {"target": "torch.nn.Identity"},
        "ddconfig": ddconfig,
    }
    return {"target": f"ldm.models.autoencoder.{'AutoencoderKL' if kl else 'VQModelInterface'}", "params": params}


def _config(folder: Path) -> Mapping[str, Any]:
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: has no {CONFIG}; name a folder of the diffusers library with an autoencoder")
    values = read_json(folder / CONFIG, _LARGEST_CONFIG)
    if not isinstance(values, Mapping):
        raise UserError(f"{folder / CONFIG}: is no table of settings")
    return values


def _state(folder: Path, levels: int) -> dict[str, Tensor]:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return autoencoder_from_diffusers(read_checkpoint(folder / name).state_dict, levels)
    raise UserError(f"{folder}: has no weights ({' or '.join(WEIGHTS)})")


def _has_attention(name: str, source: Path) -> bool:
    _require(name in _BLOCKS, source, f"blocks of the kind {name}")
    return _BLOCKS[name]


def _require(good: bool, source: Path, what: str) -> None:
    if not good:
        raise UserError(f"{source}: has {what}, which the autoencoders here do not compute; it cannot be a first stage")
