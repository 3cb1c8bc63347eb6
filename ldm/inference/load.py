"""From a configuration and a checkpoint to a model that is ready to sample."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ldm.checkpoint import check_metadata, read_checkpoint
from ldm.checkpoint.lora_names import layers_of
from ldm.checkpoint.lora_names import to_plain as to_plain_names
from ldm.checkpoint.metadata import refuse_adapter
from ldm.config import instantiate_networks, load_config, networks_of, section_at, to_plain
from ldm.errors import UserError
from ldm.models.diffusion.latent_denoiser import LatentDenoiser

logger = logging.getLogger(__name__)

UNMATCHED = "to_out.Linear"


def load_model(
    config: str | Path, checkpoint: str | Path, device: torch.device, ema: bool = True, settings: Sequence[str] = ()
) -> LatentDenoiser:
    """The model of a configuration with the weights of a checkpoint, ready to sample on ``device``.

    Checkpoint paths inside the configuration are not opened, and its ``ignore_keys`` do not apply, because the
    checkpoint holds every weight. ``settings`` (``key.path=value``) override the configuration. With ``ema`` its
    averaged (EMA) weights are used if present. Raises UserError on a mismatch.

    Models of this project come without the hooks of a trainer (`ldm.config.NETWORKS`): importing Lightning would take
    longer than everything else before the first image.
    """
    loaded = load_config([config], settings)
    if not isinstance(loaded.get("model"), DictConfig) or not isinstance(loaded.model.get("params"), DictConfig):
        raise UserError(f"{config}: has no section 'model'; give the YAML file that the model was trained with")
    section = to_plain(without_checkpoints(loaded.model))
    section.pop("base_learning_rate", None)
    if not hasattr(networks_of(section.get("target")), "load_lineage_state"):
        raise UserError(f"{config}: describes {section['target']}; sampling needs a latent diffusion model")
    content = read_checkpoint(checkpoint)
    refuse_adapter(content.state_dict, checkpoint)
    section["params"] = {**section["params"], "start_from_ema": ema}
    leave_out_unmatched_targets(section["params"], content.state_dict, checkpoint)
    model: LatentDenoiser = instantiate_networks(section)
    check_metadata(model, content, checkpoint)
    model.load_lineage_state(content.state_dict, source=str(checkpoint))
    return model.to(device).eval()


def leave_out_unmatched_targets(params: dict[str, Any], state: Mapping[str, Tensor], source: Any) -> None:
    """Remove DP-LoRA's target ``to_out.Linear`` from ``params`` for a checkpoint without adapters there.

    The target matched no layer in the published code, so its checkpoints have no adapters there, but its configurations
    still list the target.
    """
    targets = params.get("model_lora_target")
    if not isinstance(targets, list) or UNMATCHED not in targets:
        return
    layers = layers_of(to_plain_names(state))
    if layers and not any(layer.endswith(".to_out.0") for layer in layers):
        params["model_lora_target"] = [target for target in targets if target != UNMATCHED]
        logger.info("%s has no adapters on %s, which named nothing in the published code: left out", source, UNMATCHED)


def without_checkpoints(section: Any) -> Any:
    """A copy of a model's configuration in which no checkpoint file is named."""
    section = section.copy()
    params = section_at(section, "params", "the section 'model'")
    params.ckpt_path = None
    params.pop("ignore_keys", None)
    for key in ("first_stage_config", "cond_stage_config"):
        part = params.get(key)
        # keys(), because "in" is false for the missing value ???
        if isinstance(part, DictConfig) and "ckpt_path" in (part.get("params") or {}).keys():  # noqa: SIM118
            part.params.ckpt_path = None
    return section
