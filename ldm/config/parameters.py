"""The parameters that a constructor accepts, also through ``**kwargs`` and dataclasses of options."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any


def accepted_parameters(factory: Any) -> tuple[set[str], list[str], bool]:
    """Names that a constructor accepts, names that it requires, and whether it accepts arbitrary names.

    A constructor with ``**kwargs`` passes them to the next class of its MRO, so the names of that class count as well.
    ``OPTION_GROUPS`` of a class lists dataclasses whose fields are also accepted. ``FIXED_OPTIONS`` of a class lists
    options of its base classes that it sets itself and does not accept.
    """
    named, required, open_ended = _accepted(factory)
    named |= {field.name for group in getattr(factory, "OPTION_GROUPS", ()) for field in fields(group)}
    fixed = set(getattr(factory, "FIXED_OPTIONS", ())) - _signature_names(factory)
    return named - fixed, required, open_ended


def _signature_names(factory: Any) -> set[str]:
    try:
        return set(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        return set()


def _accepted(factory: Any) -> tuple[set[str], list[str], bool]:
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        return set(), [], True
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = [p.name for p in parameters if p.name in named and p.default is p.empty]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        return named, required, False
    if not inspect.isclass(factory):
        return named, required, True
    owners = [base for base in factory.__mro__ if "__init__" in vars(base) and base is not object]
    for base in owners[1:]:
        if base.__module__.partition(".")[0] in ("torch", "pytorch_lightning"):
            return named, required, False  # nn.Module and the like accept no options
        below, _, _ = accepted_parameters(base)
        named |= below
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(base).parameters.values()):
            return named, required, False
    return named, required, len(owners) <= 1 or owners[-1].__module__.partition(".")[0] not in ("ldm", "callbacks")
