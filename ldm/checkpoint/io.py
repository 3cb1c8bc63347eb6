"""Checkpoint files: read without executing code, loaded strictly, written atomically."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.checkpoint.content import Checkpoint
from ldm.checkpoint.digest import check_digest, with_digest, without_digest
from ldm.checkpoint.peft_adapter import from_peft, is_peft, weights_in_folder
from ldm.checkpoint.restricted_pickle import MAX_ENTRIES, MAX_EXPANSION, load_pickled
from ldm.checkpoint.tensors import as_tensors, require_finite, same_kind
from ldm.errors import UserError, nearest
from ldm.files import require_regular, write_atomic

logger = logging.getLogger(__name__)

PICKLED_SUFFIXES = (".ckpt", ".pt", ".pth")
SUFFIXES = (*PICKLED_SUFFIXES, ".safetensors")
OF_HUB = ".bin"  # the suffix of pickled weights on the Hugging Face hub; read, never written
_SHOWN = 10

#: What to do about weights that do not fit a model.
OTHER_MODEL = "give the YAML file that they were trained with (a run keeps its own in configs/), or another checkpoint"


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a Lightning ``.ckpt``, a ``.pt``/``.pth`` or a ``.safetensors`` file; tensors are on the CPU.

    The result always has ``state_dict``; a bare mapping of names to tensors becomes one. A ``.safetensors`` file also
    has ``metadata`` (str to str). A folder saved by PEFT, or a weights file in it, is read as adapters under plain
    names. Numpy arrays become tensors, and the name prefixes of DDP and torch.compile are removed. The checksums of a
    zip archive and the digest of `save_safetensors` are verified. No code in the file is executed; objects of framework
    classes become inert :class:`ldm.checkpoint.restricted_pickle.Foreign` objects.

    Raises:
        UserError: for a file that is missing, damaged or not a checkpoint, that has integer weights, or that requires
            code execution.
    """
    path = Path(path)
    if path.is_dir():
        path = weights_in_folder(path)
    if path.suffix.lower() not in (*SUFFIXES, OF_HUB):
        raise UserError(f"'{path}' is not a checkpoint by its name; expected one of {', '.join(SUFFIXES)}")
    if not path.exists():
        folder = path.parent
        hint = nearest(path.name, (p.name for p in folder.iterdir())) if folder.is_dir() else "; no such folder"
        raise UserError(f"checkpoint '{path}' does not exist{hint}")
    require_regular(path)
    try:
        content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else load_pickled(path)
    except OSError as error:
        raise UserError(f"cannot read checkpoint '{path}': {error.strerror or error}") from None
    return Checkpoint(path, _with_state_dict(content, path))


def load_weights(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    source: str = "",
    model: str = "the model of the configuration",
    advice: str = OTHER_MODEL,
) -> list[str]:
    """Copy tensors into a module; every key must match or have one of the given prefixes.

    Args:
        module: receives the tensors; keeps its devices and dtypes.
        state_dict: names to tensors.
        ignore: keys of ``state_dict`` with one of these prefixes are ignored.
        allow_missing: keys of ``module`` with one of these prefixes may be missing, as may the ignored ones.
        source: name of the origin in messages, usually the path.
        model: the words for ``module`` in messages; its class is not what a user has typed.
        advice: what to do about keys that do not match.

    Returns:
        The keys of ``module`` that kept their values.

    Raises:
        UserError: naming the missing, unexpected and mismatched keys (the first ten of each, and their number), or the
            first tensor with NaN or infinite values. The module is unchanged in this case.
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
    mismatched = sorted(_difference(key, kept[key], own[key]) for key in kept.keys() & own.keys())
    mismatched = [text for text in mismatched if text]
    if missing or unexpected or mismatched:
        table = [
            *_rows("missing from the file", missing),
            *_rows("unexpected in the file", unexpected),
            *_rows("of another shape or kind", mismatched),
        ]
        raise UserError(f"{source or 'the checkpoint'} does not fit {model}; {advice}: " + "\n".join(table))
    require_finite(kept, source or "the checkpoint")
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
    """Write tensors and string metadata as ``.safetensors``, atomically; tied tensors are stored once per name.

    A digest of both is added to the metadata; `read_checkpoint` verifies it.

    Raises:
        UserError: for another suffix, values that are not tensors, or metadata that are not strings.
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
        # safetensors refuses tensors that share memory, and would store the whole storage of a slice
        tensors[key] = value.clone() if value.untyped_storage().data_ptr() in storages else value
        storages.add(value.untyped_storage().data_ptr())
    words = with_digest(tensors, metadata or {})
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=words))


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise UserError(f"'{path}' is not a readable .safetensors file (cut short or damaged?): {error}") from None
    check_digest(state_dict, metadata, path)
    return {"state_dict": state_dict, "metadata": without_digest(metadata)}


def _with_state_dict(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds {type(content).__name__}, not a checkpoint; save a state_dict into it")
    if not isinstance(content.get("state_dict"), dict):
        bare = bool(content) and all(isinstance(value, Tensor | np.ndarray) for value in content.values())
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
    state = as_tensors(state_dict, path)
    if is_peft(state):
        state, facts = from_peft(state, path)
        content = {**content, **({"lora": facts} if facts else {})}
    return {**content, "state_dict": state}


def _difference(key: str, theirs: Any, ours: Any) -> str:
    """Why a stored value cannot replace the module's value, as text; "" when it can."""
    if not isinstance(ours, Tensor):
        return ""
    if not isinstance(theirs, Tensor):
        return f"{key} is {type(theirs).__name__} in the file, a tensor in the model"
    if theirs.shape != ours.shape:
        return f"{key} is {tuple(theirs.shape)} in the file, {tuple(ours.shape)} in the model"
    if not same_kind(theirs, ours):
        return f"{key} is {theirs.dtype} in the file, {ours.dtype} in the model"
    return ""


def _rows(title: str, keys: Sequence[str]) -> list[str]:
    if not keys:
        return []
    rest = [f"    ... and {len(keys) - _SHOWN} more"] if len(keys) > _SHOWN else []
    return [f"\n  {len(keys)} {title}:", *(f"    {key}" for key in keys[:_SHOWN]), *rest]
