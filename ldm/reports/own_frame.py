"""Directions of public images in the latents of a model that the user has trained, for private class moments."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from ldm.data.collages import CollagesTrain
from ldm.inference import load_model
from ldm.reports.own_images import Moments, Settings
from ldm.shipped import find_shipped
from ldm.training.public_frame import public_frame, save_frame

COUNT, RANK, WHITENING = 2000, 48, 0.5
#: The share of public images whose coordinates are not clipped.
UNCLIPPED = 0.85


def write_frame(settings: Settings, weights: Path, yaml: Path) -> tuple[Settings, Path]:
    """Write ``<yaml>-frame.safetensors`` from rendered collages; returns the settings that name it, and its path.

    No private image is read. Raises UserError when ``weights`` do not fit the model's configuration.
    """
    model = settings.model
    config = find_shipped(model.configs[0]) or Path(model.configs[0])
    public = load_model(config, weights, torch.device("cpu"))
    collages = CollagesTrain(COUNT, size=model.size, channels=model.channels)
    frame, norms, differences = public_frame(public, collages, COUNT, RANK, WHITENING)
    path = yaml.with_name(f"{yaml.stem}-frame.safetensors")
    save_frame(frame, path, f"{COUNT} rendered collages (ldm.data.collages)")
    bound, spread = (math.ceil(float(value) * 10) / 10 for value in (norms.quantile(UNCLIPPED), differences.median()))
    return replace(settings, model=replace(model, moments=Moments(path.name, bound, spread))), path
