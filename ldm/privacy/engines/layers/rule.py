"""The rule of a layer: per-record gradients of its parameters from its input and output gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence

from torch import Tensor, nn

from ldm.privacy.engines.layers.contributions import Contribution


class LayerRule(ABC):
    """Per-record gradients of one kind of layer.

    ``names`` are the layer's own parameters that the rule covers, ``kinds`` the layer classes it supports. ``methods``
    are methods of the class; the rule is wrong for a subclass that overrides one of them.
    """

    kinds: tuple[type[nn.Module], ...] = (nn.Module,)
    names: frozenset[str] = frozenset({"weight", "bias"})
    methods: tuple[str, ...] = ("forward",)

    def refusal(self, module: nn.Module) -> str | None:
        """The reason why this layer cannot be clipped per record (one of its options), or None."""
        return None

    def gradient_layout(self, grad: Tensor) -> Tensor:
        """The output gradient in the memory layout that this rule and the layer's own backward pass use."""
        return grad

    @abstractmethod
    def contribution(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Sequence[str]
    ) -> Contribution:
        """The gradients of the ``wanted`` parameters, in that order, from one use of the layer.

        ``inputs`` and ``grad`` (gradient of the summed record losses with respect to the output) have leading size
        records * multiplicity, record-major. ``wanted`` names parameters of ``names``, "weight" before "bias".
        """

    def alike(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Sequence[str]
    ) -> tuple[Hashable, int] | None:
        """A key that uses which can be handled together have in common, and how many of them to handle at once.

        None: each on its own.
        """
        return None

    def together(
        self, uses: Sequence[tuple[nn.Module, Tensor, Tensor]], records: int, wanted: Sequence[str], sharing: int
    ) -> Sequence[Contribution]:
        """The contributions of several uses (module, inputs, grad) of equal keys: one for all of them, or one each.

        Each run of ``sharing`` uses has the same ``inputs``. ``grad`` may have any layout.
        """
        layout = self.gradient_layout
        return [self.contribution(module, inputs, layout(grad), records, wanted) for module, inputs, grad in uses]

    @classmethod
    def stacks(cls) -> bool:
        """Whether :meth:`together` belongs to this class's own :meth:`contribution`, and was not merely inherited."""
        together, contribution = (
            next(place for place, base in enumerate(cls.__mro__) if name in vars(base))
            for name in ("together", "contribution")
        )
        return together <= contribution


def rule_for(module: nn.Module, rules: Mapping[type[nn.Module], LayerRule]) -> LayerRule | None:
    """The rule of the nearest class of ``module`` that has one, if the module overrides none of its methods."""
    kind = next((kind for kind in type(module).__mro__ if kind in rules), None)
    if kind is None:
        return None
    rule = rules[kind]
    inherited = all(getattr(type(module), name, None) is getattr(kind, name, None) for name in rule.methods)
    patched = any(name in vars(module) for name in rule.methods)
    return rule if inherited and not patched else None
