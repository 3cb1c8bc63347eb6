"""The tensors of a state dict as other programs leave them: arrays, names of wrappers, integers, values not finite."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.checkpoint.ema import COUNTERS, PREFIX
from ldm.errors import UserError

logger = logging.getLogger(__name__)

#: Names that torch.compile, FSDP, activation checkpointing and DeepSpeed put in front of a module's own, at any depth.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_WRAPPER = re.compile(rf"(^|\.)(?:{'|'.join(WRAPPERS)})\.")
_WRAPPER_WITHOUT_DOTS = re.compile("|".join(WRAPPERS))

#: DataParallel and DDP: the whole model is wrapped, or one of its parts is.
PARALLEL = "module."
PARTS = ("", "model.", "first_stage_model.", "cond_stage_model.")

#: Ends of names under which every network keeps real numbers.
REAL_ENDS = ("weight", "bias", ".lora_A", ".lora_B")


def as_tensors(state: Mapping[str, Any], source: object) -> dict[str, Any]:
    """The state dict with numpy arrays as tensors, and with the names that a model has without wrappers around it.

    Raises UserError for arrays that hold no numbers, for weights that are integers, and for names that meet without
    their wrappers.
    """
    tensors = {key: _as_tensor(value, key, source) for key, value in state.items()}
    refuse_integers(tensors, source)
    return without_wrappers(tensors, source)


def without_wrappers(state: Mapping[str, Any], source: object) -> dict[str, Any]:
    """The state dict under the names of the model itself, not of what DDP, torch.compile and the like wrap around it.

    Raises UserError when two names become one.
    """
    names = {key: _unwrapped(key) for key in state}
    for part in PARTS:
        while _all_parallel(names.values(), part):
            for key, name in names.items():
                names[key] = part + name.removeprefix(part + PARALLEL) if name.startswith(part + PARALLEL) else name
                if part == "model." and _averages(name):
                    names[key] = PREFIX + name.removeprefix(PREFIX).removeprefix("module")
    renamed: dict[str, Any] = {}
    for key, name in names.items():
        if name in renamed:
            raise UserError(f"'{source}': '{key}' and another tensor are both '{name}' without the prefix of a wrapper")
        renamed[name] = state[key]
    first = next((key for key, name in names.items() if key != name), None)
    if first is not None:
        logger.info(
            "%s: read without the prefix of a wrapper (DDP, torch.compile): '%s' as '%s'", source, first, names[first]
        )
    return renamed


def refuse_integers(state: Mapping[str, Any], source: object) -> None:
    """Raise UserError for weights that are integers, as in a quantised or damaged file: cast, most of them would be 0.

    Counters and tables of indices may be integers.
    """
    for key, value in state.items():
        if isinstance(value, Tensor) and key.endswith(REAL_ENDS) and not _real(value):
            raise UserError(
                f"'{source}' holds {_kind(value)} under '{key}', where a network has real numbers: a quantised or "
                "damaged file; give the checkpoint in float32, float16 or bfloat16"
            )


def require_finite(state: Mapping[str, Any], source: object) -> None:
    """Raise UserError, naming the first and how many, when tensors hold NaN or infinite values."""
    bad = [key for key, value in state.items() if isinstance(value, Tensor) and not _finite(value)]
    if bad:
        raise UserError(
            f"{source}: {len(bad)} of {len(state)} tensors hold NaN or infinite values, the first is '{bad[0]}'; the "
            "training that wrote it went astray: take an earlier checkpoint"
        )


def same_kind(theirs: Tensor, ours: Tensor) -> bool:
    """Whether a stored tensor can stand for one of the model: real numbers for real ones, whole ones for whole ones."""
    if theirs.is_meta > ours.is_meta or theirs.layout != torch.strided:  # a model without values takes none
        return False
    if _real(ours):
        return _real(theirs)
    if _real(theirs):  # a file that was cast as a whole has its counters cast, too
        return bool((theirs == theirs.round()).all())
    return not theirs.is_complex() and not theirs.is_quantized


def is_rounded(value: Tensor) -> bool:
    """Whether a tensor of real numbers is in less than single precision."""
    return _real(value) and torch.finfo(value.dtype).bits < 32


def _real(value: Tensor) -> bool:
    return value.is_floating_point() and not value.is_quantized


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _finite(value: Tensor) -> bool:
    if not _real(value) or not value.numel() or value.is_meta or value.layout != torch.strided:
        return True
    if torch.finfo(value.dtype).bits < 16:
        value = value.float()
    return all(bool(torch.isfinite(bound)) for bound in torch.aminmax(value))


def _as_tensor(value: Any, key: object, source: object) -> Any:
    if isinstance(value, np.ndarray | np.number | np.bool_):
        array = np.asarray(value)
        if array.dtype.kind not in "fiubc":
            raise UserError(f"'{source}': '{key}' is an array of {array.dtype}, which no network holds")
        return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(array.shape))
    return value.detach() if isinstance(value, Tensor) else value


def _unwrapped(key: str) -> str:
    if key.startswith(PREFIX):  # averages have the dotless names of their parameters
        return PREFIX + _WRAPPER_WITHOUT_DOTS.sub("", key.removeprefix(PREFIX))
    while (shorter := _WRAPPER.sub(r"\1", key)) != key:
        key = shorter
    return key


def _averages(name: str) -> bool:
    return name.startswith(PREFIX) and name.removeprefix(PREFIX) not in COUNTERS


def _all_parallel(names: Iterator[str] | Any, part: str) -> bool:
    inside = [name for name in names if name.startswith(part)]
    return bool(inside) and all(name.startswith(part + PARALLEL) for name in inside)
