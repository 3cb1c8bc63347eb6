"""Shared by the clipping tests: a slow, independent reference, small networks, and the sensitivity measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ldm.privacy.clipping import Clipping, PerRecordClipper

Rows = Mapping[str, Tensor]
Call = Callable[..., Tensor]


def squared_error(call: Call, rows: Rows) -> Tensor:
    """One loss a row: squared error of ``call(x, ...)`` against ``target``, (R,)."""
    inputs = [value for key, value in rows.items() if key != "target"]
    return (call(*inputs).float() - rows["target"]).square().flatten(1).sum(1)


def loss_of(module: nn.Module) -> Callable[[Rows], Tensor]:
    return lambda rows: squared_error(module, rows)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def reference_gradients(module: nn.Module, rows: Rows, multiplicity: int = 1) -> dict[str, Tensor]:
    """Per-record gradients (B, *shape) of the mean loss over copies, by torch.func: no code of the engines."""
    trained = {name: parameter.detach() for name, parameter in trainable(module).items()}
    folded = {key: value.unflatten(0, (-1, multiplicity)) for key, value in rows.items()}

    def record_loss(parameters: Mapping[str, Tensor], own: Rows) -> Tensor:
        return squared_error(lambda *inputs: functional_call(module, parameters, inputs), own).mean()

    return vmap(grad(record_loss), in_dims=(None, 0), randomness="error")(trained, folded)


def reference_sum(gradients: Mapping[str, Tensor], bound: float) -> dict[str, Tensor]:
    """Flat clipping in float64, written out."""
    squares = sum(gradient.double().flatten(1).square().sum(1) for gradient in gradients.values())
    factors = (bound / squares.sqrt()).clamp(max=1.0)
    return {name: torch.einsum("b,b...->...", factors, gradient.double()) for name, gradient in gradients.items()}


def clipped_sum(
    module: nn.Module, rows: Rows, clipping: Clipping, engine: str = "bookkeeping", multiplicity: int = 1
) -> dict[str, Tensor]:
    clipper = PerRecordClipper(module, trainable(module), clipping, engine)
    clipper.accumulate(loss_of(module), rows, multiplicity)
    return dict(clipper.pop_sums())


def flat(sums: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([sums[name].double().flatten() for name in sorted(sums)])


def relative_difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    assert sorted(first) == sorted(second)
    return float((flat(first) - flat(second)).norm() / flat(second).norm().clamp_min(1e-12))


def median_norm(gradients: Mapping[str, Tensor]) -> float:
    """A bound that clips about half of the records."""
    return float(torch.cat([g.flatten(1) for g in gradients.values()], 1).norm(dim=1).median())


class MixedNet(nn.Module):
    """Every kind of layer once, in UNet order; ``token`` is a class index. Output (R, 4, 12)."""

    def __init__(self, checkpoint: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.mix = nn.Conv2d(8, 8, 3, padding="same", groups=2, dilation=2)
        self.inward = nn.Conv2d(8, 6, 1)
        self.layer_norm = nn.LayerNorm(6)
        self.gate = nn.Linear(6, 5)
        self.classes = nn.Embedding(7, 5)
        self.out = nn.Conv1d(5, 4, 3, padding=1)
        self.checkpoint = checkpoint

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        hidden = self.mix(torch.relu(self.norm(self.stem(x))))
        # A transposed view: its memory is not laid out as the convolution's output would suggest.
        hidden = self.inward(hidden).flatten(2).transpose(1, 2)
        if self.checkpoint:
            hidden = torch.utils.checkpoint.checkpoint(self._middle, hidden, token, use_reentrant=False)
        else:
            hidden = self._middle(hidden, token)
        return self.out(hidden.transpose(1, 2))

    def _middle(self, hidden: Tensor, token: Tensor) -> Tensor:
        return torch.tanh(self.gate(self.layer_norm(hidden))) + self.classes(token)[:, None]


class ProjectionsNet(nn.Module):
    """Layers on four positions, the first widening, three on one input: norms are taken together. Rows as MixedNet."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(24, 32)
        self.query, self.key, self.value = (nn.Linear(32, 16) for _ in range(3))
        self.out = nn.Linear(16, 12)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        hidden = torch.tanh(self.lift(x.flatten(1).unflatten(1, (4, 24))))
        scores = (self.query(hidden) @ self.key(hidden).transpose(1, 2)).softmax(2)
        return self.out(scores @ self.value(hidden))


def mixed_rows(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(count, 2, 8, 6, generator=generator),
        "token": torch.randint(0, 7, (count,), generator=generator),
        "target": torch.randn(count, 4, 12, generator=generator),
    }
