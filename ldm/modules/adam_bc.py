"""`AdamBC`: Adam with a second moment corrected for the bias of the DP noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError


class AdamBC(torch.optim.Optimizer):
    """DP-AdamBC (Tang, Shpilevskiy and Lecuyer 2024, arXiv 2312.14334, algorithm 1).

    A noised gradient is g + n with n of known variance ``noise_variance``; Adam's second moment then estimates g² +
    noise_variance, and dividing by its root gives all coordinates nearly equal steps. Here the step is lr · m /
    sqrt(max(v - noise_variance, floor²)), with the usual corrections for the start. ``floor``: smallest denominator, in
    units of the gradient; None takes sqrt(noise_variance) / 10 or 1e-8, whichever is larger. It bounds the steps of
    coordinates that contain only noise. The correction uses only public constants and noised gradients, so it costs no
    privacy. Raises UserError for numbers out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        noise_variance: float = 0.0,
        floor: float | None = None,
    ):
        if lr < 0 or noise_variance < 0 or not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"AdamBC: lr {lr}, noise_variance {noise_variance}, betas {tuple(betas)} are out of range")
        smallest = max(noise_variance**0.5 / 10, 1e-8) if floor is None else float(floor)
        if not smallest > 0:
            raise UserError(f"AdamBC: floor {floor} must be above 0, it is what steps are divided by at least")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "noise_variance": noise_variance, "floor": smallest})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; parameters without a gradient do not change."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                count = int(state["step"])
                state["exp_avg"].lerp_(parameter.grad, 1 - first)
                state["exp_avg_sq"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
                mean = state["exp_avg"] / (1 - first**count)
                square = state["exp_avg_sq"] / (1 - second**count) - group["noise_variance"]
                parameter.sub_(group["lr"] * mean / square.clamp_(min=group["floor"] ** 2).sqrt_())
        return loss
