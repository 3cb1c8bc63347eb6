"""Schedules, DDIM time grids and small layer helpers shared by the diffusion networks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from ldm.errors import UserError, nearest

log = logging.getLogger(__name__)

GROUPS = 32
BETA_SCHEDULES = ("linear", "cosine", "sqrt_linear", "sqrt")
DDIM_METHODS = ("uniform", "quad")

_Module = TypeVar("_Module", bound=nn.Module)


def make_beta_schedule(
    schedule: str,
    n_timestep: int,
    linear_start: float = 1e-4,
    linear_end: float = 2e-2,
    cosine_s: float = 8e-3,
) -> np.ndarray:
    """Noise variances beta_t of a diffusion with ``n_timestep`` steps, float64, shape (n_timestep,).

    ``linear`` is linear in sqrt(beta) (the latent-diffusion convention), ``sqrt_linear`` linear in beta, ``sqrt`` its
    square root, ``cosine`` follows Nichol & Dhariwal 2021 (arXiv 2102.09672, eq. 17). Raises UserError for an unknown
    name or a step count below 1.
    """
    if n_timestep < 1:
        raise UserError(f"timesteps is {n_timestep}; a diffusion needs at least 1 step, 1000 is usual")
    if schedule == "linear":
        return np.linspace(linear_start**0.5, linear_end**0.5, n_timestep, dtype=np.float64) ** 2
    if schedule == "sqrt_linear":
        return np.linspace(linear_start, linear_end, n_timestep, dtype=np.float64)
    if schedule == "sqrt":
        return np.linspace(linear_start, linear_end, n_timestep, dtype=np.float64) ** 0.5
    if schedule == "cosine":
        progress = np.arange(n_timestep + 1, dtype=np.float64) / n_timestep
        alpha_bar = np.cos((progress + cosine_s) / (1 + cosine_s) * np.pi / 2) ** 2
        return np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, 0.999)
    raise UserError(
        f"beta_schedule {schedule!r} is unknown; choose one of {', '.join(BETA_SCHEDULES)}"
        f"{nearest(schedule, BETA_SCHEDULES)}"
    )


def make_ddim_timesteps(
    ddim_discr_method: str, num_ddim_timesteps: int, num_ddpm_timesteps: int, verbose: bool = False
) -> np.ndarray:
    """Exactly S strictly increasing time indices within [0, T-1], int64, shape (S,), for any 1 <= S <= T.

    ``uniform``: stride T/S plus one, which is the grid of Song et al. 2021 (arXiv 2010.02502, appendix D.2) as used by
    latent diffusion where S divides T; the stride is rounded per index otherwise. S = T uses every index. ``quad``:
    squares of a uniform grid up to 0.8 T, moved apart where rounding gives equal neighbours.
    Raises UserError for an unknown method or for S outside [1, T].
    """
    steps, total = num_ddim_timesteps, num_ddpm_timesteps
    if not 1 <= steps <= total:
        raise UserError(
            f"{steps} DDIM steps asked of a diffusion with {total} steps; choose a number from 1 to {total}, e.g. 200"
        )
    if ddim_discr_method == "uniform":
        # The full grid starts at 0, because the shift by one would move its last index out of range.
        timesteps = np.arange(steps, dtype=np.int64) * total // steps + (1 if steps < total else 0)
    elif ddim_discr_method == "quad":
        squares = (np.linspace(0, np.sqrt(total * 0.8), steps) ** 2).astype(np.int64) + 1
        timesteps = _strictly_increasing(squares, total)
    else:
        raise UserError(
            f"DDIM discretisation {ddim_discr_method!r} is unknown; choose one of {', '.join(DDIM_METHODS)}"
            f"{nearest(ddim_discr_method, DDIM_METHODS)}"
        )
    if verbose:
        log.info("DDIM timesteps: %s", timesteps)
    return timesteps


def _strictly_increasing(values: np.ndarray, total: int) -> np.ndarray:
    """Strictly increasing indices below ``total``: moves duplicates up, then limits each index to leave room above."""
    rank = np.arange(len(values))
    pushed = np.maximum.accumulate(values - rank) + rank
    return np.minimum(pushed, total - len(values) + rank)


def make_ddim_sampling_parameters(
    alphacums: np.ndarray, ddim_timesteps: np.ndarray, eta: float, verbose: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """DDIM tables ``(sigmas, alphas, alphas_prev)``, float64, each (S,), from the cumulative products (T,).

    sigma_t = eta * sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev)) (Song et al. 2021, eq. 16); ``eta`` 0 is
    deterministic, 1 is ancestral sampling. The step before the first index uses alphacums[0].
    """
    # 1 - a / a_prev is a small difference, for which float32 would lose half of the digits near t = 0.
    alphacums = np.asarray(alphacums, dtype=np.float64)
    alphas = alphacums[ddim_timesteps]
    alphas_prev = np.concatenate([alphacums[:1], alphacums[ddim_timesteps[:-1]]])
    sigmas = eta * np.sqrt((1 - alphas_prev) / (1 - alphas) * (1 - alphas / alphas_prev))
    if verbose:
        log.info("DDIM alphas %s, previous %s, sigmas %s (eta %s)", alphas, alphas_prev, sigmas, eta)
    return sigmas, alphas, alphas_prev


def extract_into_tensor(a: Tensor, t: Tensor, x_shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Pick a[t] for every batch entry: a (T,), t (B,) int64 -> (B, 1, ..., 1) with as many axes as ``x_shape``."""
    return a.gather(-1, t).reshape(t.shape[0], *((1,) * (len(x_shape) - 1)))


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000, repeat_only: bool = False) -> Tensor:
    """Sinusoidal embedding of times (B,) -> (B, dim) float32, cosines first (Ho et al. 2020, arXiv 2006.11239).

    ``repeat_only`` copies the raw time into every column instead. An odd ``dim`` ends with a zero column.
    """
    if repeat_only:
        return timesteps[:, None].expand(-1, dim)
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(max_period) * exponents / half)
    angles = timesteps[:, None].float() * frequencies[None]
    embedding = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
    return nn.functional.pad(embedding, (0, dim % 2))


