"""Small helpers under the names that the original latent diffusion code imports."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ldm.config import get_obj_from_str as _get_obj_from_str
from ldm.config import instantiate_from_config as _instantiate_from_config
from ldm.config import to_plain

__all__ = [
    "count_params",
    "default",
    "exists",
    "get_obj_from_str",
    "instantiate_from_config",
    "isimage",
    "ismap",
    "log_txt_as_img",
    "mean_flat",
]

#: Values of a condition stage that build no object.
WORDS = ("__is_first_stage__", "__is_unconditional__")

T = TypeVar("T")


def instantiate_from_config(config: Any) -> Any:
    """Build the object of ``{target, params}``; a ``model`` section may also contain ``base_learning_rate``.

    None for the values in `WORDS`. Raises UserError as `ldm.config.instantiate_from_config`.
    """
    if isinstance(config, str) and config in WORDS:
        return None
    plain = to_plain(config)
    if isinstance(plain, Mapping):
        plain = {key: value for key, value in plain.items() if key != "base_learning_rate"}
    return _instantiate_from_config(plain)


def get_obj_from_str(string: str, reload: bool = False) -> Any:
    """The object of a dotted name. ``reload`` is accepted and ignored, because a module is loaded once."""
    return _get_obj_from_str(string)


def exists(x: object) -> bool:
    """Whether ``x`` is not None."""
    return x is not None


def default(val: T | None, d: T | Callable[[], T]) -> T:
    """``val``, or ``d`` when ``val`` is None; if ``d`` is a function, it is called."""
    if val is not None:
        return val
    return d() if inspect.isfunction(d) else d  # type: ignore[return-value]


def ismap(x: object) -> bool:
    """Whether ``x`` is a batch of maps (B, C, H, W) with more than three channels."""
    return isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] > 3


def isimage(x: object) -> bool:
    """Whether ``x`` is a batch of images (B, C, H, W) with one or three channels."""
    return isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] in (1, 3)


def mean_flat(tensor: Tensor) -> Tensor:
    """The mean of each example over all dimensions but the first, (B,)."""
    return tensor.mean(dim=list(range(1, tensor.ndim)))


def count_params(model: nn.Module, verbose: bool = False) -> int:
    """Number of parameters of a module; ``verbose`` prints it in millions."""
    total = sum(parameter.numel() for parameter in model.parameters())
    if verbose:
        print(f"{type(model).__name__} has {total * 1e-6:.2f} M params.")
    return total


def log_txt_as_img(wh: tuple[int, int], xc: Sequence[str], size: int = 10) -> Tensor:
    """Captions drawn as black text on white images (B, 3, height, width) in [-1, 1]; ``wh`` is (width, height).

    The font is Pillow's default font, ``size`` pixels high; lines may break inside words.
    """
    font = ImageFont.load_default(size)
    letters = max(1, int(40 * (wh[0] / 256)))
    drawn = []
    for caption in xc:
        image = Image.new("RGB", wh, color="white")
        lines = "\n".join(caption[start : start + letters] for start in range(0, len(caption), letters))
        ImageDraw.Draw(image).text((0, 0), lines, fill="black", font=font)
        drawn.append(np.array(image).transpose(2, 0, 1) / 127.5 - 1.0)
    return torch.tensor(np.stack(drawn)) if drawn else torch.empty(0, 3, wh[1], wh[0])
