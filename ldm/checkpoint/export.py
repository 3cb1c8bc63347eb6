"""Export of a trained run as one small file: EMA weights replace the raw ones, and training-only state is dropped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.ema import COUNTERS, split_ema
from ldm.checkpoint.io import read_checkpoint, save_safetensors
from ldm.checkpoint.metadata import MADE_FROM, UNPROTECTED_DATA, checkpoint_metadata, made_from, refuse_adapter
from ldm.checkpoint.tensors import require_finite
from ldm.errors import UserError

NETWORKS = ("model.", "first_stage_model.", "cond_stage_model.")
TRAINING_ONLY = ("first_stage_model.loss.", "loss.")


def sampling_state(state: Mapping[str, Tensor], ema: bool = True) -> dict[str, Tensor]:
    """The tensors that sampling needs; the EMA weights, if any, replace the raw weights of the network."""
    weights, averages = split_ema(state)
    names = {name.removeprefix("model.").replace(".", ""): name for name in weights if name.startswith("model.")}
    if ema:
        for key, value in averages.items():
            if key in COUNTERS:
                continue
            if key not in names:
                raise UserError(f"the averaged weight {key!r} belongs to no network weight of this checkpoint")
            weights[names[key]] = value
    return {name: value.contiguous() for name, value in weights.items() if not name.startswith(TRAINING_ONLY)}


def with_decoder(state: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """The tensors of a latent diffusion model with the decoder of the autoencoder in the file ``source``.

    Raises UserError when the encoders of the two autoencoders differ, because the decoder would not fit the latents.
    """
    prefix, own = "first_stage_model.", dict(state)
    other = {f"{prefix}{name}": value for name, value in read_checkpoint(source).state_dict.items()}
    other = {name: value for name, value in other.items() if not name.startswith(TRAINING_ONLY)}
    stored = {name for name in own if name.startswith(prefix)}
    if stored != set(other):
        raise UserError(
            f"{source}: its autoencoder has other layers than the model's; give the one it was trained with"
        )
    for name in stored:
        if name.startswith((f"{prefix}encoder.", f"{prefix}quant_conv.")) and not torch.equal(own[name], other[name]):
            raise UserError(f"{source}: {name} differs from the model's; a decoder can be replaced, an encoder cannot")
    return {**own, **other}


def without_paths(values: Any) -> Any:
    """A model configuration without the places of files on the machine that trained it.

    Checkpoint paths become None, because the exported file holds every weight, and so do absolute paths anywhere.
    """
    if isinstance(values, Mapping):
        return {key: None if key == "ckpt_path" else without_paths(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [without_paths(value) for value in values]
    return None if isinstance(values, str) and values.startswith(("/", "~")) else values


def half_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the weights of networks in half precision; schedule and latent scale stay as they are.

    Raises UserError for a weight that half precision cannot hold.
    """
    rounded = dict(state)
    for name, value in state.items():
        if name.startswith(NETWORKS) and value.dtype == torch.float32:
            rounded[name] = value.half()
            if not torch.isfinite(rounded[name]).all():
                raise UserError(f"{name} has values beyond half precision; write it in full precision")
    return rounded


def export_checkpoint(
    source: str | Path,
    target: str | Path,
    ema: bool = True,
    note: str = "",
    decoder: str | Path | None = None,
    half: bool = False,
) -> int:
    """Write ``target`` (.safetensors) from a Lightning checkpoint; returns the number of values in it.

    ``decoder`` is an autoencoder checkpoint; its decoder replaces that of the latent diffusion model. ``half`` rounds
    the weights, see `half_weights`.
    The metadata contain the model's configuration and, to preserve the privacy claim, the plan and ledger of a private
    run. Raises UserError for files that are not checkpoints.
    """
    if Path(target).suffix != ".safetensors":
        raise UserError(f"{target}: exported weights are .safetensors; end the name in that")
    content = read_checkpoint(source)
    require_finite(content.state_dict, source)
    refuse_adapter(content.state_dict, source)
    state = sampling_state(content.state_dict, ema)
    state = state if decoder is None else with_decoder(state, decoder)
    state = half_weights(state) if half else state
    carried = ("model_config", "privacy", "start_privacy", UNPROTECTED_DATA)
    memories = {key: checkpoint_metadata(content, key) for key in carried}
    memories["model_config"] = without_paths(memories["model_config"])
    metadata = {key: json.dumps(value) for key, value in memories.items() if value}
    if "privacy" in metadata:  # a private run's card names its checkpoints
        metadata[MADE_FROM] = json.dumps(made_from(content))
    if note:
        metadata["made_by"] = note
    save_safetensors(state, target, metadata)
    return sum(value.numel() for value in state.values())
