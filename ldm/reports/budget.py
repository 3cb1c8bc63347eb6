"""The privacy budget of a private configuration, computed without data and without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from ldm.config import load_config, to_plain
from ldm.errors import UserError
from ldm.models.diffusion.dp_config import read_dp_config
from ldm.privacy.budget import Budget
from ldm.training.private_run import required_length
from ldm.training.trainer_flags import rename_legacy_arguments


def config_budget(path: str | Path, dotlist: Sequence[str] = ()) -> Budget:
    """The budget of a run of this file, from the same plan as in training.

    Raises UserError for a file that is not private, or does not state its number of records, batch size or length.
    """
    config = load_config([path], dotlist)
    for section in ("model", "data"):
        if not isinstance(config.get(section), DictConfig) or not isinstance(config[section].get("params"), DictConfig):
            raise UserError(f"{path}: has no section '{section}' with params; give a private training configuration")
    raw = to_plain(config.model.params.get("dp_config")) or {}
    if not raw.get("enabled"):
        raise UserError(f"{path}: dp_config.enabled is not set, so the run would have no guarantee to account for")
    private = read_dp_config(raw, config.model.params.get("DPDM_k") or 1)
    if private.dataset_size is None:
        raise UserError(f"{path}: dp_config.dataset_size is not stated; type model.params.dp_config.dataset_size=N")
    batch = config.data.params.batch_size
    settings = rename_legacy_arguments(to_plain((config.get("lightning") or {}).get("trainer")) or {})
    epochs, steps = required_length(settings)
    plan = private.plan(num_records=private.dataset_size, batch_size=batch, epochs=epochs, steps=steps)
    return Budget(
        batch_size=batch,
        sample_rate=plan.sample_rate,
        steps=plan.steps,
        noise_multiplier=plan.noise_multiplier,
        epsilon=plan.epsilon(),
        delta=plan.delta,
        relation=plan.relation,
        sampling=plan.sampling,
        runs=1,
    )
