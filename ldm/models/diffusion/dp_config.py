"""`read_dp_config`: from the section ``dp_config`` of a YAML file to a checked `DPConfig`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ldm.config import read_options
from ldm.errors import UserError
from ldm.privacy.config import DPConfig

logger = logging.getLogger(__name__)

#: DP-LoRA's name of the noise multiplicity; accepted inside ``dp_config`` or beside it.
DPDM_K = "DPDM_k"


def read_dp_config(raw: Mapping[str, Any] | None, multiplicity: int = 1) -> DPConfig:
    """Read the section, once, when the model is built; null values count as not given.

    ``multiplicity`` is the model's own option ``DPDM_k``; 1 means that it was not set. Raises UserError for a key that
    does not exist (naming the nearest that does), a value of the wrong kind or out of range, and for two different
    values of the noise multiplicity K.
    """
    section = {str(key): value for key, value in (raw or {}).items() if value is not None}
    inside = section.pop(DPDM_K, None)
    if inside is not None and (not isinstance(inside, int) or isinstance(inside, bool)):
        raise UserError(f"dp_config.{DPDM_K}: {inside!r} is no whole number")
    if inside is not None and section.setdefault("noise_multiplicity", inside) != inside:
        raise UserError(
            f"dp_config: DPDM_k {inside} and noise_multiplicity {section['noise_multiplicity']} are one setting; "
            "keep noise_multiplicity"
        )
    if isinstance(section.get("public_data"), str):
        section["public_data"] = [section["public_data"]]
    stated = section.get("noise_multiplicity", multiplicity)
    if multiplicity != 1 and stated != multiplicity:
        raise UserError(f"DPDM_k is {multiplicity} but dp_config.noise_multiplicity is {stated}; keep the latter")
    config = read_options(DPConfig, section, "dp_config", other_names=(DPDM_K,))
    if multiplicity == 1 or config.noise_multiplicity == multiplicity:
        return config
    if config.enabled:
        return read_options(DPConfig, {**section, "noise_multiplicity": multiplicity}, "dp_config")
    logger.warning("DPDM_k: %d noise draws a record are for private training; this run takes one", multiplicity)
    return config
