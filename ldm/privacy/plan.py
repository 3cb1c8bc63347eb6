"""`PrivacyPlan`: the public constants of a private run, fixed before the first record is read.

>>> plan = PrivacyPlan.calibrate(
...     target_epsilon=2, delta=1e-6, batch_size=100, num_records=10_000, epochs=1, max_grad_norm=1.0
... )
>>> plan.sample_rate, plan.steps
(0.01, 100)
>>> 1.99 < plan.epsilon() <= 2
True
>>> plan.noise_std == plan.noise_multiplier  # on the sum; C is 1 here
True
>>> PrivacyPlan.from_dict(plan.to_dict()) == plan
True
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ldm.errors import UserError, nearest
from ldm.privacy.accounting import Spending, accountants_for, calibrate, epsilon, joint_epsilon
from ldm.privacy.event import ADD_OR_REMOVE_ONE, POISSON, History, SamplingEvent, sensitivity
from ldm.privacy.selection import Selection
from ldm.privacy.validate import number, whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrivacyPlan:
    """The constants that sampler, clipper, noise and ledger share; do not recompute them elsewhere.

    Public constants, none of them computed from the records: ``sample_rate`` q in (0, 1], ``steps`` logical steps,
    ``noise_multiplier`` sigma > 0 (noise over sensitivity), ``max_grad_norm`` C > 0, ``delta`` in (0, 1),
    ``expected_batch_size`` the configured batch size that divides noised sums, ``relation`` between neighbouring data
    sets, ``noise_multiplicity`` K noise draws a record (at no privacy cost, since they are averaged inside the record
    before clipping), ``clipping`` the name of the clipping rule, ``num_records`` the published size of the data set,
    used for checks only. ``selection``: the run is the best of a random number of such runs. With ``insecure_seed``,
    anyone who knows it can reproduce sampling and noise; such a run is not private.

    Raises UserError for values out of range and for ``delta >= 1 / num_records``.
    """

    sample_rate: float
    steps: int
    noise_multiplier: float
    max_grad_norm: float
    delta: float
    expected_batch_size: float
    relation: str = ADD_OR_REMOVE_ONE
    target_epsilon: float | None = None
    noise_multiplicity: int = 1
    clipping: str = "flat"
    num_records: int | None = None
    sampling: str = POISSON
    insecure_seed: int | None = None
    selection: Selection | None = None

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        number("max_grad_norm", self.max_grad_norm, above=0)
        number("expected_batch_size", self.expected_batch_size, above=0)
        whole("noise_multiplicity", self.noise_multiplicity)
        if not isinstance(self.clipping, str) or not self.clipping:
            raise UserError(f"clipping is {self.clipping!r}, it must be the name of a clipping rule such as flat")
        if self.target_epsilon is not None:
            number("target_epsilon", self.target_epsilon, above=0)
        if self.insecure_seed is not None:
            whole("insecure_seed", self.insecure_seed, at_least=0)
        check_delta(self.delta, self.num_records)
        self.event()  # checks the fields that a plan shares with its event

    def event(self) -> SamplingEvent:
        """One step of this plan, as the ledger records it."""
        return SamplingEvent(self.sample_rate, self.noise_multiplier, self.sampling, self.relation)

    @property
    def sensitivity(self) -> float:
        """How far one record can move the clipped sum: C when it is added or removed, 2C when it is replaced."""
        return sensitivity(self.max_grad_norm, self.relation)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on the sum of clipped gradients, before division by the batch size."""
        return self.noise_multiplier * self.sensitivity

    @property
    def step_noise_variance(self) -> float:
        """Variance of the noise on each coordinate of a step's averaged gradient: a public constant."""
        return (self.noise_std / self.expected_batch_size) ** 2

    @property
    def secure(self) -> bool:
        """Whether sampling and noise are seeded by the operating system."""
        return self.insecure_seed is None

    def epsilon(self, accountant: str | None = None) -> float:
        """Epsilon at the plan's delta when all its steps have been taken, and the run was selected if it is planned."""
        if self.selection is not None:
            return joint_epsilon([([(self.event(), self.steps)], self.selection)], self.delta)
        return epsilon([(self.event(), self.steps)], self.delta, accountant)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; ``selection`` only where there is one."""
        values = asdict(self)
        if self.selection is None:
            del values["selection"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrivacyPlan:
        """Read :meth:`to_dict` back; raises UserError for unknown or missing keys and for values out of range."""
        if not isinstance(values, Mapping):
            raise UserError(f"a privacy plan is a mapping of its fields, found {type(values).__name__}")
        names = [field.name for field in fields(cls)]
        for key in values:
            if key not in names:
                raise UserError(f"privacy plan: unknown key {key!r}{nearest(str(key), names)}")
        missing = [name for name in names[:6] if name not in values]
        if missing:
            raise UserError(f"privacy plan: missing {', '.join(missing)}")
        selection = values.get("selection")
        return cls(**{**values, "selection": None if selection is None else Selection.from_dict(selection)})

    def digest(self) -> str:
        """SHA-256 of the fields, in hexadecimal: equal plans have equal digests."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: PrivacyPlan) -> dict[str, tuple[Any, Any]]:
        """Fields in which two plans differ, as (mine, theirs), for the message of a refused resume."""
        mine, theirs = self.to_dict(), other.to_dict()
        names = dict.fromkeys([*mine, *theirs])
        pairs = {name: (mine.get(name), theirs.get(name)) for name in names}
        return {name: (one, other) for name, (one, other) in pairs.items() if one != other}

    @classmethod
    def calibrate(
        cls,
        *,
        target_epsilon: float,
        delta: float,
        batch_size: int,
        max_grad_norm: float,
        num_records: int | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        sample_rate: float | None = None,
        relation: str = ADD_OR_REMOVE_ONE,
        sampling: str = POISSON,
        noise_multiplicity: int = 1,
        clipping: str = "flat",
        insecure_seed: int | None = None,
        accountant: str | None = None,
        history: History = (),
        others: Sequence[Spending] = (),
        selection: Selection | None = None,
    ) -> PrivacyPlan:
        """The plan with the least noise for (target_epsilon, delta), by the rule of the DP-LDM lineage, and a log line.

        q = 1 / ceil(num_records / batch_size) unless ``sample_rate`` is given, steps = epochs / q unless ``steps`` is;
        ``num_records`` is the published size. ``history`` (the run's events before its steps) and ``others`` (what
        other runs on the records have spent) are charged first. With a ``selection`` the best of several runs meets
        the target. Raises UserError unless one of epochs and steps is given, and for values or targets out of range."""
        rate = sample_rate if sample_rate is not None else lineage_sample_rate(num_records, batch_size)
        count = planned_steps(rate, epochs=epochs, steps=steps)
        check_delta(delta, num_records)
        sigma = calibrate(
            target_epsilon=target_epsilon,
            delta=delta,
            sample_rate=rate,
            steps=count,
            relation=relation,
            sampling=sampling,
            accountant=accountant,
            history=history,
            others=others,
            selection=selection,
        )
        plan = cls(
            sample_rate=rate,
            steps=count,
            noise_multiplier=sigma,
            max_grad_norm=max_grad_norm,
            delta=delta,
            expected_batch_size=batch_size,
            relation=relation,
            target_epsilon=target_epsilon,
            noise_multiplicity=noise_multiplicity,
            clipping=clipping,
            num_records=num_records,
            sampling=sampling,
            insecure_seed=insecure_seed,
            selection=selection,
        )
        plan._log([*others, ([*history, (plan.event(), plan.steps)], selection)], accountant)
        return plan

    def _log(self, spending: Sequence[Spending], accountant: str | None) -> None:
        """Log the plan and the epsilon of ``spending``, other runs included, in one line."""
        alone = len(spending) == 1 and self.selection is None
        spent = epsilon(spending[0][0], self.delta, accountant) if alone else joint_epsilon(spending, self.delta)
        logger.info(
            "privacy plan: noise multiplier %.4f, %d steps, sample rate %.6g, epsilon %.4f at delta %g "
            "(%s, %s, accountant %s)%s",
            self.noise_multiplier,
            self.steps,
            self.sample_rate,
            spent,
            self.delta,
            self.relation,
            self.sampling,
            accountant or (accountants_for(spending[0][0])[0] if alone else "of all runs"),
            "" if self.secure else "; insecure seed: NOT private",
        )


