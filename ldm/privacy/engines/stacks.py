"""Which uses of layers are handled together: those of one kind and shape, that read as many layers' common inputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ldm.privacy.engines.capture import Bundle, Use


@dataclass(frozen=True)
class Stack:
    """At least two uses that their layers' rule handles together; each run of ``sharing`` uses has the same input."""

    uses: Sequence[Use]
    sharing: int


def arrange(uses: Sequence[Use], records: int, expected: Mapping[Bundle, int]) -> tuple[list[Use], list[Stack]]:
    """The uses that are handled one by one, and the stacks of the others.

    A layer that is used more than once, or has a parameter tied into another layer, is on its own: its contributions
    are joined before they are measured. ``expected``: contributions of each bundle.
    """
    alone: list[Use] = []
    alike: defaultdict[Hashable, list[Use]] = defaultdict(list)
    sizes: dict[Hashable, int] = {}
    for use in uses:
        layer = use.layer
        own, names = next(iter(layer.bundles.items()))
        single = len(layer.bundles) == 1 and expected[names] == 1 and layer.rule.stacks()
        found = layer.rule.alike(layer.module, use.inputs, use.grad, records, own) if single else None
        if found is None:
            alone.append(use)
            continue
        key: Hashable = (type(layer.rule), id(layer.rule), own, found[0])
        alike[key].append(use)
        sizes[key] = found[1]
    stacks = []
    for kind, members in alike.items():
        for stack in _stacks(members, sizes[kind]):
            if len(stack.uses) > 1:
                stacks.append(stack)
            else:
                alone += stack.uses
    return alone, stacks


def _stacks(uses: Sequence[Use], size: int) -> list[Stack]:
    """Stacks of at most ``size`` uses, in which every input is shared by equally many."""
    by_input: defaultdict[Hashable, list[Use]] = defaultdict(list)
    for use in uses:
        by_input[_place(use.inputs)].append(use)
    by_sharing: defaultdict[int, list[Use]] = defaultdict(list)
    for members in by_input.values():
        sharing = len(members) if len(members) <= size else 1
        by_sharing[sharing] += members
    found = []
    for sharing, members in by_sharing.items():
        length = size // sharing * sharing
        found += [Stack(members[start : start + length], sharing) for start in range(0, len(members), length)]
    return found


def _place(tensor: Tensor) -> Hashable:
    """Equal for views of the same memory; all tensors compared must be alive."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
