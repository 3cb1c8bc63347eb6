"""The scale factor of latents, which gives them a standard deviation of about 1."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.privacy.config import DPConfig

logger = logging.getLogger(__name__)


class LatentScale(nn.Module):
    """The part of a latent model that keeps ``scale_factor``: given, taken from a checkpoint, or measured once."""

    dp_config: DPConfig
    scale_is_known: bool

    @abstractmethod
    def latents(self, batch: Mapping[str, Any]) -> Tensor:
        """Scaled latents (B, z, h, w) of a batch."""

    def _set_scale(self, value: float, from_data: bool) -> None:
        """Set the initial scale; with ``from_data`` a checkpoint or the first batch of public images replaces it."""
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"scale_factor is {value}; latents are multiplied by it, so it is a number above 0")
        self.scale_by_std = from_data
        #: False while the scale is still to be measured.
        self.scale_is_known = not from_data
        self.scale_factor: float | Tensor
        if from_data:
            self.register_buffer("scale_factor", torch.tensor(float(value)))
        else:
            self.scale_factor = value

    def _take_scale_of(self, stored: Tensor) -> None:
        """Use a checkpoint's scale, stored as a buffer so that checkpoints of this model contain it."""
        if not self.scale_by_std:
            logger.info("the checkpoint's latent scale %.5f replaces the config's", float(stored))
            del self.scale_factor
            self.register_buffer("scale_factor", stored.detach().clone().float())
        self.scale_is_known = True

    @torch.no_grad()
    def _measure_scale(self, batch: Mapping[str, Any]) -> None:
        """Set the scale so that the latents of a batch of public images have standard deviation 1."""
        if self.dp_config.enabled:  # the driver refuses this earlier; this check covers training without the driver
            raise UserError("scale_by_std: a statistic of private images is not covered by the guarantee")
        self.scale_factor = torch.ones_like(torch.as_tensor(self.scale_factor))
        self.scale_factor = 1.0 / self.latents(batch).flatten().std()
        self.scale_is_known = True
        logger.info("latent scale set to %.5f from the first batch", float(self.scale_factor))
