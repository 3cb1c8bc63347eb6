"""`FlatSums`: the sums of one logical step as views of one flat float32 tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

#: Views start at multiples of this many numbers (16 bytes), as vector instructions and GPU kernels want it.
_ALIGNMENT = 4


class FlatSums(Mapping[str, Tensor]):
    """Float32 tensors by parameter name, each a view of ``flat`` (n,), which has them in the order of their names.

    Noise, division and the sum over processes then take one operation on ``flat`` instead of one for each parameter,
    and the views can be the ``.grad`` of the parameters. Between two views there may be up to three numbers that belong
    to no parameter. Keys keep the order of ``parameters``; no view can be replaced, so ``flat`` stays the whole truth.

    >>> sums = FlatSums({"b": torch.ones(2, 3), "a": torch.ones(5)})
    >>> list(sums), sums["b"].shape, len(sums.flat), float(sums.flat.sum())
    (['b', 'a'], torch.Size([2, 3]), 16, 0.0)
    """

    def __init__(self, parameters: Mapping[str, Tensor], start: Mapping[str, Tensor] | None = None) -> None:
        """``start``, else zeros, of the shapes of ``parameters``, on their device; one device for all of them.

        Parameters that ``start`` lacks begin at zero.
        """
        starts, end = {}, 0
        for name in sorted(parameters):
            starts[name] = end
            end += -(-parameters[name].numel() // _ALIGNMENT) * _ALIGNMENT
        device = next(iter(parameters.values())).device
        start = {} if start is None else start
        # memory that is written at once need not be cleared before; the gaps between views are cleared with the rest
        whole = len(start) == len(starts)
        self.flat = (torch.empty if whole else torch.zeros)(end, dtype=torch.float32, device=device)
        views = {name: self.flat[starts[name] : starts[name] + p.numel()] for name, p in parameters.items()}
        self._views = {name: view.view(parameters[name].shape) for name, view in views.items()}
        for name in starts if whole else ():
            if parameters[name].numel() % _ALIGNMENT:
                self.flat[starts[name] + parameters[name].numel() :][:_ALIGNMENT].zero_()
        if start:
            torch._foreach_copy_([self._views[name] for name in start], list(start.values()))

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def add_(self, others: Mapping[str, Tensor]) -> None:
        """Add tensors to some of the sums, in place; names that are missing add nothing."""
        torch._foreach_add_([self._views[name] for name in others], list(others.values()))


def whole_tensors(sums: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors that hold ``sums``, in the order of their names: one for `FlatSums`, one a name otherwise."""
    return [sums.flat] if isinstance(sums, FlatSums) else [sums[name] for name in sorted(sums)]
