"""The engines that the private-step benchmark compares: from a batch of rows to the sum of clipped gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.privacy.clipping import Clipping, PerRecordClipper

Rows = Mapping[str, Tensor]


def contiguous_inputs(model: nn.Module) -> None:
    """Copy the inputs of trained convolutions into the usual order: Opacus 1.6 reads others by wrong strides."""

    def copy(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].contiguous(), *args[1:])

    for module in model.modules():
        if isinstance(module, nn.Conv2d) and any(parameter.requires_grad for parameter in module.parameters()):
            module.register_forward_pre_hook(copy)


class Engine:
    """``sums(rows)`` gives, by parameter name, the sum over records of gradients clipped to ``bound``."""

    def __init__(self, model: Any, bound: float, copies: int = 1) -> None:
        self.model = model
        self.bound = bound
        self.copies = copies
        self.trained = {name: value for name, value in model.named_parameters() if value.requires_grad}

    def sums(self, rows: Rows) -> dict[str, Tensor]:
        raise NotImplementedError

    def gradients(self) -> dict[str, Tensor]:
        """What is in ``.grad``, which is left empty."""
        found = {name: parameter.grad for name, parameter in self.trained.items()}
        self.model.zero_grad(set_to_none=True)
        return found


class NonPrivate(Engine):
    """The gradient of the mean loss, which nothing is clipped in: the time to compare with."""

    def sums(self, rows: Rows) -> dict[str, Tensor]:
        losses = self.model.per_example_losses(rows)
        (losses.sum() / self.copies).backward()
        return self.gradients()


class Bookkeeping(Engine):
    """The default engine of this project."""

    kind = "bookkeeping"

    def __init__(self, model: Any, bound: float, copies: int = 1) -> None:
        super().__init__(model, bound, copies)
        self.clipper = PerRecordClipper(model, self.trained, Clipping(bound), engine=self.kind)

    def sums(self, rows: Rows) -> dict[str, Tensor]:
        self.clipper.accumulate(self.model.per_example_losses, rows, self.copies)
        return dict(self.clipper.pop_sums())


class Instantiate(Bookkeeping):
    """This project's engine that writes every record's gradient out."""

    kind = "instantiate"


class OpacusHooks(Engine):
    """Opacus: hooks write every record's gradient out; clipping as its optimizer does it."""

    def __init__(self, model: Any, bound: float, copies: int = 1) -> None:
        super().__init__(model, bound, copies)
        from opacus.grad_sample import GradSampleHooks

        contiguous_inputs(model)
        self.hooks = GradSampleHooks(model, strict=False, loss_reduction="sum")

    def sums(self, rows: Rows) -> dict[str, Tensor]:
        self.model.per_example_losses(rows).sum().backward()
        samples = {name: parameter.grad_sample for name, parameter in self.trained.items()}
        norms = torch.stack([sample.flatten(1).norm(dim=1) for sample in samples.values()]).norm(dim=0)
        factors = (self.bound / norms.clamp_min(1e-12)).clamp(max=1.0)
        result = {name: torch.einsum("b,b...->...", factors, sample) for name, sample in samples.items()}
        for parameter in self.trained.values():
            parameter.grad_sample = None
        self.model.zero_grad(set_to_none=True)
        return result


class OpacusGhost(Engine):
    """Opacus: one backward pass for the norms, a second one for the weighted losses."""

    def __init__(self, model: Any, bound: float, copies: int = 1) -> None:
        super().__init__(model, bound, copies)
        from opacus.grad_sample import GradSampleHooksFastGradientClipping

        contiguous_inputs(model)
        self.hooks = GradSampleHooksFastGradientClipping(
            model, strict=False, loss_reduction="sum", max_grad_norm=bound, use_ghost_clipping=True
        )

    def sums(self, rows: Rows) -> dict[str, Tensor]:
        from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

        losses = self.model.per_example_losses(rows)
        # of the optimizer it asks for nothing but zero_grad, between its two backward passes
        DPTensorFastGradientClipping(self.hooks, self.model, losses, loss_reduction="sum").backward()
        return self.gradients()


class VmapGrad(Engine):
    """torch.func: the gradient of one record's loss, vectorised over records."""

    class Loss(nn.Module):
        """A record's loss as a module's forward, for `functional_call`."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.inner = model

        def forward(self, rows: Rows) -> Tensor:
            return self.inner.per_example_losses(rows).mean()

    def __init__(self, model: Any, bound: float, copies: int = 1) -> None:
        super().__init__(model, bound, copies)
        module = self.Loss(model)

        def one(parameters: Mapping[str, Tensor], own: Rows) -> Tensor:
            named = {f"inner.{name}": value for name, value in parameters.items()}
            return functional_call(module, named, (own,))

        self.each = vmap(grad(one), in_dims=(None, 0), randomness="error")

    def sums(self, rows: Rows) -> dict[str, Tensor]:
        detached = {name: parameter.detach() for name, parameter in self.trained.items()}
        folded = {key: value.unflatten(0, (-1, self.copies)) for key, value in rows.items()}
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels would be run record by record
            samples = self.each(detached, folded)
        norms = torch.stack([sample.flatten(1).norm(dim=1) for sample in samples.values()]).norm(dim=0)
        factors = (self.bound / norms.clamp_min(1e-12)).clamp(max=1.0)
        return {name: torch.einsum("b,b...->...", factors, sample) for name, sample in samples.items()}


ENGINES: dict[str, type[Engine]] = {
    "non-private": NonPrivate,
    "bookkeeping": Bookkeeping,
    "instantiate": Instantiate,
    "opacus-hooks": OpacusHooks,
    "opacus-ghost": OpacusGhost,
    "vmap": VmapGrad,
}


def record_gradients(model: Any, rows: Rows, copies: int) -> dict[str, Tensor]:
    """One backward pass a record, the definition that every engine has to meet: (B, ...) by parameter name."""
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    records = len(next(iter(rows.values()))) // copies
    found = []
    for record in range(records):
        own = {key: value[record * copies : (record + 1) * copies] for key, value in rows.items()}
        found.append(torch.autograd.grad(model.per_example_losses(own).mean(), list(trained.values())))
    return {name: torch.stack(parts) for name, parts in zip(trained, zip(*found, strict=True), strict=True)}
