"""`check_settings`: a misspelt ``key.path=value`` is named before it is silently ignored.

A training run finds such a mistake when it builds the object that the key belongs to. Commands that build a part of the
configuration only (budget, audit, sample) would never look at the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.config import RETIRED, accepted_parameters, canonical_target, get_obj_from_str, value_at
from ldm.errors import UserError, nearest
from ldm.models.diffusion.dp_config import DPDM_K
from ldm.models.diffusion.sampling_section import SamplingSection
from ldm.privacy.config import DPConfig
from ldm.training.request import LIGHTNING_KEYS, MODEL_KEYS, SECTIONS
from ldm.training.trainer_flags import known_trainer_settings

DP_CONFIG = "model.params.dp_config"


def check_settings(config: DictConfig, dotlist: Sequence[str]) -> None:
    """Check the keys of settings against a configuration, in which they may already be merged.

    Raises UserError for a key that the configuration's sections, the constructors that it names, ``dp_config`` and the
    Trainer do not have, naming the nearest that does exist. Values are not looked at.
    """
    values = OmegaConf.to_container(config, resolve=False)
    for entry in dotlist:
        keys = entry.partition("=")[0].replace("[", ".").replace("]", "").split(".")
        node: Any = values
        for place, key in enumerate(keys):
            if not isinstance(node, Mapping):
                break
            above = ".".join(keys[:place])
            known = known_keys(above, value_at(values, *keys[: place - 1]) if place else values)
            if known is not None and key not in known:
                where = f"{above} has no key" if above else "there is no section"
                hint = nearest(key, known) or f"; it has {', '.join(sorted(known))}"
                raise UserError(f"'{entry}': {where} '{key}'{hint}")
            node = node.get(key)


def known_keys(path: str, parent: Any) -> set[str] | None:
    """The keys that may stand at ``path``; None where any may. ``parent`` is the section that ``path`` lies in."""
    fixed: dict[str, set[str]] = {
        "": {*SECTIONS},
        "model": {*MODEL_KEYS},
        "data": {"target", "params"},
        "lightning": {*LIGHTNING_KEYS},
        "lightning.trainer": known_trainer_settings(),
        "sampling": {field.name for field in fields(SamplingSection)},
        DP_CONFIG: {DPDM_K, *(field.name for field in fields(DPConfig))},
    }
    if path in fixed:
        return fixed[path]
    if path.rpartition(".")[2] != "params" or not isinstance(parent, Mapping) or "target" not in parent:
        return None
    target = parent["target"]
    named, _, open_ended = accepted_parameters(get_obj_from_str(target))
    return None if open_ended else named | {*RETIRED.get(canonical_target(target), {})}
