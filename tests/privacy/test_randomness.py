"""Seeds of the global generators: secret, of full length, and reproducible only with an insecure seed."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ldm.privacy.randomness import LossDraws, secret_generator

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def generators() -> Iterator[None]:
    """Put the global generators back after a test."""
    ours, theirs = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        yield
    np.random.set_state(ours)
    random.setstate(theirs)


def looks(draws: LossDraws, rank: int = 0) -> tuple[float, ...]:
    """What a data set of this process may draw after the generators were keyed, and the seed that it may go by."""
    torch.manual_seed(23)
    np.random.seed(23)
    random.seed(23)
    draws.key(CPU, rank)
    return (float(torch.initial_seed()), float(torch.rand(1)), float(np.random.random()), random.random())


def test_no_generator_that_data_sets_read_keeps_a_public_seed() -> None:
    first, second = looks(LossDraws()), looks(LossDraws())
    assert all(mine != yours for mine, yours in zip(first, second, strict=True))
    assert first[0] > 2**32, "a seed that nobody can try out has more than 32 bits"


def test_an_insecure_seed_gives_each_step_and_process_its_own() -> None:
    found = [looks(LossDraws(insecure_seed=5, start=step), rank) for step, rank in ((0, 0), (1, 0), (0, 1))]
    assert looks(LossDraws(insecure_seed=5)) == found[0]
    assert len({value for each in found for value in each}) == 12


def test_a_step_leaves_every_global_generator_where_it_was() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), torch.initial_seed()
    with LossDraws().step(CPU):
        assert torch.initial_seed() != 1
    assert torch.equal(before[0], torch.get_rng_state()) and torch.initial_seed() == before[3]
    assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]


def test_keys_have_the_bits_that_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a generator has 128 bits, whatever the key had: what counts is what the system was asked for."""
    asked = []
    randbits = secrets.randbits
    monkeypatch.setattr(secrets, "randbits", lambda bits: (asked.append(bits), randbits(bits))[1])
    secret_generator()
    with LossDraws().step(CPU):
        pass
    assert asked == [256, 256]
