"""The learning rate of a run: the lineage's rule of base rate times batch size."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from ldm.config import to_plain
from ldm.errors import UserError
from ldm.training.trainer_flags import device_count

logger = logging.getLogger(__name__)


def base_learning_rate(config: DictConfig) -> float:
    """``model.base_learning_rate``, a positive number."""
    value = to_plain(config.model).get("base_learning_rate")
    try:
        rate = float(value or 0)
    except (TypeError, ValueError):
        rate = 0.0
    if not 0 < rate < float("inf"):
        found = "is missing" if value is None else f"is {value!r}, no positive number"
        raise UserError(f"model.base_learning_rate {found}; set it next to model.target, for example to 1.0e-6")
    return rate


def learning_rate(base: float, batch: int, settings: Mapping[str, Any], scale: bool, private: bool = False) -> float:
    """The learning rate of the lineage's rule, said in one line.

    With ``--scale_lr`` (the default) the base rate is multiplied by accumulated batches, devices and batch size;
    under DP the batch size is the logical one, which the devices share, so that their number does not count.
    """
    if not scale:
        logger.info("learning rate %.3g (base rate as it is, --scale_lr False)", base)
        return base
    accumulate = int(settings.get("accumulate_grad_batches") or 1)
    devices = 1 if private else device_count(settings)
    rate = accumulate * devices * batch * base
    product = f"{accumulate} (accumulated) x {devices} (devices) x {batch} (batch) x {base:.3g} (base)"
    if private:
        product = f"{batch} (logical batch, shared by all devices) x {base:.3g} (base)"
    logger.info("learning rate %.3g = %s; --scale_lr False uses the base", rate, product)
    return rate
