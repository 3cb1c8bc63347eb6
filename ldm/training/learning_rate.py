"""The learning rate of a run: the lineage's rule of base rate times batch size."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from ldm.config import config_layers, to_plain, value_at
from ldm.errors import UserError
from ldm.training.devices import device_count

logger = logging.getLogger(__name__)

#: Factor between the computed rate and the configuration's intended rate above which a warning is logged.
FACTOR = 2.0


@dataclass(frozen=True)
class RateForBatch:
    """A base learning rate, and the batch size given for it in the same file or an earlier one."""

    base: float
    batch: int
    source: str


def rate_of_files(paths: Sequence[str]) -> RateForBatch | None:
    """The intended rate of the configuration, from the last file that sets ``base_learning_rate``.

    A later file that changes only the batch size changes the computed rate implicitly. None when no file gives both
    numbers.
    """
    found: RateForBatch | None = None
    batch: Any = None
    for path in paths:
        for source, layer in config_layers(path):
            batch = value_at(layer, "data", "params", "batch_size") or batch
            base = value_at(layer, "model", "base_learning_rate")
            if base is None:
                continue
            try:
                found = RateForBatch(float(base), int(batch), str(source))
            except (TypeError, ValueError):
                found = None
    return found


def base_learning_rate(config: DictConfig) -> float:
    """``model.base_learning_rate``, a positive number."""
    value = to_plain(config.model).get("base_learning_rate")
    try:
        rate = 0.0 if isinstance(value, bool) else float(value or 0)
    except (TypeError, ValueError):
        rate = 0.0
    if not 0 < rate < float("inf"):
        found = "is missing" if value is None else f"is {value!r}, no positive number"
        raise UserError(f"model.base_learning_rate {found}; set it next to model.target, for example to 1.0e-6")
    return rate


def learning_rate(
    base: float,
    batch: int,
    settings: Mapping[str, Any],
    scale: bool,
    private: bool = False,
    made_for: RateForBatch | None = None,
) -> float:
    """The learning rate of the lineage's rule; logs it in one line.

    With ``--scale_lr`` (the default) the base rate is multiplied by accumulated batches, devices and batch size; under
    DP only the logical batch size counts, because the devices share the logical batch. Logs a warning when the product
    is far from the rate that the configuration was ``made_for``.
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
    if made_for is not None:
        warn_of_another_rate(rate, made_for)
    return rate


def warn_of_another_rate(rate: float, made_for: RateForBatch) -> None:
    """Log a warning when the batch size or number of devices moves the rate away from the intended one."""
    usual = made_for.base * made_for.batch
    if max(rate / usual, usual / rate) <= FACTOR:
        return
    logger.warning(
        "learning rate %.3g is %.3g times the %.3g that %s was made for (batch size %d): the rate follows the batch "
        "size; to keep it, type --scale_lr False model.base_learning_rate=%.3g",
        rate,
        rate / usual,
        usual,
        made_for.source,
        made_for.batch,
        usual,
    )
