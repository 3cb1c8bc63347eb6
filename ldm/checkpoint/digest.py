"""The digest of weights, and its place in the metadata of .safetensors files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from ldm.errors import UserError

DIGEST_KEY = "content_sha256"
"""Metadata key of a .safetensors file for the digest of its tensors and its other metadata."""

PROMISE = {"digest": DIGEST_KEY}
"""A second metadata entry that announces the digest, so that damage to the key of one of them is still detected."""


def state_digest(state: Mapping[str, object], metadata: Mapping[str, str] | None = None) -> str:
    """SHA-256 (64 hexadecimal digits) of tensors and their names, dtypes and shapes, and of text metadata.

    The digest does not depend on the order of the names, on devices, or on the file format.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key]
        if not isinstance(value, Tensor):
            continue
        value = value.detach().cpu().contiguous()
        head = json.dumps([key, str(value.dtype), list(value.shape)])
        digest.update(f"{head}\n".encode())
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    if metadata:
        digest.update(json.dumps({**metadata}, sort_keys=True).encode())
    return digest.hexdigest()


def check_digest(state: Mapping[str, Tensor], metadata: Mapping[str, str], path: object) -> None:
    """Raise UserError when the metadata contain or announce a digest that does not match the content."""
    rest = {key: value for key, value in metadata.items() if key != DIGEST_KEY}
    promised = DIGEST_KEY in metadata or PROMISE.items() <= metadata.items()
    if promised and metadata.get(DIGEST_KEY) != state_digest(state, rest):
        raise UserError(
            f"'{path}' was changed after it was written (its {DIGEST_KEY} is of other content); copy or download it "
            "again"
        )


def with_digest(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with the digest of tensors and metadata added."""
    rest = {**without_digest(metadata), **PROMISE}
    return {**rest, DIGEST_KEY: state_digest(state, rest)}


def without_digest(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata without the entries that `with_digest` adds."""
    return {key: value for key, value in metadata.items() if key not in (DIGEST_KEY, *PROMISE)}
