"""Checkpoints with LoRA adapters: read, export the adapters alone, merge them, and convert the naming style."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.checkpoint.export import sampling_state, without_paths
from ldm.checkpoint.io import read_checkpoint, save_checkpoint, save_safetensors
from ldm.checkpoint.lora_names import (
    Scale,
    default_scale,
    layers_of,
    merged,
    rescaled,
    stated_scale,
    to_plain,
    to_style,
    with_rank,
)
from ldm.checkpoint.metadata import MADE_FROM, checkpoint_metadata, made_from
from ldm.checkpoint.tensors import require_finite
from ldm.errors import UserError
from ldm.modules.lora import LoRAConfig, is_adapter_name

logger = logging.getLogger(__name__)

FILE_NAME = "adapter.safetensors"
CARRIED_METADATA = ("model_config", "privacy", "start_privacy", "unprotected_data")
OPTIONS = ("use_lora", "use_model_lora", "use_cond_lora")


@dataclass(frozen=True)
class AdaptedFile:
    """A checkpoint with adapters under plain names: its tensors, the scaling of its adapters, and its metadata."""

    path: str
    state: dict[str, Tensor]
    style: str | None
    scale: Scale
    memory: dict[str, Any]
    base: str | None = None  # fingerprint of the base weights, in a file of adapters only

    @property
    def params(self) -> dict[str, Any]:
        """The model parameters in the file's metadata; empty without a model configuration."""
        return dict((self.memory.get("model_config") or {}).get("params") or {})

    def require_adapters(self) -> dict[str, int]:
        """Rank by layer. Raises UserError when there are none."""
        layers = layers_of(self.state)
        if not layers:
            raise UserError(f"{self.path}: has no adapters")
        return layers


def read_adapted(path: str | Path, alpha: float | None = None) -> AdaptedFile:
    """Read a checkpoint of any naming style.

    The scaling is ``alpha`` / r when alpha is given, otherwise the one in the metadata, otherwise 1 for ``peft`` names
    (DP-LoRA) and 1 / r for ``loralib`` names. Raises UserError for a file in plain names without a scaling.
    """
    content = read_checkpoint(path)
    require_finite(content.state_dict, path)
    style = content.style
    state = to_plain(content.state_dict)
    memory = {key: checkpoint_metadata(content, key) for key in CARRIED_METADATA}
    memory = {key: without_paths(value) if key == "model_config" else value for key, value in memory.items() if value}
    if memory.get("privacy"):  # a private run's card names its checkpoints
        memory[MADE_FROM] = made_from(content)
    facts = checkpoint_metadata(content, "lora") or {}
    params = (memory.get("model_config") or {}).get("params") or {}
    stated = None if style == "loralib" or (style == "peft" and params.get("use_lora")) else stated_scale(params)
    scale: Scale
    if alpha is not None:
        scale = lambda layer, rank: LoRAConfig(alpha=alpha).scale(rank)  # noqa: E731
    elif facts:
        scale = lambda layer, rank: float(facts["scaling"][layer])  # noqa: E731
    elif stated is not None:
        scale = stated
    elif style == "plain":
        raise UserError(
            f"{path}: does not say how its adapters are scaled; type --alpha (the rank, for a scaling of 1)"
        )
    else:
        scale = default_scale(style)
    return AdaptedFile(str(path), state, style, scale, memory, facts.get("base"))


def export_adapter(source: str | Path, target: str | Path, ema: bool = True, alpha: float | None = None) -> int:
    """Write only the trained tensors of a LoRA run, as ``.safetensors``; returns the number of values.

    EMA weights replace the raw weights unless ``ema`` is False. The metadata contain the model's configuration, the
    plan and ledger of a private run, the scaling of each adapter, and a fingerprint of the base weights.
    """
    file = read_adapted(source, alpha)
    layers = file.require_adapters()
    state = sampling_state(file.state, ema)
    kept = {key: value for key, value in state.items() if is_adapter_name(key)}
    if _trains_condition(file.params):
        kept.update({key: value for key, value in state.items() if key.startswith("cond_stage_model.")})
    if _says(file.params, "learn_logvar") and "logvar" in state:
        kept["logvar"] = state["logvar"]
    facts = {"scaling": {layer: file.scale(layer, rank) for layer, rank in layers.items()}}
    return _write(kept, target, file.memory, {**facts, "base": fingerprint(state, layers)})


def export_adapter_next_to(checkpoint: Path) -> None:
    """Write the trained tensors of a LoRA run beside its last checkpoint, if that exists."""
    if checkpoint.exists():
        count = export_adapter(checkpoint, checkpoint.with_name(FILE_NAME))
        logger.info("%s: %s trained values", checkpoint.with_name(FILE_NAME), f"{count:,}")


