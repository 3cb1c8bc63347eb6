"""Linear and convolution layers with a low-rank path beside a frozen weight.

An adapted layer keeps its weight and bias under their plain names, so that a checkpoint of the plain network loads into
it and the other way round. The two factors are ordinary layers, ``lora_A`` (to ``rank`` channels) and ``lora_B``
(back), so the per-record clipping rules for linear layers and convolutions apply to them. Weights are merged only by
:meth:`Adapter.merged`.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.modules.lora.config import INITS


class Adapter(nn.Module):
    """Mixin of the adapted layers; precedes the extended layer class in the bases."""

    weight: Any
    bias: Any
    lora_A: Any
    lora_B: Any
    scaling: float

    @property
    def rank(self) -> int:
        """The inner width r."""
        return int(self.lora_A.weight.shape[0])

    def low_rank(self, x: Tensor) -> Tensor:
        """s B A x, in the shape of the layer's output; the scaling is applied to the narrow inner tensor."""
        narrow = self.lora_A(x)
        output: Tensor = self.lora_B(narrow if self.scaling == 1.0 else narrow * self.scaling)
        return output

    def merged(self) -> nn.Module:
        """A plain layer with the same output and its own merged weight."""
        raise NotImplementedError

    @torch.no_grad()
    def delta(self) -> Tensor:
        """s B A in the shape of the weight, fp32."""
        return low_rank_change(self.lora_A.weight, self.lora_B.weight, self.scaling).reshape(self.weight.shape)

    def _start(self, rank: int, scaling: float, init: str) -> None:
        if init not in INITS:
            raise UserError(f"the LoRA init {init!r} is unknown; choose one of {', '.join(INITS)}")
        self.scaling = scaling
        down, up = self.lora_A.weight, self.lora_B.weight
        if init == "gaussian":
            nn.init.normal_(down, std=1.0 / rank)
        else:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5.0))
        nn.init.zeros_(up)


class AdaptedLinear(Adapter, nn.Linear):
    """``nn.Linear`` with a low-rank path; takes over the parameters of ``base``."""

    def __init__(self, base: nn.Linear, rank: int, scaling: float = 1.0, init: str = "gaussian") -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        _take_over(self, base)
        options: dict[str, Any] = {"bias": False, "device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_A = nn.Linear(base.in_features, rank, **options)
        self.lora_B = nn.Linear(rank, base.out_features, **options)
        self._start(rank, scaling, init)

    def forward(self, x: Tensor) -> Tensor:
        return nn.Linear.forward(self, x) + self.low_rank(x)

    def merged(self) -> nn.Linear:
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        return _with_weights(plain, self)


class _AdaptedConv(Adapter):
    """Shared parts of the 1-D and 2-D convolutions."""

    def _adapt(self, base: nn.Conv1d | nn.Conv2d, rank: int, scaling: float, init: str) -> None:
        if base.groups != 1 or base.transposed:
            raise UserError(
                f"a convolution in {base.groups} groups cannot have an adapter; leave it out of the targets"
            )
        _take_over(self, base)
        options: dict[str, Any] = {"bias": False, "device": base.weight.device, "dtype": base.weight.dtype}
        kind = nn.Conv1d if isinstance(base, nn.Conv1d) else nn.Conv2d
        self.lora_A = kind(**{**_options(base), "out_channels": rank, **options})
        self.lora_B = kind(rank, base.out_channels, 1, **options)
        self._start(rank, scaling, init)


class AdaptedConv1d(_AdaptedConv, nn.Conv1d):
    """``nn.Conv1d`` with a low-rank path; takes over the parameters of ``base``."""

    def __init__(self, base: nn.Conv1d, rank: int, scaling: float = 1.0, init: str = "gaussian") -> None:
        super().__init__(**_options(base), device="meta")
        self._adapt(base, rank, scaling, init)

    def forward(self, x: Tensor) -> Tensor:
        return nn.Conv1d.forward(self, x) + self.low_rank(x)

    def merged(self) -> nn.Conv1d:
        return _with_weights(nn.Conv1d(**_options(self), device="meta"), self)


class AdaptedConv2d(_AdaptedConv, nn.Conv2d):
    """``nn.Conv2d`` with a low-rank path; takes over the parameters of ``base``."""

    def __init__(self, base: nn.Conv2d, rank: int, scaling: float = 1.0, init: str = "gaussian") -> None:
        super().__init__(**_options(base), device="meta")
        self._adapt(base, rank, scaling, init)

    def forward(self, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, x) + self.low_rank(x)

    def merged(self) -> nn.Conv2d:
        return _with_weights(nn.Conv2d(**_options(self), device="meta"), self)


Layer = TypeVar("Layer", bound=nn.Module)

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)


def adapt(base: nn.Module, rank: int, scaling: float = 1.0, init: str = "gaussian") -> nn.Module:
    """An adapted layer in place of ``base``, with the same parameters, device, dtype and mode.

    Its output equals that of ``base`` until B leaves zero. Raises UserError for other kinds of layers.
    """
    kinds: dict[type, Any] = {nn.Linear: AdaptedLinear, nn.Conv1d: AdaptedConv1d, nn.Conv2d: AdaptedConv2d}
    if type(base) not in kinds:
        raise UserError(f"a {type(base).__name__} cannot have an adapter; Linear, Conv1d and Conv2d layers can")
    layer: nn.Module = kinds[type(base)](base, rank, scaling, init)
    return layer.train(base.training)


def low_rank_change(down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """s B A of factors A (r, in, ...) and B (out, r, ...) as a matrix (out, in * positions of A), fp32."""
    return scaling * (up.float().flatten(1) @ down.float().flatten(1))


def _take_over(layer: nn.Module, base: nn.Module) -> None:
    layer.weight, layer.bias = base.weight, base.bias


def _with_weights(plain: Layer, layer: Adapter) -> Layer:
    merged = (layer.weight.detach().float() + layer.delta()).to(layer.weight.dtype)
    plain.weight = nn.Parameter(merged, requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return plain.train(layer.training)


def _options(base: nn.Conv1d | nn.Conv2d) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {**{name: getattr(base, name) for name in names}, "bias": base.bias is not None}
