"""Catching the input and the output gradient of every layer that owns private parameters, in one backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.privacy.layers import LayerRule, rule_for

Receiver = Callable[["Layer", Tensor, Tensor], None]


@dataclass(frozen=True)
class Layer:
    """A module with private parameters of its own; ``names`` maps its own parameter names to their full names."""

    path: str
    module: nn.Module
    rule: LayerRule
    names: Mapping[str, str]


def find_layers(
    module: nn.Module, parameters: Mapping[str, nn.Parameter], rules: Mapping[type[nn.Module], LayerRule]
) -> list[Layer]:
    """The layers that own ``parameters``; a parameter tied into several layers is listed with each of them.

    Raises UserError naming the first parameter that no rule covers, or whose layer has an option that rules it out.
    """
    full_names = {id(parameter): name for name, parameter in parameters.items()}
    layers = []
    for path, owner in module.named_modules():
        own = {local: full_names[id(p)] for local, p in owner.named_parameters(recurse=False) if id(p) in full_names}
        if own:
            layers.append(Layer(path, owner, _rule_of(path, owner, own, rules), own))
    return layers


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
    reason = rule.refusal(owner)
    if reason is not None:
        raise UserError(f"layer {path!r} ({kind}) cannot be clipped per record: {reason}")
    return rule


class Capture:
    """Context manager: while it is open, every use of ``layers`` in a forward pass is tapped.

    A tap is an identity in the autograd graph. When the backward pass reaches it, ``receive(layer, inputs, grad)`` is
    called. The tap saves the input the way autograd saves tensors, so activation checkpointing recomputes it, and
    asking for the gradient of ``anchor`` runs the backward pass through all taps without computing weight gradients.
    ``uses`` counts the taps of the forward pass per layer path. All hooks are gone when the context closes.
    """

    def __init__(self, layers: Sequence[Layer], rows: int, receive: Receiver, device: torch.device) -> None:
        self.uses: Counter[str] = Counter()
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self._layers = layers
        self._rows = rows
        self._receive = receive
        self._in_backward = False
        self._hooks = ExitStack()

    def __enter__(self) -> Capture:
        for layer in self._layers:
            handle = layer.module.register_forward_hook(self._hook(layer), with_kwargs=True)
            self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def backward(self, total: Tensor) -> None:
        """Run the backward pass of the scalar ``total`` through every tap."""
        # Checkpointed regions run forward again from here on; their taps are second sights of uses already counted.
        self._in_backward = True
        torch.autograd.grad(total, self.anchor, allow_unused=True)

    def _hook(self, layer: Layer) -> Callable[..., Tensor | None]:
        def receive(inputs: Tensor, grad: Tensor) -> None:
            self._receive(layer, inputs, grad)

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            if not (torch.is_grad_enabled() and output.requires_grad):
                return None
            inputs: Tensor = args[0] if args else kwargs["input"]
            if inputs.shape[0] != self._rows or output.shape[0] != self._rows:
                raise UserError(
                    f"layer {layer.path!r} was given an input of shape {tuple(inputs.shape)}, but the first axis must "
                    f"be the {self._rows} rows of the batch; keep rows first (expand shared inputs) or freeze the layer"
                )
            if not self._in_backward:
                self.uses[layer.path] += 1
            tapped: Tensor = _Tap.apply(output, inputs.detach(), self.anchor, receive)  # type: ignore[no-untyped-call]
            return tapped

        return hook


class _Tap(torch.autograd.Function):
    """Identity on the layer's output that hands (input, output gradient) to a receiver in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, inputs: Tensor, anchor: Tensor, receive: Callable[[Tensor, Tensor], None]
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.receive = receive
        # Detached rather than returned as it is: a view made inside a Function could not be changed in place later.
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inputs,) = ctx.saved_tensors
        ctx.receive(inputs, grads[0])
        return grads[0], None, None, None
