"""Gradient norms of single public records: a clipping norm chosen by them costs no privacy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ldm.privacy.clipping import Clipping, PerRecordClipper


@dataclass(frozen=True)
class NormRecorder(Clipping):
    """A clipping rule that keeps the norms it is shown. For public records only: nothing here is private."""

    seen: list[Tensor] = field(default_factory=list)

    def factors(self, squared_norms: Tensor) -> Tensor:
        self.seen.append(squared_norms.detach().sum(dim=0).sqrt().cpu())
        return super().factors(squared_norms)


def record_norms(model: Any, dataset: Any, count: int, copies: int = 1, chunk: int = 64) -> Tensor:
    """Gradient norms (count,) of the first ``count`` public records under the model's fine-tuning rule.

    A record's loss is the mean over ``copies`` noise draws, as in training.
    """
    selection = model.select_trainable()
    recorder = NormRecorder(max_grad_norm=1.0)
    clipper = PerRecordClipper(model, selection.parameters, recorder)
    loader = DataLoader(Subset(dataset, range(min(count, len(dataset)))), batch_size=chunk)
    for batch in loader:
        rows: Mapping[str, Tensor] = model.private_rows(on_device(batch, model.device), copies, chunk)
        clipper.accumulate(model.row_losses, rows, copies)
    clipper.take()
    return torch.cat(recorder.seen)


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors on a device."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
