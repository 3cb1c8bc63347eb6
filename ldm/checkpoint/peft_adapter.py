"""Reader for adapters saved by the PEFT library: ``adapter_config.json`` beside ``adapter_model.safetensors``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.checkpoint.lora_names import PARTS, WRAPPER, layers_of
from ldm.errors import UserError
from ldm.files import read_json

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
NETWORK = "model.diffusion_model."
_LARGEST_CONFIG = 2**20
_NETWORK_PARTS = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
_DIFFUSERS_PARTS = ("down_blocks.", "mid_block.", "up_blocks.", "unet.")
#: Initialisations of an adapter that do not change the base weights.
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
#: Settings that change the function of an adapter from W x + s B A x.
_OTHER_ARITHMETIC = ("use_dora", "fan_in_fan_out", "lora_bias", "layer_replication", "use_qalora")


def weights_in_folder(folder: Path) -> Path:
    """The weights file in a folder written by PEFT's ``save_pretrained``. Raises UserError for another folder."""
    for name in WEIGHTS:
        if (folder / CONFIG).is_file() and (folder / name).is_file():
            return folder / name
    if (folder / "model_index.json").is_file():
        raise UserError(f"'{folder}' is a pipeline of the diffusers library, whose networks have other names and parts")
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        raise UserError(f"'{folder}' is a run directory; name a checkpoint in it, such as {last}")
    raise UserError(f"'{folder}' is a folder; name the checkpoint file in it")


def is_peft(state: Mapping[str, Any]) -> bool:
    """Whether all names start with PEFT's wrapper prefix; DP-LoRA's names have ``model.`` before it."""
    return bool(state) and all(key.startswith(WRAPPER) for key in state)


def from_peft(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The adapters of a PEFT file under plain names, and their scaling from the configuration beside the file.

    The scaling is None without a configuration. Raises UserError for names of another network, and for settings that
    change the function of an adapter from W x + s B A x.
    """
    plain = {_plain_name(key, path): value for key, value in state.items()}
    layers = layers_of(plain)
    if not layers:
        raise UserError(f"'{path}': has names of the PEFT library and no adapters in the form of LoRA")
    config_path = path.with_name(CONFIG)
    if not config_path.is_file():
        return plain, None
    config = _read_config(config_path)
    return plain, {"scaling": {layer: _scaling(config, layer, rank, config_path) for layer, rank in layers.items()}}


def _plain_name(key: str, path: Path) -> str:
    name = key.removeprefix(WRAPPER).replace(".base_layer.", ".")
    name = re.sub(r"\.(lora_[AB])\.default\.weight$", r".\1.weight", name)
    if name.startswith(PARTS):
        return name
    if name.startswith("diffusion_model."):
        return f"model.{name}"
    if name.startswith(_NETWORK_PARTS):
        return NETWORK + name
    other = " (they are of the diffusers library, whose networks have other parts)" if _is_diffusers(name) else ""
    raise UserError(f"'{path}': '{key}' belongs to no part of a latent diffusion model{other}")


def _is_diffusers(name: str) -> bool:
    return name.startswith(_DIFFUSERS_PARTS)


def _read_config(path: Path) -> Mapping[str, Any]:
    config = read_json(path, _LARGEST_CONFIG)
    if not isinstance(config, Mapping) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, Mapping) else None
        raise UserError(f"'{path}': describes adapters of the kind {kind!r}; only LORA is read")
    for key in _OTHER_ARITHMETIC:
        if config.get(key):
            raise UserError(f"'{path}': {key} is set, which changes what an adapter computes; it is not read")
    if config.get("init_lora_weights", True) not in _HARMLESS_STARTS:
        raise UserError(
            f"'{path}': init_lora_weights is {config['init_lora_weights']!r}, which changes the weights that the "
            "adapters stand beside; let PEFT convert them (path_initial_model_for_weight_conversion)"
        )
    return config


def _scaling(config: Mapping[str, Any], layer: str, rank: int, path: Path) -> float:
    """alpha / r of a layer, or alpha / sqrt(r); patterns for single layers override the common values."""
    stated = _for_layer(config, "rank_pattern", layer, path, config.get("r", rank))
    if stated != rank:
        raise UserError(f"'{path}': says rank {stated} for {layer}, whose tensors have {rank}")
    alpha = _for_layer(config, "alpha_pattern", layer, path, config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(f"'{path}': lora_alpha of {layer} is {alpha!r}, not a number")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _for_layer(config: Mapping[str, Any], key: str, layer: str, path: Path, otherwise: Any) -> Any:
    patterns = config.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise UserError(f"'{path}': {key} is {type(patterns).__name__}, not a table of names")
    for pattern, value in patterns.items():
        if not re.fullmatch(r"[\w.]+", pattern):
            raise UserError(f"'{path}': {key} has the pattern {pattern!r}; only names of layers are read")
        if f".{layer}".endswith(f".{pattern}"):
            return value
    return otherwise
