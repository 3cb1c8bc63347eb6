"""The latent cache, which is filled after the model is built and before training."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.latent_cache import LatentCache, why_not_cacheable
from ldm.data.module import DataModuleFromConfig
from ldm.training.devices import own_device

logger = logging.getLogger(__name__)


def cache_latents(model: Any, data: DataModuleFromConfig, settings: Mapping[str, Any]) -> None:
    """Encode every image of a latent model once, unless the config turns the cache off or images are augmented."""
    if not hasattr(model, "encode_moments") or not data.latent_cache:
        return
    device = own_device(settings)
    key = weights_key(model.first_stage_model)
    model.to(device)
    half = data.encoding_precision == "bf16"
    if half:
        key += "-bf16"

    def encode(images: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=half):
            moments: Tensor = model.encode_moments(images.to(device, non_blocking=True))
        return moments.float()

    def cached(name: str, dataset: Any) -> Any:
        reason = why_not_cacheable(dataset)
        if reason is not None:
            logger.info("no latent cache for the %s set: %s", name, reason)
            return dataset
        return LatentCache(dataset, encode, key=key, batch_size=data.encoding_batch)

    # the cache holds posterior mean and variance, so latents are still drawn at random in training
    data.replace_datasets(cached)


def weights_key(module: nn.Module) -> str:
    """Part of the key of a latent cache: SHA-256 (hex) of a module's weights.

    It is older than `ldm.checkpoint.state_digest`, and another digest would encode every cached image again.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
