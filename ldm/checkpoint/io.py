"""Checkpoint files: read without running them, loaded strictly, written atomically."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.checkpoint.restricted_pickle import MAX_ENTRIES, MAX_EXPANSION, load_pickled
from ldm.errors import UserError, nearest
from ldm.files import write_atomic

logger = logging.getLogger(__name__)

PICKLED_SUFFIXES = (".ckpt", ".pt", ".pth")
SUFFIXES = (*PICKLED_SUFFIXES, ".safetensors")
_SHOWN = 10


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a Lightning ``.ckpt``, a ``.pt``/``.pth`` or a ``.safetensors`` file; tensors are on the CPU.

    The result always has ``state_dict``; a bare mapping of names to tensors becomes one. For ``.safetensors`` there
    is ``metadata`` (str to str) as well. Nothing in the file is executed: objects of framework classes become inert
    :class:`ldm.checkpoint.restricted_pickle.Foreign` stand-ins.

    Raises:
        UserError: for a missing, damaged or foreign file, or one that asks for code to be run.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"'{path}' is not a checkpoint by its name; expected one of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise UserError(f"'{path}' is a folder; name the checkpoint file in it")
    if not path.exists():
        folder = path.parent
        hint = nearest(path.name, (p.name for p in folder.iterdir())) if folder.is_dir() else "; no such folder"
        raise UserError(f"checkpoint '{path}' does not exist{hint}")
    try:
        if path.suffix.lower() == ".safetensors":
            return _read_safetensors(path)
        content = load_pickled(path)
    except OSError as error:
        raise UserError(f"cannot read checkpoint '{path}': {error.strerror or error}") from None
    return _with_state_dict(content, path)


def load_weights(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    source: str = "",
) -> list[str]:
    """Copy tensors into a module; every key must match, or be excused by a prefix.

    Args:
        module: receives the tensors; its own devices and dtypes stay.
        state_dict: names to tensors.
        ignore: keys of ``state_dict`` that start with one of these are left out.
        allow_missing: keys of ``module`` that start with one of these may be absent (ignored ones are, too).
        source: what to call the origin in messages, usually the path.

    Returns:
        The keys of ``module`` that kept their values.

    Raises:
        UserError: naming the missing, unexpected and misshapen keys (the first ten of each, and how many).
            The module is unchanged then.
    """
    ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    allow_missing = (allow_missing,) if isinstance(allow_missing, str) else tuple(allow_missing)
    for prefix in ignore:
        if not any(key.startswith(prefix) for key in state_dict):
            logger.info("ignore prefix '%s' matches no key of %s", prefix, source or "the checkpoint")
    kept = {key: value for key, value in state_dict.items() if not key.startswith(ignore)}
    own = module.state_dict()
    absent = [key for key in own if key not in kept]
    missing = [key for key in absent if not key.startswith(allow_missing + ignore)]
    unexpected = [key for key in kept if key not in own]
    mismatched = []
    for key in kept.keys() & own.keys():
        theirs, ours = kept[key], own[key]
        if isinstance(ours, Tensor):
            shape = tuple(theirs.shape) if isinstance(theirs, Tensor) else type(theirs).__name__
            if shape != tuple(ours.shape):
                mismatched.append(f"{key} is {shape} in the file, {tuple(ours.shape)} in the model")
    if missing or unexpected or mismatched:
        table = [
            *_rows("missing from the file", missing),
            *_rows("unexpected in the file", unexpected),
            *_rows("of another shape", sorted(mismatched)),
        ]
        raise UserError(f"{source or 'the checkpoint'} does not fit {type(module).__name__}: " + "\n".join(table))
    module.load_state_dict(kept, strict=False)
    return absent


def save_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint mapping with ``torch.save``, atomically.

    Raises:
        UserError: when it has no ``state_dict``, the suffix is wrong, or the folder cannot be written to.
    """
    path = Path(path)
    if "state_dict" not in checkpoint:
        raise UserError(f"cannot write '{path}': a checkpoint needs a 'state_dict'")
    if path.suffix.lower() not in PICKLED_SUFFIXES:
        raise UserError(f"cannot write '{path}': expected one of {', '.join(PICKLED_SUFFIXES)}")
    try:
        write_atomic(path, lambda temporary: torch.save(dict(checkpoint), temporary))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"cannot write '{path}': it holds an object that cannot be stored ({error}); "
            "write only its 'state_dict' and plain values"
        ) from None


def save_safetensors(
    state_dict: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and string metadata as ``.safetensors``, atomically; tied tensors are stored once each name.

    Raises:
        UserError: for another suffix, values that are not tensors, metadata that are not strings.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"cannot write '{path}': expected the suffix .safetensors")
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise UserError(f"cannot write '{path}': '{key}' is {type(value).__name__}, not a tensor")
    for key, text in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise UserError(f"cannot write '{path}': metadata '{key}' is {type(text).__name__}, not text")
    tensors = {}
    storages: set[int] = set()
    for key, value in state_dict.items():
        value = value.detach().cpu().contiguous()
        # safetensors refuses names that share memory, and would store a slice with the rest of its storage
        tensors[key] = value.clone() if value.untyped_storage().data_ptr() in storages else value
        storages.add(value.untyped_storage().data_ptr())
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=dict(metadata) if metadata else None))


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            return {"state_dict": state_dict, "metadata": dict(file.metadata() or {})}
    except SafetensorError as error:
        raise UserError(f"'{path}' is not a readable .safetensors file (cut short or damaged?): {error}") from None


def _with_state_dict(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds {type(content).__name__}, not a checkpoint; save a state_dict into it")
    if not isinstance(content.get("state_dict"), dict):
        bare = bool(content) and all(isinstance(value, Tensor) for value in content.values())
        if not bare:
            keys = ", ".join(str(key) for key in list(content)[:_SHOWN])
            raise UserError(f"'{path}' has no 'state_dict'; it holds: {keys or 'nothing'}")
        content = {"state_dict": content}
    state_dict = content["state_dict"]
    if len(state_dict) > MAX_ENTRIES or not all(isinstance(key, str) for key in state_dict):
        raise UserError(f"the 'state_dict' of '{path}' is not a mapping of names to tensors")
    tensors = [value for value in state_dict.values() if isinstance(value, Tensor)]
    declared = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    size = path.stat().st_size
    if declared > MAX_EXPANSION * size + 2**28:
        raise UserError(f"'{path}' of {size} bytes declares tensors of {declared} bytes; it is refused")
    return {**content, "state_dict": dict(state_dict)}


def _rows(title: str, keys: Sequence[str]) -> list[str]:
    if not keys:
        return []
    rest = [f"    ... and {len(keys) - _SHOWN} more"] if len(keys) > _SHOWN else []
    return [f"\n  {len(keys)} {title}:", *(f"    {key}" for key in keys[:_SHOWN]), *rest]
