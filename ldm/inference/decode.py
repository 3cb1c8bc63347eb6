"""`Decoder`: from latents to images, in parts, in the memory layout and the precision that are fastest."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.latent_denoiser import LatentDenoiser

logger = logging.getLogger(__name__)


class Decoder:
    """Decodes latents (B, z, h, w) to images (B, C, H, W), float32 in [-1, 1] on the CPU.

    The first stage gets the memory layout of images (channels last), in which its convolutions are faster; values
    differ by rounding. ``part``: images decoded at a time, None for all. ``precision``: see `SamplingOptions`.
    """

    def __init__(self, model: LatentDenoiser, part: int | None = None, precision: str = "fp32") -> None:
        self.model, self.part = model, part
        self.lower = precision in ("bf16", "bf16-decode")
        model.first_stage_model.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """The images of ``latents``."""
        with lower_precision(latents.device, self.lower):
            parts = latents.contiguous(memory_format=torch.channels_last).split(self.part or len(latents))
            images = torch.cat([self.model.decode_first_stage(part) for part in parts])
        return images.float().clamp(-1, 1).cpu().contiguous()


def lower_precision(device: torch.device, wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """A context in which networks compute in bfloat16, if ``wanted``."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else contextlib.nullcontext()


def supported_precision(precision: str, device: torch.device) -> str:
    """``precision``, or fp32 with a line in the log where the device has no bfloat16 arithmetic and would be slower."""
    if precision == "fp32" or has_bfloat16(device):
        return precision
    logger.warning("--precision %s: this %s has no bfloat16 arithmetic; computed in fp32", precision, device.type)
    return "fp32"


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    ask: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # not in older torch
    return device.type == "cpu" and any(ask().get(name) for name in ("avx512_bf16", "amx_bf16"))
