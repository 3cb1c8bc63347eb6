"""The devices of a run, from Trainer settings of any Lightning version to the device of this process.

torch is imported only where there may be a GPU, so that a mistake in the settings is answered without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.errors import UserError

#: Device files that indicate a GPU: NVIDIA's driver, NVIDIA's embedded boards, WSL, AMD's driver.
GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")
#: Values of ``accelerator`` and ``distributed_backend`` in Lightning 1.4 that name a strategy, and no device.
STRATEGIES = ("ddp", "ddp_cpu", "ddp2", "ddp_spawn", "dp", "horovod")


def gpu_count() -> int:
    """Number of visible GPUs; 0, without importing torch, when no driver's device file exists."""
    if sys.platform == "linux" and "torch" not in sys.modules and not any(Path(name).exists() for name in GPU_FILES):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def resolve_devices(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``gpus``/``accelerator``/``devices`` of any spelling into today's ``accelerator`` and ``devices``.

    ``--accelerator cpu`` wins over ``--gpus``. Raises UserError for a GPU on a machine without one.
    """
    result = dict(settings)
    gpus = parse_gpus(result.pop("gpus", None))
    accelerator = result.pop("accelerator", None)
    backend = result.pop("distributed_backend", None)
    if accelerator in STRATEGIES or (accelerator is None and backend in STRATEGIES):
        if gpus and len(gpus) > 1:
            result.setdefault("strategy", "ddp")
        accelerator = None
    devices = result.get("devices", 1)
    if accelerator == "cpu" or (gpus == [] and accelerator is None):
        return {**result, "accelerator": "cpu", "devices": devices if isinstance(devices, int) else 1}
    if gpus or accelerator in ("gpu", "cuda"):
        if gpu_count() == 0:
            flag = "--gpus" if gpus else f"--accelerator {accelerator}"
            raise UserError(f"{flag}: no GPU is visible on this machine; type --accelerator cpu to train on the CPU")
        return {**result, "accelerator": "gpu", "devices": gpus or devices}
    if accelerator in (None, "auto") and gpu_count() > 0:
        accelerator = "gpu"  # explicit, because the latent cache reads it
    return {**result, "accelerator": accelerator or "auto", "devices": devices}


def parse_gpus(value: Any) -> list[int] | None:
    """Indices of the wanted GPUs: '0,', '0,1' and [0] list them, 2 counts them, -1 means all, 0 and '' none."""
    if value is None:
        return None
    try:
        if isinstance(value, (list, tuple)):
            return [int(item) for item in value]
        if isinstance(value, str) and ("," in value or value.startswith("[")):
            return [int(item) for item in value.strip("[]").split(",") if item.strip()]
        count = int(value) if value != "" else 0
    except (TypeError, ValueError):
        count = -2
    if count < -1:
        raise UserError(f"--gpus {value}: expected indices such as 0, or 0,1 or a count such as 1, or -1 for all")
    if count == -1:
        return list(range(max(1, gpu_count())))
    return list(range(count))


def own_device(settings: Mapping[str, Any]) -> str:
    """The device of this process among those of the resolved settings, such as cuda:1."""
    if settings.get("accelerator") != "gpu":
        return "cpu"
    index = int(os.environ.get("LOCAL_RANK", "0"))
    devices = settings.get("devices", 1)
    if isinstance(devices, str) and "," in devices:
        devices = parse_gpus(devices)
    return f"cuda:{devices[index] if isinstance(devices, (list, tuple)) and index < len(devices) else index}"


def device_count(settings: Mapping[str, Any]) -> int:
    """How many devices the resolved settings ask for (the learning-rate rule multiplies by it)."""
    devices = settings.get("devices", 1)
    on_gpu = settings.get("accelerator") == "gpu"
    listed = isinstance(devices, str) and ("," in devices or devices.startswith("["))
    word = isinstance(devices, str) and not (devices.isdigit() or listed or devices in ("auto", "-1"))
    if isinstance(devices, bool | float | dict) or word:
        raise UserError(f"lightning.trainer.devices: {devices!r} is no number of devices; type --devices 1")
    if devices in ("auto", -1, "-1"):
        return max(1, gpu_count()) if on_gpu else 1
    if isinstance(devices, str):
        devices = parse_gpus(devices if listed else int(devices))
    return max(1, len(devices) if isinstance(devices, (list, tuple)) else int(devices))


def device_name(device: str) -> str:
    """The name of a GPU, which decides how much memory there is; the device itself otherwise."""
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device)
