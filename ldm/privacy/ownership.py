"""Checks of the private parameters: once in full, and before every microbatch that the module still owns them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ldm.errors import UserError, nearest

_Edge = tuple[Mapping[str, object], str, object]


class Ownership:
    """The private ``parameters`` of ``module`` under the names that ``module.named_parameters()`` gives.

    Raises UserError when there are none, when a name does not fit, for a frozen private parameter, for one parameter
    named twice, and for a trainable parameter that is not private, which would be trained without noise.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        if not parameters:
            raise UserError("no private parameters were given; name at least one, or train without privacy")
        current = dict(module.named_parameters(remove_duplicate=False))
        for name, parameter in parameters.items():
            if current.get(name) is not parameter:
                raise UserError(
                    f"{name!r} does not name this parameter of the module{nearest(name, current)}; "
                    "give names as module.named_parameters() does"
                )
            if not parameter.requires_grad:
                raise UserError(f"private parameter {name!r} is frozen; set requires_grad or leave it out")
        private = {id(parameter) for parameter in parameters.values()}
        if len(private) < len(parameters):
            raise UserError("two names were given for one shared parameter; name it once")
        for name, parameter in current.items():
            if parameter.requires_grad and id(parameter) not in private:
                raise UserError(f"parameter {name!r} is trainable but not private; freeze it or make it private")
        self._parameters = parameters
        self._edges: dict[tuple[int, str], tuple[_Edge, str]] = {}  # each edge once, with its first parameter
        for name in parameters:
            for edge in _path(module, name):
                self._edges.setdefault((id(edge[0]), edge[1]), (edge, name))
        self._batch_norms = {path: layer for path, layer in module.named_modules() if isinstance(layer, _BatchNorm)}

    def check(self) -> None:
        """Refuse changes since construction that would break the bound or lose gradients.

        Raises UserError for a parameter that was replaced or frozen, and for a batch norm in training mode.
        """
        for path, layer in self._batch_norms.items():
            if layer.training or not layer.track_running_stats:
                raise UserError(
                    f"layer {path!r} is a batch norm in training mode, which mixes records; "
                    "use group norm, or put it in eval mode"
                )
        for (table, key, value), name in self._edges.values():
            if table.get(key) is not value:
                raise UserError(
                    f"parameter {name!r} was replaced after the clipper was built; "
                    "build the clipper after moving, wrapping or loading the model"
                )
        for name, parameter in self._parameters.items():
            if not parameter.requires_grad:
                raise UserError(f"private parameter {name!r} was frozen after the clipper was built; build a new one")


def _path(module: nn.Module, name: str) -> list[_Edge]:
    """The path from ``module`` to the parameter; following it later is cheaper than walking the whole module."""
    *parents, last = name.split(".")
    edges: list[_Edge] = []
    for parent in parents:
        edges.append((module._modules, parent, module._modules[parent]))
        module = module.get_submodule(parent)
    edges.append((module._parameters, last, module._parameters[last]))
    return edges
