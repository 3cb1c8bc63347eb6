"""From a configuration and a checkpoint to images.

Names are loaded when they are used: options and requests are checked without torch, the rest needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.inference.files import sample_set, write_samples
    from ldm.inference.generate import (
        check_classes,
        draw_samples,
        image_side,
        labels_for,
        latent_shape,
        sample_batches,
        sample_images,
    )
    from ldm.inference.load import load_model
    from ldm.inference.options import SamplingOptions
    from ldm.inference.prompts import cycled, read_prompts
    from ldm.inference.request import ModelSource, SamplePlan, SamplingRequest, check_output

_HOMES = {
    "ModelSource": "request",
    "SamplePlan": "request",
    "SamplingOptions": "options",
    "SamplingRequest": "request",
    "check_output": "request",
    "cycled": "prompts",
    "read_prompts": "prompts",
    "load_model": "load",
    "sample_set": "files",
    "write_samples": "files",
}

__all__ = [
    "ModelSource",
    "SamplePlan",
    "SamplingOptions",
    "SamplingRequest",
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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'generate')}"), name)
