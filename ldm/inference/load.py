"""From a configuration and a checkpoint to a model that is ready to sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from ldm.checkpoint import check_metadata, read_checkpoint
from ldm.config import get_obj_from_str, instantiate_from_config, load_config, to_plain
from ldm.errors import UserError


def load_model(config: str | Path, checkpoint: str | Path, device: torch.device, ema: bool = True) -> Any:
    """The model of a configuration with the weights of a checkpoint, ready to sample on ``device``.

    Checkpoint paths inside the configuration are not opened, and its ``ignore_keys`` do not apply: the checkpoint
    holds every weight. With ``ema`` its averaged weights are used when it has them. Raises UserError on a mismatch.
    """
    loaded = load_config([config])
    if not isinstance(loaded.get("model"), DictConfig) or not isinstance(loaded.model.get("params"), DictConfig):
        raise UserError(f"{config}: has no section 'model'; give the YAML file that the model was trained with")
    section = to_plain(without_checkpoints(loaded.model))
    section.pop("base_learning_rate", None)
    if not hasattr(get_obj_from_str(section.get("target")), "load_lineage_state"):
        raise UserError(f"{config}: describes {section['target']}; sampling needs a latent diffusion model")
    section["params"] = {**section["params"], "start_from_ema": ema}
    model = instantiate_from_config(section)
    content = read_checkpoint(checkpoint)
    check_metadata(model, content, checkpoint)
    model.load_lineage_state(content["state_dict"], source=str(checkpoint))
    return model.to(device).eval()


def without_checkpoints(section: Any) -> Any:
    """A copy of a model's configuration in which no checkpoint file is named."""
    section = section.copy()
    params = section.params
    params.ckpt_path = None
    params.pop("ignore_keys", None)
    for key in ("first_stage_config", "cond_stage_config"):
        part = params.get(key)
        # keys(), since "in" is false for a path that is still ???
        if isinstance(part, DictConfig) and "ckpt_path" in (part.get("params") or {}).keys():  # noqa: SIM118
            part.params.ckpt_path = None
    return section
