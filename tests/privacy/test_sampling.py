"""Batch samplers: inclusion statistics, empty draws, secrecy and reproducibility."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ldm.errors import UserError
from ldm.privacy.event import SamplingEvent
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.ranks import Ranks
from ldm.privacy.sampling import FixedSizeBatchSampler, PoissonBatchSampler, ShardedBatchSampler, sampler_from_plan


def plan(**changes):
    values = dict(
        sample_rate=0.1, steps=10, noise_multiplier=1.0, max_grad_norm=1.0, delta=1e-5, expected_batch_size=10
    )
    return PrivacyPlan(**{**values, **changes})


def chi_square(observed, expected):
    return float(((observed - expected) ** 2 / expected).sum())


def test_every_record_is_included_with_the_sample_rate_and_independently():
    records, rate, draws = 40, 0.15, 20_000
    sampler = PoissonBatchSampler(records, rate, draws, np.random.default_rng(0))
    included = np.zeros((draws, records))
    for row, batch in enumerate(sampler):
        included[row, batch] = 1
    spread = np.sqrt(rate * (1 - rate) / draws)
    assert np.abs(included.mean(0) - rate).max() < 5 * spread
    correlation = np.corrcoef(included.T) - np.eye(records)
    assert np.abs(correlation).max() < 5 / np.sqrt(draws), "records are independent of each other"
    across = np.corrcoef(included[:-1, 0], included[1:, 0])[0, 1]
    assert abs(across) < 5 / np.sqrt(draws), "steps are independent of each other"


def test_batch_sizes_are_binomial():
    records, rate, draws = 12, 0.2, 20_000
    sizes = [len(batch) for batch in PoissonBatchSampler(records, rate, draws, np.random.default_rng(1))]
    from math import comb

    probability = np.array([comb(records, k) * rate**k * (1 - rate) ** (records - k) for k in range(records + 1)])
    kept = probability * draws > 5
    observed = np.bincount(sizes, minlength=records + 1)[kept]
    assert chi_square(observed, draws * probability[kept]) < 30  # 8 degrees of freedom, 99.98 %


def test_empty_draws_are_yielded_and_counted():
    batches = list(PoissonBatchSampler(3, 0.05, 200))
    assert len(batches) == 200
    assert [] in batches
    assert list(PoissonBatchSampler(5, 1.0, 2)) == [[0, 1, 2, 3, 4]] * 2


def test_a_batch_names_valid_records_once():
    for batch in PoissonBatchSampler(100, 0.3, 50):
        assert all(type(index) is int and 0 <= index < 100 for index in batch)
        assert len(set(batch)) == len(batch)


def test_the_length_is_the_number_of_steps():
    sampler = PoissonBatchSampler(100, 0.3, 17)
    assert len(sampler) == 17 == len(list(sampler))


@pytest.mark.parametrize(
    "make", [lambda **k: PoissonBatchSampler(50, 0.5, 6, **k), lambda **k: FixedSizeBatchSampler(50, 20, 6, **k)]
)
def test_secret_runs_differ_and_insecure_ones_agree(make):
    assert list(make()) != list(make())
    assert list(make(insecure_seed=3)) == list(make(insecure_seed=3))
    assert list(make(insecure_seed=3)) != list(make(insecure_seed=4))
    assert list(make(insecure_seed=3))[2:] == list(make(insecure_seed=3, start=2))[:4], "a resumed run goes on"


def test_the_global_seeds_do_not_matter():
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        draws.append(list(PoissonBatchSampler(50, 0.5, 6)))
    assert draws[0] != draws[1]


def test_iterating_again_draws_again():
    sampler = PoissonBatchSampler(50, 0.5, 3, insecure_seed=3)
    first, second = list(sampler), list(sampler)
    assert first != second
    assert first + second == list(PoissonBatchSampler(50, 0.5, 6, insecure_seed=3))


def test_one_more_record_leaves_rate_and_steps_alone():
    for records in (99, 100):
        sampler = sampler_from_plan(plan(num_records=100), records)
        assert (sampler.sample_rate, len(sampler)) == (0.1, 10)


def test_a_plan_that_has_begun_yields_the_rest():
    whole = list(sampler_from_plan(plan(insecure_seed=5), 60))
    assert list(sampler_from_plan(plan(insecure_seed=5), 60, draws=6, start=4)) == whole[4:]


def test_an_epoch_is_the_draws_in_which_a_record_is_expected_once():
    assert [len(sampler_from_plan(plan(sample_rate=rate), 60)) for rate in (1.0, 0.5, 0.3, 1 / 7)] == [1, 2, 4, 7]
    assert len(sampler_from_plan(plan(), 60, draws=3)) == 3


def test_a_plan_gets_the_sampler_that_it_accounts_for():
    fixed = plan(relation="replace_one", sampling="without_replacement", expected_batch_size=6)
    kinds = [type(sampler_from_plan(some, 60)) for some in (plan(), fixed)]
    assert kinds == [PoissonBatchSampler, FixedSizeBatchSampler]
    assert type(sampler_from_plan(plan(), 60, ranks=Ranks(1, 2))) is ShardedBatchSampler
    assert type(sampler_from_plan(plan(), 60, ranks=Ranks())) is PoissonBatchSampler
    assert sampler_from_plan(fixed, 60).batch_size == 6


def test_a_batch_of_fixed_size_is_never_a_larger_share_than_is_accounted():
    fixed = plan(relation="replace_one", sampling="without_replacement", expected_batch_size=6)
    assert sampler_from_plan(fixed, 61).batch_size == 6
    with pytest.raises(UserError, match="59 records, fewer than the run was planned for"):
        sampler_from_plan(fixed, 59)
    with pytest.raises(UserError, match="several processes cannot draw in parts"):
        sampler_from_plan(fixed, 60, ranks=Ranks(0, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_delivers_the_draws_whatever_its_workers_do(workers):
    data = TensorDataset(torch.arange(30))

    def collate(rows):
        return [int(value) for (value,) in rows]

    loader = DataLoader(
        data,
        batch_sampler=PoissonBatchSampler(30, 0.1, 12, insecure_seed=1),
        num_workers=workers,
        collate_fn=_numbers if workers else collate,
    )
    assert list(loader) == list(PoissonBatchSampler(30, 0.1, 12, insecure_seed=1))


def _numbers(rows):
    return [int(value) for (value,) in rows]


def test_fixed_batches_have_their_size_and_every_record_its_chance():
    records, size, draws = 20, 6, 6000
    included = np.zeros(records)
    for batch in FixedSizeBatchSampler(records, size, draws, np.random.default_rng(2)):
        assert len(batch) == size == len(set(batch))
        included[batch] += 1
    expected = draws * size / records
    # the variance of an inclusion is p (1 - p): scale the statistic to chi-square with 19 degrees of freedom
    assert chi_square(included, np.full(records, expected)) / (1 - size / records) * (records - 1) / records < 48


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PoissonBatchSampler(0, 0.1, 1), "num_records"),
        (lambda: PoissonBatchSampler(10, 0, 1), "sample_rate"),
        (lambda: PoissonBatchSampler(10, 1.1, 1), "sample_rate"),
        (lambda: PoissonBatchSampler(10, 0.1, 0), "steps"),
        (lambda: PoissonBatchSampler(10, 0.1, 1, start=-1), "start"),
        (lambda: PoissonBatchSampler(10, 0.1, 1, np.random.default_rng(), insecure_seed=1), "not both"),
        (lambda: FixedSizeBatchSampler(10, 11, 1), "exceeds"),
        (lambda: FixedSizeBatchSampler(10, 0, 1), "batch_size"),
    ],
)
def test_nonsense_is_refused_by_name(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_the_event_of_the_plan_is_what_the_sampler_does():
    sampler = sampler_from_plan(plan(), 60)
    assert plan().event() == SamplingEvent(sampler.sample_rate, 1.0, "poisson", "add_or_remove_one")
