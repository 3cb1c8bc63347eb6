"""Captures the input and the output gradient of every layer with private parameters, in one backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ldm.errors import UserError
from ldm.privacy.engines.layers import LayerRule, rule_for

# A use is small up to this many numbers in its input and output (4 MB in fp32 on a CPU, 64 MB on a GPU). A tap costs
# about 0.2 ms during the backward pass (cold Python caches); for small uses, asking autograd for the gradient
# afterwards is cheaper, and uses of one shape can then be handled together.
_FEW_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 24}


Bundle = tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """A module with private parameters of its own.

    ``bundles`` maps groups of its own parameter names to their full names. A bundle is measured and summed in one go; a
    parameter that is tied into several layers is a bundle of its own.
    """

    path: str
    module: nn.Module
    rule: LayerRule
    bundles: Mapping[tuple[str, ...], Bundle]


def find_layers(
    module: nn.Module, parameters: Mapping[str, nn.Parameter], rules: Mapping[type[nn.Module], LayerRule]
) -> list[Layer]:
    """The layers that own ``parameters``; a parameter tied into several layers is listed with each of them.

    Raises UserError naming the first parameter that no rule covers, or whose layer has an unsupported option or a rule
    for another kind of layer.
    """
    full_names = {id(parameter): name for name, parameter in parameters.items()}
    owners = {}
    for path, owner in module.named_modules():
        own = {local: full_names[id(p)] for local, p in owner.named_parameters(recurse=False) if id(p) in full_names}
        if own:
            owners[path] = (owner, _rule_of(path, owner, own, rules), own)
    uses = Counter(full for _, _, own in owners.values() for full in own.values())
    tied = {full for full, count in uses.items() if count > 1}
    return [Layer(path, owner, rule, _bundles(own, tied)) for path, (owner, rule, own) in owners.items()]


def _bundles(own: Mapping[str, str], tied: Set[str]) -> dict[tuple[str, ...], tuple[str, ...]]:
    bundles: dict[tuple[str, ...], tuple[str, ...]] = {(local,): (full,) for local, full in own.items() if full in tied}
    together = {local: full for local, full in own.items() if full not in tied}
    if together:
        bundles[tuple(together)] = tuple(together.values())
    return bundles


def _rule_of(
    path: str, owner: nn.Module, own: Mapping[str, str], rules: Mapping[type[nn.Module], LayerRule]
) -> LayerRule:
    kind = type(owner).__name__
    rule = rule_for(owner, rules)
    uncovered = [full for local, full in own.items() if rule is None or local not in rule.names]
    if rule is None or uncovered:
        known = ", ".join(sorted(known.__name__ for known in rules))
        raise UserError(
            f"private parameter {uncovered[0]!r} belongs to a {kind} that no layer rule covers (rules: {known}); "
            f"freeze it, pass a rule for {kind}, or use engine='naive'"
        )
    if not isinstance(owner, rule.kinds):
        fitting = " or ".join(fit.__name__ for fit in rule.kinds)
        raise UserError(
            f"layer {path!r} ({kind}) was given {type(rule).__name__}, for {fitting}; correct the rules mapping"
        )
    reason = rule.refusal(owner)
    if reason is not None:
        raise UserError(f"layer {path!r} ({kind}) cannot be clipped per record: {reason}")
    return rule


@dataclass(frozen=True)
class Use:
    """One use of a layer: its input, and the gradient of its output in any memory layout."""

    layer: Layer
    inputs: Tensor
    grad: Tensor


class Receiver(Protocol):
    """Takes the uses of layers in the backward pass."""

    def enter(self, use: Use) -> None:
        """One use, its gradient in the layout of its rule."""

    def enter_small(self, uses: list[Use]) -> None:
        """All small uses, after the backward pass; the list may be emptied, to free memory."""


class Capture:
    """Context manager: while it is open, every use of ``layers`` in a forward pass is captured.

    For a small use, the input is kept and autograd returns the output gradient; after the backward pass, all of them go
    to ``receiver.enter_small``. A larger use gets a tap, an identity in the autograd graph that calls
    ``receiver.enter`` as soon as the backward pass reaches it, so that its memory is freed early. A tap saves the input
    as autograd saves tensors, so activation checkpointing recomputes it. The backward pass asks only for the gradients
    of the small uses' outputs and of ``anchor``, so it computes no weight gradients.

    ``uses`` counts the uses per layer path, including those that do not reach the loss. Closing the context removes all
    hooks.
    """

    def __init__(self, layers: Sequence[Layer], rows: int, receiver: Receiver, device: torch.device) -> None:
        self.uses: Counter[str] = Counter()
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self._layers = layers
        self._rows = rows
        self._receiver = receiver
        self._few = _FEW_NUMBERS.get(device.type, _FEW_NUMBERS["cpu"])
        self._small: list[_SmallUse] = []
        self._forward = True  # False in the backward pass, where activation checkpointing runs forward passes again
        self._hooks = ExitStack()

    def __enter__(self) -> Capture:
        for layer in self._layers:
            handle = layer.module.register_forward_hook(self._hook(layer), with_kwargs=True)
            self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def backward(self, total: Tensor) -> None:
        """Run the backward pass of the scalar ``total`` through every use."""
        self._forward = False
        uses = self._small[::-1]
        edges = [get_gradient_edge(self.anchor), *(use.edge for use in uses)]
        _, *grads = torch.autograd.grad(total, edges, allow_unused=True)
        self._small.clear()
        reached = [(use, grad) for use, grad in zip(uses, grads, strict=True) if grad is not None]
        del uses, grads
        with torch.no_grad():
            small = [Use(use.layer, use.checked_inputs(), grad.reshape(use.shape)) for use, grad in reached]
            del reached  # so that the receiver alone holds them
            self._receiver.enter_small(small)

    def _hook(self, layer: Layer) -> Callable[..., Tensor | None]:
        def receive(inputs: Tensor, grad: Tensor) -> Tensor:
            # The layer's own backward pass gets the same copy and need not make another.
            grad = layer.rule.gradient_layout(grad)
            self._receiver.enter(Use(layer, inputs, grad))
            return grad

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            if not (torch.is_grad_enabled() and output.requires_grad):
                return None
            inputs: Tensor = args[0] if args else kwargs["input"]
            if inputs.shape[0] != self._rows or output.shape[0] != self._rows:
                raise UserError(
                    f"layer {layer.path!r} was given an input of shape {tuple(inputs.shape)}, but the first axis must "
                    f"be the {self._rows} rows of the batch; keep rows first (expand shared inputs) or freeze the layer"
                )
            self.uses[layer.path] += self._forward
            edge = _edge(output) if inputs.numel() + output.numel() <= self._few else None
            if edge is not None:
                if self._forward:
                    self._small.append(_SmallUse(layer, inputs.detach(), inputs._version, edge, output.shape))
                return None
            tapped: Tensor = _Tap.apply(output, inputs.detach(), self.anchor, receive)  # type: ignore[no-untyped-call]
            return tapped

        return hook


@dataclass(frozen=True)
class _SmallUse:
    """One small use of a layer; autograd returns its output gradient.

    ``version`` is autograd's version counter of ``inputs`` when the layer used them, ``shape`` the shape of the output.
    """

    layer: Layer
    inputs: Tensor
    version: int
    edge: GradientEdge
    shape: torch.Size

    def checked_inputs(self) -> Tensor:
        """The inputs; raises UserError when they were overwritten since (autograd does not check them)."""
        if self.inputs._version != self.version:
            raise UserError(
                f"the input of layer {self.layer.path!r} was changed in place after the layer used it, so its gradient "
                "is lost; change a copy instead"
            )
        return self.inputs


def _edge(output: Tensor) -> GradientEdge | None:
    """The edge of the autograd graph with the gradient of ``output``, perhaps in another shape; None if uncertain.

    An in-place change of a view replaces the view's edge, but not its base tensor's (``nn.Linear`` returns a view of a
    product).
    """
    base = output._base
    if base is None:
        return get_gradient_edge(output)
    whole = base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous()
    return get_gradient_edge(base) if whole and base.requires_grad else None


class _Tap(torch.autograd.Function):
    """Identity on the layer's output that hands (input, output gradient) to a receiver in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, inputs: Tensor, anchor: Tensor, receive: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.receive = receive
        # Detached rather than returned as it is: a view made inside a Function could not be changed in place later.
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inputs,) = ctx.saved_tensors
        return ctx.receive(inputs, grads[0]), None, None, None
