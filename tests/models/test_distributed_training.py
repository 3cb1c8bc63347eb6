"""Two processes that take private steps together, against one that takes them alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from ldm.privacy.ranks import Ranks
from tests.models import processes

pytestmark = pytest.mark.slow  # two more processes import torch

WORLD = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes has found; they are started once for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(processes.work, args=(WORLD, str(folder)), nprocs=WORLD)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("case", ["quiet", "repeatable"])
def test_together_they_take_the_steps_that_one_would_take(found: list[dict[str, Any]], case: str) -> None:
    plan = {"quiet": processes.QUIET, "repeatable": processes.REPEATABLE}[case]
    alone = processes.take_steps(plan, Ranks())
    parts = [rank[case]["draws"] for rank in found]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == alone["draws"]
    assert any(not a and b for a, b in zip(*parts, strict=True)), "the seed should give one process an empty draw"
    assert not torch.equal(alone["parameters"][0], alone["parameters"][-1])
    for rank in found:
        torch.testing.assert_close(rank[case]["parameters"], alone["parameters"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["quiet", "repeatable"])
def test_all_processes_end_with_the_same_bits(found: list[dict[str, Any]], case: str) -> None:
    assert torch.equal(found[0][case]["parameters"], found[1][case]["parameters"])
    assert torch.equal(found[0]["noise"], found[1]["noise"])


def test_every_process_keeps_the_same_ledger_one_entry_a_step(found: list[dict[str, Any]]) -> None:
    (first,), (second,) = (rank["repeatable"]["ledger"]["entries"] for rank in found)
    assert first["event"] == second["event"] == processes.REPEATABLE.event().to_dict()
    assert first["count"] == second["count"] == processes.STEPS


def test_the_noise_is_that_of_one_draw(found: list[dict[str, Any]]) -> None:
    noise = found[0]["noise"].double()
    tolerance = 5 / (2 * noise.numel()) ** 0.5
    assert noise.std().item() == pytest.approx(processes.SECRET.noise_std, rel=tolerance)
    assert abs(noise.mean().item()) < 5 * processes.SECRET.noise_std / noise.numel() ** 0.5
    assert tolerance < 0.03, "too few numbers to tell one draw from two"


def test_all_start_from_the_first_ones_weights(found: list[dict[str, Any]]) -> None:
    weights = processes.flat(processes.Net(seed=0).parameters())
    assert all(torch.equal(rank["start"], weights) for rank in found)


@pytest.mark.parametrize("case", ["disagree", "ahead"])
def test_processes_that_are_about_to_do_different_things_are_stopped(found: list[dict[str, Any]], case: str) -> None:
    for rank in found:
        assert rank[case].startswith("UserError: process 1 runs another plan than process 0, or resumes from another")


def test_a_step_that_was_not_shared_is_refused_before_it_sums(found: list[dict[str, Any]]) -> None:
    # each process would draw from all records: one of them could enter the sum twice
    for number, rank in enumerate(found):
        assert rank["unshared"].startswith("RuntimeError: this private run was shared among 1 processes")
        assert rank["unshared"].endswith(f"has 2 and calls this one {number}")


def test_half_precision_sums_are_refused(found: list[dict[str, Any]]) -> None:
    assert all("weight is torch.bfloat16: keep sums in float32" in rank["half"] for rank in found)
