"""From a configuration and a checkpoint to images."""

from __future__ import annotations

from ldm.inference.generate import (
    SamplingOptions,
    check_classes,
    check_output,
    draw_samples,
    image_side,
    labels_for,
    latent_shape,
    sample_batches,
    sample_images,
    sample_set,
    write_samples,
)
from ldm.inference.load import load_model
from ldm.inference.prompts import cycled, read_prompts

__all__ = [
    "SamplingOptions",
    "check_classes",
    "check_output",
    "cycled",
    "draw_samples",
    "image_side",
    "labels_for",
    "latent_shape",
    "load_model",
    "read_prompts",
    "sample_batches",
    "sample_images",
    "sample_set",
    "write_samples",
]
