"""The privacy budget of a private configuration, computed without data and without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from ldm.config import load_config, to_plain, value_at
from ldm.errors import UserError
from ldm.models.diffusion.dp_config import read_dp_config
from ldm.privacy.accounting import Spending, epsilon
from ldm.privacy.budget import Budget
from ldm.privacy.config import DPConfig
from ldm.privacy.event import History
from ldm.privacy.plan import PrivacyPlan
from ldm.training.private_checks import required_length
from ldm.training.settings import check_settings
from ldm.training.statistics_plan import charges_before
from ldm.training.trainer_flags import rename_legacy_arguments


@dataclass(frozen=True)
class PlannedRun:
    """The public constants in a private configuration from which the plan of its run follows, without its data.

    ``dp`` states the number of records. One of ``epochs`` and ``steps`` is None. ``before``: the charges of statistics
    that are released before the first step.
    """

    config: DictConfig
    dp: DPConfig
    batch_size: int
    epochs: int | None
    steps: int | None
    before: History

    @classmethod
    def read(cls, path: str | Path, dotlist: Sequence[str] = ()) -> PlannedRun:
        """Read a configuration with ``key.path=value`` settings.

        Raises UserError for a file that is not private, or does not state its number of records, batch size or length,
        and for a setting whose key does not exist.
        """
        config = load_config([path], dotlist)
        check_settings(config, dotlist)
        for section in ("model", "data"):
            found = config.get(section)
            if not isinstance(found, DictConfig) or not isinstance(found.get("params"), DictConfig):
                raise UserError(
                    f"{path}: has no section '{section}' with params; give a private training configuration"
                )
        raw = to_plain(config.model.params.get("dp_config")) or {}
        if not isinstance(raw, dict) or not raw.get("enabled"):
            raise UserError(f"{path}: dp_config.enabled is not set, so the run would have no guarantee to account for")
        dp = read_dp_config(raw, config.model.params.get("DPDM_k") or 1)
        if dp.dataset_size is None:
            raise UserError(f"{path}: dp_config.dataset_size is not stated; type model.params.dp_config.dataset_size=N")
        trainer = value_at(to_plain(config.get("lightning")), "trainer")
        settings = rename_legacy_arguments(trainer if isinstance(trainer, dict) else {})
        epochs, steps = required_length(settings)
        before = charges_before(dp.warm_up, dp.relation)
        batch = config.data.params.get("batch_size")
        if not isinstance(batch, int) or batch < 1:
            raise UserError(f"{path}: data.params.batch_size is {batch}; type data.params.batch_size=N")
        return cls(config, dp, batch, epochs, steps, before)

    @property
    def num_records(self) -> int:
        """The stated number of records."""
        assert self.dp.dataset_size is not None  # `read` demands it
        return self.dp.dataset_size

    def plan(self, noise_multiplier: float | None = None) -> PrivacyPlan:
        """The plan of the run as in training, or with a ``noise_multiplier`` in place of its own and of the target."""
        dp = self.dp
        if noise_multiplier is not None:
            dp = replace(dp, epsilon=None, noise_multiplier=noise_multiplier)
        return dp.plan(
            num_records=self.num_records,
            batch_size=self.batch_size,
            epochs=self.epochs,
            steps=self.steps,
            history=self.before,
        )

    def spending(self, plan: PrivacyPlan) -> Spending:
        """What the run has spent when all steps of ``plan`` are taken."""
        return [*self.before, (plan.event(), plan.steps)], plan.selection


def config_budget(path: str | Path, dotlist: Sequence[str] = ()) -> Budget:
    """The budget of a run of this file, from the same plan as in training; raises as `PlannedRun.read`."""
    run = PlannedRun.read(path, dotlist)
    plan = run.plan()
    return Budget(
        batch_size=int(plan.expected_batch_size),
        sample_rate=plan.sample_rate,
        steps=plan.steps,
        noise_multiplier=plan.noise_multiplier,
        epsilon=epsilon(run.spending(plan)[0], plan.delta),
        delta=plan.delta,
        relation=plan.relation,
        sampling=plan.sampling,
        runs=1,
    )
