"""Shards and their draws; tests with a real group of processes are in tests/models/test_distributed_training.py."""

from __future__ import annotations

import math
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

from ldm.errors import UserError
from ldm.privacy.distributed import check_agreement, reduce_sums
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.ranks import Ranks, group_ranks
from ldm.privacy.sampling import PoissonBatchSampler, ShardedBatchSampler, sampler_from_plan, shard_indices

RATE = 0.3


def plan(**changes: object) -> PrivacyPlan:
    values = {
        "sample_rate": RATE,
        "steps": 10,
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
        "delta": 1e-5,
        "expected_batch_size": 3,
        **changes,
    }
    return PrivacyPlan(**values)


@pytest.mark.parametrize(("records", "world"), [(1, 1), (7, 2), (8, 3), (5, 5), (1000, 16)])
def test_shards_are_disjoint_cover_everything_and_are_balanced(records: int, world: int) -> None:
    shards = [shard_indices(records, rank, world) for rank in range(world)]
    assert sorted(index for shard in shards for index in shard) == list(range(records))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_impossible_shards_are_refused() -> None:
    with pytest.raises(UserError, match="2 records cannot be shared among 3 processes"):
        shard_indices(2, 0, 3)
    with pytest.raises(UserError, match="rank 2 does not exist among 2"):
        Ranks(2, 2)
    with pytest.raises(UserError, match="number of processes"):
        Ranks(0, 0)


def test_a_process_draws_from_its_shard_only_and_indexes_the_whole_set() -> None:
    for rank in range(3):
        sampler = ShardedBatchSampler(20, 0.5, 30, Ranks(rank, 3))
        draws = list(sampler)
        assert len(draws) == len(sampler) == 30
        assert {index for draw in draws for index in draw} == set(range(rank, 20, 3))
        assert all(draw == sorted(set(draw)) for draw in draws)


def test_every_process_takes_every_step_even_when_its_draws_are_empty() -> None:
    samplers = [ShardedBatchSampler(4, 0.05, 50, Ranks(rank, 2)) for rank in range(2)]
    both = [list(sampler) for sampler in samplers]
    assert [len(draws) for draws in both] == [50, 50]
    assert any(not draw for draw in both[0])


def test_the_union_is_one_poisson_draw_of_the_whole_set() -> None:
    # sizes are binomial(N, q), every record is in with probability q, and records of different shards are independent
    records, world, steps = 12, 3, 6000
    generators = np.random.default_rng(5).spawn(world)
    samplers = [
        ShardedBatchSampler(records, RATE, steps, Ranks(rank, world), generators[rank]) for rank in range(world)
    ]
    union = [sorted(chain(*parts)) for parts in zip(*samplers, strict=True)]
    assert all(len(set(draw)) == len(draw) for draw in union)
    sizes = Counter(map(len, union))
    for size in range(records + 1):
        chance = math.comb(records, size) * RATE**size * (1 - RATE) ** (records - size)
        spread = math.sqrt(steps * chance * (1 - chance))
        assert abs(sizes[size] - steps * chance) < 5 * spread + 1, size
    included = np.zeros((steps, records))
    for step, draw in enumerate(union):
        included[step, draw] = 1
    assert np.abs(included.mean(0) - RATE).max() < 5 * math.sqrt(RATE * (1 - RATE) / steps)
    correlations = np.corrcoef(included.T) - np.eye(records)
    assert np.abs(correlations).max() < 5 / math.sqrt(steps)


def test_secret_generators_of_two_processes_differ() -> None:
    first, again = (next(iter(ShardedBatchSampler(400, 0.5, 1, Ranks(0, 2)))) for _ in range(2))
    assert first != again


def test_with_an_insecure_seed_the_union_is_what_one_process_draws() -> None:
    alone = list(PoissonBatchSampler(50, RATE, 8, insecure_seed=3, start=2))
    parts = [list(ShardedBatchSampler(50, RATE, 8, Ranks(rank, 4), insecure_seed=3, start=2)) for rank in range(4)]
    assert [sorted(chain(*draw)) for draw in zip(*parts, strict=True)] == alone


def test_a_plan_gives_its_rate_and_seed_and_must_be_poisson() -> None:
    sampler = sampler_from_plan(plan(insecure_seed=1), 30, draws=4, start=3, ranks=Ranks(1, 2))
    alone = PoissonBatchSampler(30, RATE, 4, insecure_seed=1, start=3)
    assert list(sampler) == [[index for index in draw if index % 2 == 1] for draw in alone]
    fixed = plan(sampling="without_replacement", relation="replace_one")
    with pytest.raises(UserError, match="without_replacement, which several processes cannot draw in parts"):
        sampler_from_plan(fixed, 30, draws=4, ranks=Ranks(0, 2))


def test_alone_nothing_is_reduced_and_everything_agrees() -> None:
    sums = {"weight": torch.ones(3)}
    reduce_sums(sums)
    assert torch.equal(sums["weight"], torch.ones(3))
    check_agreement("anything")
    assert group_ranks() == Ranks(0, 1)


def test_a_share_without_its_group_is_an_error() -> None:
    # a process that thinks it holds a shard, and would add up alone
    with pytest.raises(RuntimeError, match="shared among 2 processes"):
        Ranks(0, 2).check()
    Ranks().check()
