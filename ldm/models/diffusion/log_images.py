"""Images of a latent diffusion model for the image logger: samples, and inputs and reconstructions of public data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.denoiser import Denoiser, count_records


@torch.no_grad()
def log_images(
    model: Any,
    batch: Mapping[str, Any],
    count: int = 8,
    steps: int = 50,
    private: bool = False,
    samples: bool = True,
    eta: float = 1.0,
) -> dict[str, Tensor]:
    """Images of a `LatentDenoiser` for the image logger, each (n, C, H, W) nominally in [-1, 1].

    With ``private``, returns only samples of the model, because inputs and reconstructions would be released without
    noise.
    """
    count = min(count, count_records(batch)) if not private else count
    images: dict[str, Tensor] = {}
    condition = None
    if not private:
        small = {key: value[:count] for key, value in batch.items()}
        z = model.latents(small)
        if "moments" not in small:
            images["inputs"] = Denoiser.get_input(model, small, model.first_stage_key)
        images["reconstruction"] = model.decode_first_stage(z)
        if model.cond_stage_model is not None:
            condition = model.get_learned_conditioning(model.raw_condition(small))
    elif model.cond_stage_model is not None:
        if not hasattr(model.cond_stage_model, "n_classes"):
            return {}
        classes = torch.arange(count, device=model.device) % model.cond_stage_model.n_classes
        condition = model.get_learned_conditioning({"class_label": classes})
    if not samples:
        return images
    with model.ema_scope():
        latents, _ = DDIMSampler(model).sample(
            S=steps, batch_size=count, shape=model.latent_shape, conditioning=condition, eta=eta
        )
    images["samples"] = model.decode_first_stage(latents)
    return images
