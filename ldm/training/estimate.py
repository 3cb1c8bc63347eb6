"""Cost estimate of a run (parameters, bytes, operations), computed on torch's ``meta`` device."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ldm.config import instantiate_from_config
from ldm.models.diffusion.ddpm_base import DDPM

logger = logging.getLogger(__name__)

BYTES = 4  # of a float32 number
ROUNDS = 5


@dataclass(frozen=True)
class Needs:
    """Bytes and floating-point operations of training; ``activations`` and ``operations`` are per example.

    ``state`` counts weights, running averages, gradients and Adam's two moments of each trained value.
    """

    parameters: int
    trained: int
    state: int
    activations: int
    operations: int

    def memory(self, rows: int) -> float:
        """Memory in GiB with ``rows`` examples in memory at a time."""
        return (self.state + rows * self.activations) / 2**30

    def seconds(self, rows: float, rate: float) -> float:
        """Seconds of forward and backward passes over ``rows`` examples at ``rate`` operations per second."""
        return 3 * self.operations * rows / rate  # a backward pass costs two forward passes


def count_needs(section: Mapping[str, Any]) -> Needs | None:
    """Estimate the cost of training the diffusion model of a ``model`` section; None for unsupported models.

    The model is built on torch's ``meta`` device, which holds shapes without values and takes no memory. The starting
    checkpoint is not loaded, because it does not change the cost.
    """
    section = copy.deepcopy({"target": section.get("target"), "params": section.get("params") or {}})
    for key in ("ckpt_path", "lossconfig"):
        _drop(section["params"], key)
    level = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)  # warnings appear when the real model is built
        with torch.device("meta"):
            model = instantiate_from_config(section)
            if not isinstance(model, DDPM):
                return None
            select: Any = getattr(model, "select_trainable", None)
            selection = select().parameters if select is not None else model.trainable()
            return _count(model, sum(parameter.numel() for parameter in selection.values()))
    except (NotImplementedError, RuntimeError, ValueError) as error:
        logger.debug("not counted: %s", error)
        return None
    finally:
        logging.disable(level)


def _count(model: Any, trained: int) -> Needs:
    rows = {
        "x_start": torch.zeros(1, *model.latent_shape),
        "t": torch.zeros(1, dtype=torch.long),
        "noise": torch.zeros(1, *model.latent_shape),
    }
    stage = getattr(model, "cond_stage_model", None)
    if stage is not None:
        if model.cond_stage_key != "class_label":
            raise NotImplementedError(f"no made-up condition of kind {model.cond_stage_key}")
        rows["cond"] = model.get_learned_conditioning({"class_label": torch.zeros(1, dtype=torch.long)})
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    watch = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, watch:
        loss = model.loss_terms(**rows)["loss"]
    del loss
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    activations = sum(size for storage, size in kept.items() if storage not in weights)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    averaged = sum(parameter.numel() for parameter in model.model.parameters()) if model.use_ema else 0
    state = BYTES * (parameters + averaged + 3 * trained)
    return Needs(parameters, trained, state, activations, counter.get_total_flops())


def _drop(params: Any, name: str) -> None:
    """Remove a key from a section and its nested sections."""
    if isinstance(params, dict):
        if name in params:
            params[name] = {"target": "torch.nn.Identity"} if name == "lossconfig" else None
        for value in params.values():
            _drop(value, name)


def measured_rate(device: str, size: int = 512) -> float:
    """Floating-point operations per second of a float32 matrix product on a device, its peak rate."""
    one = torch.ones(size, size, device=device)
    best = math.inf
    for _ in range(ROUNDS):
        started = time.perf_counter()
        product = one @ one
        float(product[0, 0])  # synchronizes with the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
