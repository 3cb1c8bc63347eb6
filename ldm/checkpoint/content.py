"""`Checkpoint`: the content of one checkpoint file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.checkpoint.lora_names import style_of
from ldm.files import file_digest


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, Any]):
    """The content of a checkpoint file, a mapping with the keys of a Lightning checkpoint, at least ``state_dict``.

    ``path``: the file it was read from. ``content``: keys to values; tensors are on the CPU.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """Names to tensors."""
        state: dict[str, Tensor] = self.content["state_dict"]
        return state

    @property
    def metadata(self) -> Mapping[str, str]:
        """The text metadata of a .safetensors file; empty for other files."""
        return dict(self.content.get("metadata") or {})

    @cached_property
    def style(self) -> str | None:
        """Naming style of the adapters, one of `ldm.checkpoint.lora_names.STYLES`; None without adapters."""
        return style_of(self.state_dict)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file's current content, 64 hexadecimal digits."""
        return file_digest(self.path)

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self.state_dict)} tensors, {', '.join(self.content)})"
