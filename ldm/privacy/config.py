"""`DPConfig`: the checked settings of a private run, and the plan made from them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ldm.errors import UserError, nearest
from ldm.privacy.accounting import Spending
from ldm.privacy.clipping import ENGINES, STYLES
from ldm.privacy.event import ADD_OR_REMOVE_ONE, POISSON, REPLACE_ONE, WITHOUT_REPLACEMENT, History
from ldm.privacy.plan import PrivacyPlan, lineage_sample_rate, planned_steps
from ldm.privacy.selection import Selection
from ldm.privacy.validate import lines, number, whole

logger = logging.getLogger(__name__)

#: The value of ``max_batch_size`` that lets the run measure how many records fit into the memory.
AUTO = "auto"

#: A stated ``dataset_size`` more than this many times the number of records is worth a warning.
FAR_ABOVE = 2.0

#: A delta above this share of 1 / N is worth a warning: with delta = 1 / N one record may be published outright.
DELTA_SHARE = 0.1


@dataclass(frozen=True)
class DPConfig:
    """The section ``dp_config`` of a model; every value is in range, and None means not given.

    Public constants, none of them computed from the records. Raises UserError for a value out of range;
    :meth:`require_complete` checks for missing values.
    """

    #: Whether training is private at all.
    enabled: bool = False
    #: The target epsilon > 0: the noise is calibrated to it. Excludes ``noise_multiplier``.
    epsilon: float | None = None
    #: The delta of the guarantee, in (0, 1) and below 1 / number of records.
    delta: float | None = None
    #: The clipping norm C > 0 of one record's gradient.
    max_grad_norm: float | None = None
    #: Poisson batches (the default), or batches of a fixed size drawn without replacement.
    poisson_sampling: bool = True
    #: Records whose gradients are computed at once, >= 1, or auto, which measures: memory only. None: the whole batch.
    max_batch_size: int | str | None = None
    #: K >= 1 timesteps and noises a record; its loss is their mean.
    noise_multiplicity: int = 1
    #: The clipping rule: flat, automatic or per_layer.
    clipping: str = "flat"
    #: How per-record gradients are computed: bookkeeping, instantiate or naive.
    engine: str = "bookkeeping"
    #: The published number of records N >= 1, at least that of the training set. None: that of the training set.
    dataset_size: int | None = None
    #: The sampling rate q in (0, 1] of Poisson batches. None: 1 / ceil(N / batch size).
    sample_rate: float | None = None
    #: sigma > 0, noise over sensitivity. Excludes ``epsilon``.
    noise_multiplier: float | None = None
    #: A public seed >= 0 for sampling and noise: anyone who knows it can subtract the noise, so the run is not private.
    insecure_seed: int | None = None
    #: Names of the data sets that the weights have seen outside the guarantee, for the release card.
    public_data: tuple[str, ...] = ()
    #: Privacy cards (``privacy.json``, or run directories) of other private runs on the same records, charged first.
    other_runs: tuple[str, ...] = ()
    #: ``eta`` and ``gamma`` of a private selection, of which this run is one; `dp-ldm sweep` sets them.
    selection: dict[str, Any] | None = None
    #: The statistics that are released before the first step; `ldm.training.statistics_plan` reads them.
    warm_up: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("public_data", "other_runs"):
            object.__setattr__(self, name, lines(f"dp_config.{name}", getattr(self, name)))  # YAML gives a list
        if self.selection is not None:
            Selection.from_dict(self.selection)
        for name in ("epsilon", "max_grad_norm", "noise_multiplier"):
            if getattr(self, name) is not None:
                number(f"dp_config.{name}", getattr(self, name), above=0)
        for name in ("delta", "sample_rate"):
            if getattr(self, name) is not None:
                number(f"dp_config.{name}", getattr(self, name), above=0, at_most=1)
        size = self.max_batch_size
        if isinstance(size, str) and size.isdigit():
            object.__setattr__(self, "max_batch_size", size := int(size))
        if isinstance(size, str) and size != AUTO:
            raise UserError(f"dp_config.max_batch_size: {size!r} is no number of records; give one, or auto")
        if isinstance(size, bool) or (isinstance(size, int) and size < 1):
            raise UserError(f"dp_config.max_batch_size: {size} is no positive number of records; give one, or auto")
        whole("dp_config.noise_multiplicity", self.noise_multiplicity)
        for name, least in (("dataset_size", 1), ("insecure_seed", 0)):
            if getattr(self, name) is not None:
                whole(f"dp_config.{name}", getattr(self, name), at_least=least)
        for name, known in (("clipping", STYLES), ("engine", ENGINES)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(
                    f"dp_config.{name}: {value!r} is unknown; choose one of {', '.join(known)}{nearest(value, known)}"
                )

    @property
    def sampling(self) -> str:
        """The kind of sampling, as a `SamplingEvent` names it."""
        return POISSON if self.poisson_sampling else WITHOUT_REPLACEMENT

    @property
    def relation(self) -> str:
        """The neighbouring relation: replace-one for batches of fixed size, which need a fixed number of records."""
        return ADD_OR_REMOVE_ONE if self.poisson_sampling else REPLACE_ONE

    @property
    def chosen_by(self) -> Selection | None:
        """The private selection of which the run is part."""
        return None if self.selection is None else Selection.from_dict(self.selection)

    def require_complete(self) -> None:
        """Raise UserError for settings that private training needs and the section lacks, or gives twice."""
        for name in ("delta", "max_grad_norm"):
            if getattr(self, name) is None:
                raise UserError(f"dp_config.{name} is missing; private training needs it")
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise UserError("dp_config: give either epsilon (the noise is calibrated) or noise_multiplier")
        if not self.poisson_sampling and self.sample_rate is not None:
            raise UserError(
                "dp_config.sample_rate: with poisson_sampling: false the rate is batch_size / records; remove it"
            )

    def check_records(self, records: int) -> None:
        """Compare the stated size with the number of ``records``; refuse one too small, warn about a careless one.

        Raises UserError when the stated size is below the number of records, or differs from it with batches of a
        fixed size, where the number of records is public and decides what a step costs.
        """
        size = self.dataset_size
        if size is None:
            if self.poisson_sampling:
                logger.warning(
                    "dp_config.dataset_size is not given: the plan takes the number of records from the private data; "
                    "state one that you may publish, rounded up if you like"
                )
            return
        if not self.poisson_sampling:
            if size != records:
                raise UserError(
                    f"dp_config.dataset_size: with poisson_sampling: false it must be the number of records, {records}"
                )
            return
        if records > size:
            raise UserError(f"dp_config.dataset_size: {size} is stated, but the training set has {records} records")
        if records == size:
            logger.warning(
                "dp_config.dataset_size: %d is exactly the number of training records; with one more the run would be "
                "refused, so that one record decides whether there is a result: round it up",
                size,
            )
        elif size > FAR_ABOVE * records:
            logger.warning(
                "dp_config.dataset_size: %d is stated, the training set has %d records: batches will hold %.2g times "
                "the records that the noise was sized for; state a number close to the real one",
                size,
                records,
                records / size,
            )

    def plan(
        self,
        *,
        num_records: int,
        batch_size: int,
        epochs: int | None = None,
        steps: int | None = None,
        history: History = (),
        others: Sequence[Spending] = (),
    ) -> PrivacyPlan:
        """The plan of a new run of ``epochs`` or ``steps``, with calibrated noise unless ``noise_multiplier`` is given.

        ``num_records`` is the length of the training set; a stated ``dataset_size`` replaces it. ``batch_size`` is the
        expected number of records of a batch. ``history`` holds the run's own events before its steps, ``others`` the
        spending of other runs on the same records; both are charged against a target epsilon first. Raises
        UserError for missing settings and for targets that cannot be met.
        """
        self.require_complete()
        assert self.delta is not None and self.max_grad_norm is not None
        size = self.dataset_size or num_records
        _warn_of_large(self.delta, size)
        rate = self._rate(size, batch_size)
        if self.noise_multiplier is None:
            assert self.epsilon is not None
            return PrivacyPlan.calibrate(
                target_epsilon=self.epsilon,
                delta=self.delta,
                batch_size=batch_size,
                max_grad_norm=self.max_grad_norm,
                num_records=size,
                epochs=epochs,
                steps=steps,
                sample_rate=rate,
                relation=self.relation,
                sampling=self.sampling,
                noise_multiplicity=self.noise_multiplicity,
                clipping=self.clipping,
                insecure_seed=self.insecure_seed,
                history=history,
                others=others,
                selection=self.chosen_by,
            )
        plan = PrivacyPlan(
            sample_rate=rate,
            steps=planned_steps(rate, epochs=epochs, steps=steps),
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.max_grad_norm,
            delta=self.delta,
            expected_batch_size=batch_size,
            relation=self.relation,
            noise_multiplicity=self.noise_multiplicity,
            clipping=self.clipping,
            num_records=size,
            sampling=self.sampling,
            insecure_seed=self.insecure_seed,
            selection=self.chosen_by,
        )
        if any(event == plan.event() for event, _ in history):  # the ledger could not tell them apart
            raise UserError("dp_config: a step and an earlier release are one event; change a noise_multiplier")
        return plan

    def _rate(self, size: int, batch_size: int) -> float:
        """The sampling rate q: the stated one, the lineage's, or batch size over N for batches of fixed size."""
        if not self.poisson_sampling:
            if batch_size > size:
                raise UserError(f"data.params.batch_size: {batch_size} exceeds the {size} training records")
            return batch_size / size
        return self.sample_rate if self.sample_rate is not None else lineage_sample_rate(size, batch_size)


def _warn_of_large(delta: float, size: int) -> None:
    if DELTA_SHARE / size < delta < 1 / size:
        logger.warning(
            "dp_config.delta: %g is above %g / %d records; delta is the chance that a record is given away, so "
            "write delta: %.0e or less",
            delta,
            DELTA_SHARE,
            size,
            DELTA_SHARE / size,
        )
