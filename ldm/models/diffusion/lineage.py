"""What Python of the lineage calls on a `LatentDiffusion`: ``sample``, ``sample_log``, first-stage outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.ancestral import p_sample_loop
from ldm.models.diffusion.ddim import DDIMSampler


class LineageSampling:
    """Ways to sample under the lineage's names and arguments, for a class that is a `DDPM`."""

    @torch.no_grad()
    def sample(
        self: Any,
        cond: Any = None,
        batch_size: int = 16,
        return_intermediates: bool = False,
        x_T: Tensor | None = None,
        verbose: bool = False,
        timesteps: int | None = None,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        shape: Sequence[int] | None = None,
    ) -> Any:
        """Latents (B, C, h, w) by ancestral sampling over all timesteps; with intermediates on request.

        ``cond`` is encoded, a tensor, a list or a dict of them; more rows than ``batch_size`` are left out.
        """
        shape = (batch_size, self.channels, self.image_size, self.image_size) if shape is None else shape
        return p_sample_loop(
            self,
            first_rows(cond, batch_size),
            shape,
            return_intermediates=return_intermediates,
            x_T=x_T,
            verbose=verbose,
            timesteps=timesteps,
            mask=mask,
            x0=x0,
        )

    @torch.no_grad()
    def sample_log(
        self: Any, cond: Any, batch_size: int, ddim: bool, ddim_steps: int, **options: Any
    ) -> tuple[Tensor, Any]:
        """Latents and intermediates: by DDIM in ``ddim_steps`` when ``ddim``, else by all timesteps.

        ``options`` are those of `Sampler.sample` or of :meth:`sample`, whose unknown names raise TypeError.
        """
        if not ddim:
            samples, kept = self.sample(cond, batch_size, return_intermediates=True, **options)
            return samples, kept
        shape = (self.channels, self.image_size, self.image_size)
        return DDIMSampler(self).sample(ddim_steps, batch_size, shape, cond, **options)

    @torch.no_grad()
    def with_first_stage_outputs(self: Any, batch: Mapping[str, Any], z: Tensor, condition: Any) -> list[Any]:
        """[latents, condition, images, reconstructions] of a batch."""
        images = super().get_input(batch, self.first_stage_key)  # type: ignore[misc]
        return [z, condition, images, self.decode_first_stage(z)]


def first_rows(condition: Any, count: int) -> Any:
    """The first ``count`` rows of an encoded condition, whatever it is kept in."""
    if isinstance(condition, Mapping):
        return {key: first_rows(value, count) for key, value in condition.items()}
    if isinstance(condition, (list, tuple)):
        return [first_rows(value, count) for value in condition]
    return None if condition is None else condition[:count]
