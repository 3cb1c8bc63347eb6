"""Normalisation and checks of state dicts from other programs: arrays, wrapper prefixes, integers, finite values."""

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

#: Name prefixes that torch.compile, FSDP, activation checkpointing and DeepSpeed add to modules at any depth.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_WRAPPER = re.compile(rf"(^|\.)(?:{'|'.join(WRAPPERS)})\.")
_WRAPPER_WITHOUT_DOTS = re.compile("|".join(WRAPPERS))

#: Prefix of DataParallel and DDP, which wrap the whole model or one of its parts.
PARALLEL = "module."
PARTS = ("", "model.", "first_stage_model.", "cond_stage_model.")

#: Name suffixes of tensors that contain real numbers in every network.
REAL_ENDS = ("weight", "bias", ".lora_A", ".lora_B")


def as_tensors(state: Mapping[str, Any], source: object) -> dict[str, Any]:
    """The state dict with numpy arrays converted to tensors and wrapper prefixes removed from the names.

    Raises UserError for arrays that are not numeric, for integer weights, and for names that coincide without their
    prefixes.
    """
    tensors = {key: _as_tensor(value, key, source) for key, value in state.items()}
    refuse_integers(tensors, source)
    return without_wrappers(tensors, source)


def without_wrappers(state: Mapping[str, Any], source: object) -> dict[str, Any]:
    """The state dict under the names of the unwrapped model, without the prefixes of DDP, torch.compile and others.

    Raises UserError when two names coincide.
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
    """Raise UserError for integer weights, as in a quantised or damaged file; weights cast to integers are mostly 0.

    Counters and index tables may be integers.
    """
    for key, value in state.items():
        if isinstance(value, Tensor) and key.endswith(REAL_ENDS) and not _real(value):
            raise UserError(
                f"'{source}' holds {_kind(value)} under '{key}', where a network has real numbers: a quantised or "
                "damaged file; give the checkpoint in float32, float16 or bfloat16"
            )


def require_finite(state: Mapping[str, Any], source: object) -> None:
    """Raise UserError when tensors contain NaN or infinite values; the message names the first and their number."""
    bad = [key for key, value in state.items() if isinstance(value, Tensor) and not _finite(value)]
    if bad:
        raise UserError(
            f"{source}: {len(bad)} of {len(state)} tensors hold NaN or infinite values, the first is '{bad[0]}'; the "
            "training that wrote it went astray: take an earlier checkpoint"
        )


def same_kind(theirs: Tensor, ours: Tensor) -> bool:
    """Whether a stored tensor can replace one of the model: real values for real ones, integers for integers."""
    if theirs.is_meta > ours.is_meta or theirs.layout != torch.strided:  # a meta tensor has no values to load
        return False
    if _real(ours):
        return _real(theirs)
    if _real(theirs):  # casting a whole file also casts its counters
        return bool((theirs == theirs.round()).all())
    return not theirs.is_complex() and not theirs.is_quantized


def is_rounded(value: Tensor) -> bool:
    """Whether a tensor of real numbers has less than single precision."""
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
    if isinstance(value, Tensor) and value.is_meta:
        raise UserError(
            f"'{source}' holds no values under '{key}', only a shape (a tensor on the device meta); save the weights "
            "after they were loaded"
        )
    return value.detach() if isinstance(value, Tensor) else value


def _unwrapped(key: str) -> str:
    if key.startswith(PREFIX):  # EMA names are parameter names without dots
        return PREFIX + _WRAPPER_WITHOUT_DOTS.sub("", key.removeprefix(PREFIX))
    while (shorter := _WRAPPER.sub(r"\1", key)) != key:
        key = shorter
    return key


def _averages(name: str) -> bool:
    return name.startswith(PREFIX) and name.removeprefix(PREFIX) not in COUNTERS


def _all_parallel(names: Iterator[str] | Any, part: str) -> bool:
    inside = [name for name in names if name.startswith(part)]
    return bool(inside) and all(name.startswith(part + PARALLEL) for name in inside)