def merge_checkpoint(
    source: str | Path,
    target: str | Path,
    base: str | Path | None = None,
    ema: bool = True,
    alpha: float | None = None,
) -> int:
    """Merge the adapters into the weights and write an equivalent plain network; returns the number of values.

    ``base`` is the base checkpoint of a file with adapters only; the fingerprint decides whether its raw or its EMA
    weights are used. Raises UserError for another base.
    """
    file = read_adapted(source, alpha)
    layers = file.require_adapters()
    state = sampling_state(file.state, ema)
    if base is not None:
        state = {**_base_state(base, file, layers), **state}
    elif f"{next(iter(layers))}.weight" not in state:
        raise UserError(f"{source}: holds adapters only; type --base and the checkpoint that they were trained from")
    memory = {**file.memory}
    if "model_config" in memory:
        memory["model_config"] = _without_adapters(memory["model_config"])
    return _write(merged(state, file.scale), target, memory)


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    style: str,
    adapt_rank: int | None = None,
    alpha: float | None = None,
) -> int:
    """Write the same network under the names of another style; returns the number of values.

    Values follow the style's scaling: 1 for ``peft``, 1 / r for ``loralib``, and the configured one for ``plain``.
    ``adapt_rank`` pads the adapters with zeros or drops their last directions; dropping changes the network's output.
    Without adapters, plain weights get the names that networks of this style expect.
    """
    file = read_adapted(source, alpha)
    layers = layers_of(file.state)
    if adapt_rank is not None and adapt_rank < 1:
        raise UserError(f"--adapt-rank {adapt_rank}: give a whole number of at least 1")
    config = copy.deepcopy(file.memory.get("model_config"))
    if config and style == "peft":  # readers of this style take the scaling from the configuration
        for option in ("model_lora_alpha", "model_lora_scaling"):
            config["params"].pop(option, None)
    wanted = default_scale(style) if style != "plain" else stated_scale(file.params) or default_scale(None)
    new = {layer: adapt_rank or rank for layer, rank in layers.items()}
    scaling = {layer: wanted(layer, rank) for layer, rank in new.items()}
    state = rescaled(file.state, lambda layer, rank: file.scale(layer, rank) / scaling[layer])
    if adapt_rank is not None:
        file.require_adapters()
        state = with_rank(state, adapt_rank)
        _state_rank(config, adapt_rank)
    memory = {**file.memory, **({"model_config": config} if config else {})}
    facts = {"scaling": scaling, "base": file.base} if layers else None
    return _write(to_style(state, style), target, memory, facts)


def fingerprint(state: Mapping[str, Tensor], layers: Iterable[str]) -> str:
    """A digest of the base weights of adapted layers; identifies the base checkpoint of an adapter."""
    digest = hashlib.sha256()
    for layer in sorted(layers):
        weight = state.get(f"{layer}.weight")
        if weight is None:
            return ""
        digest.update(f"{layer}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _base_state(base: str | Path, file: AdaptedFile, layers: Mapping[str, int]) -> dict[str, Tensor]:
    content = to_plain(read_checkpoint(base)["state_dict"])
    if layers_of(content):
        raise UserError(f"{base}: has adapters itself; --base is the checkpoint that the adapters were trained from")
    for averaged in (True, False):
        state = sampling_state(content, averaged)
        if file.base is None or fingerprint(state, layers) == file.base:
            return state
    raise UserError(f"{base}: is not the model that the adapters of {file.path} were trained from")


def _write(
    state: Mapping[str, Tensor], target: str | Path, memory: Mapping[str, Any], facts: Mapping[str, Any] | None = None
) -> int:
    said = {**memory, **({"lora": dict(facts)} if facts else {})}
    if Path(target).suffix == ".safetensors":
        save_safetensors(state, target, {key: json.dumps(value) for key, value in said.items()})
    else:
        save_checkpoint({"state_dict": dict(state), **said}, target)
    return sum(value.numel() for value in state.values())


def _says(params: Mapping[str, Any], option: str) -> bool:
    return bool(params.get(option, False))


def _trains_condition(params: Mapping[str, Any]) -> bool:
    """Whether a run with these parameters trains the whole condition stage; True if the parameters are unknown."""
    if not params:
        return True
    if _says(params, "use_cond_lora"):
        return False
    trainable = _says(params, "cond_stage_trainable") and not _says(params, "train_attention_only")
    return _says(params, "train_condition_only") or trainable


def _without_adapters(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration with its adapter options taken out."""
    plain = copy.deepcopy(dict(config))
    params = plain.get("params") or {}
    for option in list(params):
        if option in OPTIONS or option.startswith(("model_lora_", "cond_lora_")):
            del params[option]
    ((params.get("unet_config") or {}).get("params") or {}).pop("lora_rank", None)
    return plain


def _state_rank(config: dict[str, Any] | None, rank: int) -> None:
    """Set the adapter rank in a model's configuration."""
    params = (config or {}).get("params") or {}
    params.pop("model_lora_rank_schedule", None)
    for switch, option in (("use_model_lora", "model_lora_r"), ("use_cond_lora", "cond_lora_r")):
        if params.get(switch):
            params[option] = rank
    if params.get("use_lora"):
        params["unet_config"]["params"]["lora_rank"] = rank