def lineage_sample_rate(num_records: int | None, batch_size: int) -> float:
    """q = 1 / ceil(N / B), the sampling rate that the published sigmas assume; N is the published size."""
    whole("batch_size", batch_size)
    if num_records is None:
        raise UserError(
            "the sampling rate is unknown: give num_records (the published size of the data set) or sample_rate"
        )
    whole("num_records", num_records)
    return 1 / math.ceil(num_records / batch_size)


def planned_steps(sample_rate: float, *, epochs: int | None = None, steps: int | None = None) -> int:
    """Logical steps of a run: ``steps``, or ``epochs`` / q; in 1 / q steps a record is expected once.

    Raises UserError unless exactly one is given, since a default would calibrate noise for training that never happens.
    """
    number("sample_rate", sample_rate, above=0, at_most=1)
    if (epochs is None) == (steps is None):
        raise UserError("a private run needs exactly one of epochs (trainer max_epochs) and steps (trainer max_steps)")
    if steps is not None:
        whole("steps", steps)
        return steps
    whole("epochs", epochs)
    assert epochs is not None
    return epochs * math.ceil(round(1 / sample_rate, 9))


def check_delta(delta: float, num_records: int | None) -> None:
    """Raise UserError unless 0 < delta < 1 / num_records; a larger delta would allow publishing one record outright."""
    number("delta", delta, above=0)
    if num_records is not None:
        whole("num_records", num_records)
    limit = 1.0 if num_records is None else 1 / num_records
    if delta >= limit:
        raise UserError(
            f"delta {delta:g} is not below {limit:.3g}"
            + (
                ""
                if num_records is None
                else f" = 1 / {num_records} records; write delta: {0.1 / num_records:.0e} or less"
            )
        )
