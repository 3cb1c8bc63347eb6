"""Fused optimizers: one pass over a parameter's numbers and its state, where torch has it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

_DEVICES = ("cpu", "cuda")


def fused_option(parameters: Iterable[Tensor], trainer: object = None) -> dict[str, bool]:
    """``{"fused": True}`` for torch's Adam and AdamW, or nothing where such a pass does not exist.

    It takes about a third of the time of torch's default on a CPU, and a few kernels on a GPU. It does not exist for
    other devices or integers, and Lightning cannot clip gradients before it in half precision, so a ``trainer`` that
    clips gets torch's default.
    """
    fitting = all(parameter.is_floating_point() and parameter.device.type in _DEVICES for parameter in parameters)
    return {"fused": True} if fitting and not getattr(trainer, "gradient_clip_val", None) else {}
