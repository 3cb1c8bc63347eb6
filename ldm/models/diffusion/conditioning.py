"""`DiffusionWrapper`: passes the condition to the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.config import instantiate_from_config
from ldm.errors import UserError

CONDITIONING_KEYS = (None, "concat", "crossattn", "hybrid", "adm")


class DiffusionWrapper(nn.Module):
    """Passes a condition to the network by the method that ``conditioning_key`` names.

    ``concat`` joins c_concat to the channels, ``crossattn`` passes c_crossattn (B, tokens, width) as context,
    ``hybrid`` does both, ``adm`` passes a class vector, None passes nothing.
    """

    def __init__(self, diff_model_config: Any, conditioning_key: str | None):
        super().__init__()
        if conditioning_key not in CONDITIONING_KEYS:
            known = ", ".join(str(key) for key in CONDITIONING_KEYS)
            raise UserError(f"conditioning_key: {conditioning_key!r} is unknown; choose one of {known}")
        self.diffusion_model = instantiate_from_config(diff_model_config)
        self.conditioning_key = conditioning_key

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Sequence[Tensor] | None = None,
        c_crossattn: Sequence[Tensor] | None = None,
    ) -> Tensor:
        key = self.conditioning_key
        if key is None:
            return self.diffusion_model(x, t)
        if key in ("concat", "hybrid"):
            x = torch.cat([x, *_given("c_concat", c_concat)], dim=1)
        if key == "concat":
            return self.diffusion_model(x, t)
        context = _given("c_crossattn", c_crossattn)
        if key == "adm":
            return self.diffusion_model(x, t, y=context[0])
        return self.diffusion_model(x, t, context=torch.cat(list(context), dim=1))


def _given(name: str, condition: Sequence[Tensor] | None) -> Sequence[Tensor]:
    if condition is None:
        raise TypeError(f"the conditioning of this network needs {name}")
    return condition
