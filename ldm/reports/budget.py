"""The privacy budget of a private configuration, computed without data and without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from ldm.config import load_config, to_plain
from ldm.errors import UserError
from ldm.models.diffusion.dp_config import read_dp_config
from ldm.privacy.accounting import epsilon
from ldm.privacy.budget import Budget
from ldm.privacy.event import History
from ldm.privacy.plan import PrivacyPlan
from ldm.training.private_checks import required_length
from ldm.training.settings import check_settings
from ldm.training.statistics_plan import StatisticsPlan
from ldm.training.trainer_flags import rename_legacy_arguments


def config_plan(path: str | Path, dotlist: Sequence[str] = ()) -> tuple[DictConfig, PrivacyPlan, History]:
    """A private configuration, the plan of its run as in training, and the events that are charged before it.

    Raises UserError for a file that is not private, or does not state its number of records, batch size or length,
    and for a setting whose key does not exist.
    """
    config = load_config([path], dotlist)
    check_settings(config, dotlist)
    for section in ("model", "data"):
        if not isinstance(config.get(section), DictConfig) or not isinstance(config[section].get("params"), DictConfig):
            raise UserError(f"{path}: has no section '{section}' with params; give a private training configuration")
    raw = to_plain(config.model.params.get("dp_config")) or {}
    if not raw.get("enabled"):
        raise UserError(f"{path}: dp_config.enabled is not set, so the run would have no guarantee to account for")
    private = read_dp_config(raw, config.model.params.get("DPDM_k") or 1)
    if private.dataset_size is None:
        raise UserError(f"{path}: dp_config.dataset_size is not stated; type model.params.dp_config.dataset_size=N")
    settings = rename_legacy_arguments(to_plain((config.get("lightning") or {}).get("trainer")) or {})
    epochs, steps = required_length(settings)
    batch, size = config.data.params.batch_size, private.dataset_size
    before = StatisticsPlan.read(private.warm_up).events(private.relation) if private.warm_up else ()
    plan = private.plan(num_records=size, batch_size=batch, epochs=epochs, steps=steps, history=before)
    return config, plan, before


def config_budget(path: str | Path, dotlist: Sequence[str] = ()) -> Budget:
    """The budget of a run of this file, from the same plan as in training; raises as `config_plan`."""
    _, plan, before = config_plan(path, dotlist)
    return Budget(
        batch_size=int(plan.expected_batch_size),
        sample_rate=plan.sample_rate,
        steps=plan.steps,
        noise_multiplier=plan.noise_multiplier,
        epsilon=epsilon([*before, (plan.event(), plan.steps)], plan.delta),
        delta=plan.delta,
        relation=plan.relation,
        sampling=plan.sampling,
        runs=1,
    )