def checkpoint(function: Callable[..., Tensor], inputs: tuple[Tensor | None, ...], enabled: bool) -> Tensor:
    """``function(*inputs)``; when ``enabled`` and gradients are on, activations are recomputed in the backward pass."""
    if enabled and torch.is_grad_enabled():
        return torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


def normalization(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups and eps 1e-5; statistics are float32 inside the kernel for half-precision inputs.

    Raises UserError when ``channels`` is no multiple of 32.
    """
    if channels % GROUPS:
        raise UserError(
            f"a layer has {channels} channels, but group norm needs a multiple of {GROUPS}; choose model_channels "
            f"and channel_mult so that each product is one, e.g. {-(-channels // GROUPS) * GROUPS}"
        )
    return nn.GroupNorm(GROUPS, channels)


def zero_module(module: _Module) -> _Module:
    """Set every parameter of ``module`` to zero and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def conv_nd(
    dims: int, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
) -> nn.Module:
    """Convolution over ``dims`` (1, 2 or 3) axes."""
    return _by_dims(dims, (nn.Conv1d, nn.Conv2d, nn.Conv3d))(
        in_channels, out_channels, kernel_size, stride=stride, padding=padding
    )


def avg_pool_nd(dims: int, kernel_size: int, stride: int | None = None) -> nn.Module:
    """Average pooling over ``dims`` (1, 2 or 3) axes."""
    return _by_dims(dims, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d))(kernel_size, stride=stride)


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A plain linear layer, under the lineage's name."""
    return nn.Linear(in_features, out_features, bias=bias)


def _by_dims(dims: int, layers: tuple[type[nn.Module], ...]) -> Callable[..., nn.Module]:
    if not 1 <= dims <= len(layers):
        raise UserError(f"dims is {dims}; signals have 1, 2 or 3 axes, images have dims 2")
    return layers[dims - 1]


def noise_like(
    shape: tuple[int, ...] | torch.Size,
    device: torch.device | str,
    repeat: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Standard normal noise of ``shape`` (B, ...); ``repeat`` gives every batch entry the same draw."""
    if not repeat:
        return torch.randn(shape, device=device, generator=generator)
    return torch.randn((1, *shape[1:]), device=device, generator=generator).repeat(shape[0], *((1,) * (len(shape) - 1)))
