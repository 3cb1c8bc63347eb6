"""Where a benchmark computes: one process on the CPU, or on the accelerator that the environment names."""

from __future__ import annotations

import os
from typing import Any

import torch

from ldm.training.devices import own_device, resolve_devices

#: Environment variable with the accelerator of all stages: cpu (the default) or gpu.
VARIABLE = "LDM_BENCHMARK_ACCELERATOR"


def trainer_flags() -> dict[str, Any]:
    """Trainer flags of a benchmark. Raises UserError for a GPU on a machine without one."""
    return resolve_devices({"accelerator": os.environ.get(VARIABLE, "cpu"), "devices": 1})


def device() -> torch.device:
    """The device of samples, classifiers and statistics; the same as that of training."""
    return torch.device(own_device(trainer_flags()))
