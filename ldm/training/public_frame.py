"""The public `Frame` in which a private run measures its latents: made from a public data set, and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import read_checkpoint, save_safetensors
from ldm.errors import UserError
from ldm.models.diffusion.latent_denoiser import LatentDenoiser
from ldm.privacy.statistics import Frame


@torch.no_grad()
def public_frame(
    model: LatentDenoiser, dataset: Any, count: int, rank: int, whitening: float, seed: int = 0
) -> tuple[Frame, Tensor, Tensor]:
    """Directions of ``count`` records of a *public* data set, in scaled latents, and two lengths of each record.

    They are the norms of its coordinates (count,), and of their difference from the mean of its class (count,): their
    quantiles are public clip norms. Without classes the set counts as one. Raises UserError for a rank above that of
    the latents.
    """
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    parts, labels = [], []
    for start in range(0, len(order), 250):
        items = [dataset[place] for place in order[start : start + 250]]
        images = torch.stack([torch.as_tensor(item["image"]) for item in items])
        labels += [int(item.get("class_label", 0)) for item in items]
        moments = model.encode_moments(images.permute(0, 3, 1, 2).contiguous().to(model.device))
        parts.append(moments[:, : model.channels].cpu() * float(torch.as_tensor(model.scale_factor)))
    rows = torch.cat(parts).flatten(1)
    frame = Frame.fit(rows, rank, whitening)
    coordinates, differences = frame.project(rows), torch.zeros(len(rows), dtype=torch.float64)
    for label in set(labels):
        members = torch.tensor(labels) == label
        own = coordinates[members]
        differences[members] = (own - own.mean(dim=0)).norm(dim=1)
    return frame, coordinates.norm(dim=1), differences


def save_frame(frame: Frame, path: str | Path, source: str) -> None:
    """Write a frame as ``.safetensors``; ``source`` describes its public data in words."""
    tensors = {"centre": frame.centre, "directions": frame.directions, "lift": frame.lift}
    save_safetensors(tensors, path, {"source": source})


def load_frame(path: str | Path) -> Frame:
    """Read `save_frame` back. Raises UserError for another file."""
    state = read_checkpoint(path)["state_dict"]
    if set(state) != {"centre", "directions", "lift"}:
        raise UserError(f"{path}: holds no public directions; make them with scripts/public_frame.py")
    return Frame(state["centre"], state["directions"], state["lift"])
