"""Methods of `LatentDiffusion` that code of the lineage calls: inputs, images and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.ancestral import p_sample_loop
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.log_images import log_images


class LineageSampling:
    """Inputs, images and samples under the lineage's names and arguments, for a class that is a `DDPM`."""

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

        ``cond`` is an encoded condition: a tensor, or a list or dict of tensors; rows beyond ``batch_size`` are
        ignored.
        """
        shape = (batch_size, *self.latent_shape) if shape is None else shape
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
        """Latents and intermediates, by DDIM in ``ddim_steps`` steps if ``ddim``, else by ancestral sampling.

        ``options`` are those of `Sampler.sample` or of :meth:`sample`, whose unknown names raise TypeError.
        """
        if not ddim:
            samples, kept = self.sample(cond, batch_size, return_intermediates=True, **options)
            return samples, kept
        return DDIMSampler(self).sample(ddim_steps, batch_size, self.latent_shape, cond, **options)

    def get_input(
        self: Any,
        batch: Mapping[str, Any],
        key: str,
        return_first_stage_outputs: bool = False,
        force_c_encode: bool = False,
        return_original_cond: bool = False,
        bs: int | None = None,
    ) -> Any:
        """Latents of the images under ``key``, and the condition of a batch.

        The condition is raw for a trainable condition stage and encoded otherwise, as in the lineage.

        With ``return_first_stage_outputs`` images and reconstructions follow, with ``return_original_cond`` the raw
        condition; ``bs`` takes the first rows only; ``force_c_encode`` always encodes the condition.
        """
        if bs is not None:
            batch = {name: value[:bs] for name, value in batch.items()}
        raw = self.raw_condition(batch)
        encode = raw is not None and (force_c_encode or not self.cond_stage_trainable)
        condition = self.get_learned_conditioning(raw) if encode else raw
        z = self.latents(batch, key=key)
        if not return_first_stage_outputs and not return_original_cond:
            return z, condition
        outputs = self.with_first_stage_outputs(batch, z, condition) if return_first_stage_outputs else [z, condition]
        return [*outputs, raw] if return_original_cond else outputs

    def log_images(
        self: Any,
        batch: Mapping[str, Any],
        N: int = 8,
        n_row: int = 4,
        sample: bool = True,
        ddim_steps: int = 50,
        ddim_eta: float = 1.0,
        *,
        count: int | None = None,
        steps: int | None = None,
        private: bool = False,
    ) -> dict[str, Tensor]:
        """Images for the image logger; see `ldm.models.diffusion.log_images.log_images`.

        ``N`` images in ``ddim_steps`` steps by the lineage's names, ``count`` and ``steps`` by ours. ``n_row`` has no
        effect: rows of diffused and half-denoised images are not drawn.
        """
        count, steps = N if count is None else count, ddim_steps if steps is None else steps
        return log_images(self, batch, count, steps, private, samples=sample, eta=ddim_eta)

    @torch.no_grad()
    def with_first_stage_outputs(self: Any, batch: Mapping[str, Any], z: Tensor, condition: Any) -> list[Any]:
        """[latents, condition, images, reconstructions] of a batch."""
        images = super().get_input(batch, self.first_stage_key)  # type: ignore[misc]
        return [z, condition, images, self.decode_first_stage(z)]


def first_rows(condition: Any, count: int) -> Any:
    """The first ``count`` rows of an encoded condition: a tensor, or a list or dict of tensors."""
    if isinstance(condition, Mapping):
        return {key: first_rows(value, count) for key, value in condition.items()}
    if isinstance(condition, (list, tuple)):
        return [first_rows(value, count) for value in condition]
    return None if condition is None else condition[:count]
