"""Privacy budgets before a run: noise for epsilon, or epsilon for noise, over batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ldm.errors import UserError
from ldm.numbers import rounded_up
from ldm.privacy.accounting import calibrate, epsilon
from ldm.privacy.event import ADD_OR_REMOVE_ONE, POISSON, SamplingEvent, sensitivity
from ldm.privacy.plan import check_delta, lineage_sample_rate, planned_steps
from ldm.privacy.validate import whole


@dataclass(frozen=True)
class Budget:
    """One setting and its cost. All fields are public constants; ``epsilon`` is for all ``runs`` together.

    ``noise_share`` is the noise on the mean gradient in units of C, sigma / B: a smaller value means better training.
    """

    batch_size: int
    sample_rate: float
    steps: int
    noise_multiplier: float
    epsilon: float
    delta: float
    relation: str
    sampling: str
    runs: int

    @property
    def noise_share(self) -> float:
        """Standard deviation of the noise on the averaged gradient, over C."""
        return self.noise_multiplier * sensitivity(1.0, self.relation) / self.batch_size

    def events(self) -> list[tuple[SamplingEvent, int]]:
        """The history that was accounted."""
        event = SamplingEvent(self.sample_rate, self.noise_multiplier, self.sampling, self.relation)
        return [(event, self.steps * self.runs)]


def budget(
    *,
    batch_size: int,
    delta: float,
    num_records: int | None = None,
    sample_rate: float | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    target_epsilon: float | None = None,
    noise_multiplier: float | None = None,
    relation: str = ADD_OR_REMOVE_ONE,
    sampling: str = POISSON,
    runs: int = 1,
    accountant: str | None = None,
) -> Budget:
    """The noise that meets ``target_epsilon``, or the epsilon of ``noise_multiplier``: give exactly one of the two.

    Rates and steps follow :meth:`PrivacyPlan.calibrate`. ``runs`` runs of equal settings on the same records, a sweep
    for instance, are composed. Raises UserError for values out of range and for targets that cannot be met.
    """
    if (target_epsilon is None) == (noise_multiplier is None):
        raise UserError("give exactly one of a target epsilon and a noise multiplier")
    rate = sample_rate if sample_rate is not None else lineage_sample_rate(num_records, batch_size)
    count = planned_steps(rate, epochs=epochs, steps=steps)
    whole("batch_size", batch_size)
    whole("runs", runs)
    check_delta(delta, num_records)
    sigma = noise_multiplier
    if sigma is None:
        assert target_epsilon is not None
        sigma = calibrate(
            target_epsilon=target_epsilon,
            delta=delta,
            sample_rate=rate,
            steps=count * runs,
            relation=relation,
            sampling=sampling,
            accountant=accountant,
        )
    event = SamplingEvent(rate, sigma, sampling, relation)
    spent = epsilon([(event, count * runs)], delta, accountant)
    return Budget(batch_size, rate, count, sigma, spent, delta, relation, sampling, runs)


def table(rows: Sequence[Budget]) -> str:
    """The budgets as lines of text, one a row, with a heading."""
    head = f"{'batch':>8} {'sample rate':>12} {'steps':>8} {'sigma':>9} {'epsilon':>9} {'delta':>9} {'sigma/B':>10}"
    lines = [
        f"{row.batch_size:>8} {row.sample_rate:>12.6g} {row.steps:>8} {row.noise_multiplier:>9.4f} "
        f"{rounded_up(row.epsilon):>9} {rounded_up(row.delta, 3):>9} {row.noise_share:>10.3g}"
        for row in rows
    ]
    return "\n".join([head, *lines])
