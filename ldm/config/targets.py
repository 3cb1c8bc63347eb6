"""Resolution of the dotted names in a configuration to objects."""

from __future__ import annotations

import importlib
import inspect
import logging
from typing import Any

from ldm.config.aliases import NETWORKS, TAMING_ALIASES, canonical_target
from ldm.errors import UserError, nearest

logger = logging.getLogger(__name__)

#: Packages whose names a configuration may use, see :func:`allow_target`.
ALLOWED_PREFIXES: set[str] = {"ldm", "callbacks", "main", "torch", "torchvision", "pytorch_lightning"}


def get_obj_from_str(target: str) -> Any:
    """The object of a dotted name, such as ``ldm.models.autoencoder.AutoencoderKL``.

    Names in ``main``, and those of :data:`TAMING_ALIASES`, resolve to their current locations. From packages other than
    this project's, only classes are returned.

    Raises:
        UserError: for a name outside the allowed packages, or an unknown name.
    """
    check_target(target)
    module_name, _, name = canonical_target(target).rpartition(".")
    if target in TAMING_ALIASES:
        logger.info("target '%s': built as our %s.%s", target, module_name, name)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise UserError(f"target '{target}' does not exist: there is no module '{error.name}'") from None
        raise
    if not hasattr(module, name):
        hint = nearest(name, (key for key in vars(module) if not key.startswith("_")))
        raise UserError(f"target '{target}' does not exist: '{module_name}' has no '{name}'{hint}")
    obj = getattr(module, name)
    ours = module_name.partition(".")[0] in ("ldm", "callbacks")
    if not callable(obj) or not _allowed(
        str(getattr(obj, "__module__", ""))
    ):  # objects that a module only imports are refused
        raise UserError(f"target '{target}' is not something a configuration may build; name a class")
    if not ours and not inspect.isclass(obj):
        raise UserError(f"target '{target}' is not a class; only classes may be built from '{module_name}'")
    return obj


def networks_of(target: str) -> Any:
    """As `get_obj_from_str`, but for a class of :data:`NETWORKS` the one that samples and does not train."""
    return get_obj_from_str(NETWORKS.get(target, target) if isinstance(target, str) else target)


def allow_target(prefix: str) -> None:
    """Let configurations name objects of one more package, such as ``my_datasets``."""
    ALLOWED_PREFIXES.add(prefix)


def check_target(target: object) -> None:
    """Raise UserError for a name that a configuration may not use; imports nothing."""
    if not isinstance(target, str) or "." not in target or not all(p.isidentifier() for p in target.split(".")):
        raise UserError(f"'{target}' is not a dotted name; type package.module.Class")
    if not _allowed(target) and target not in TAMING_ALIASES:
        roots = ", ".join(sorted(ALLOWED_PREFIXES))
        hint = nearest(target.partition(".")[0], ALLOWED_PREFIXES)
        raise UserError(f"target '{target}' is not allowed; a configuration may name objects of {roots}{hint}")


def _allowed(name: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in ALLOWED_PREFIXES)
