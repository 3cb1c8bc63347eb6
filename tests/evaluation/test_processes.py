"""Work that is shared out comes back whole, in order, and is done once. Threads stand for the processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation import processes
from ldm.evaluation.features import Classifying, PixelFeatures, shared
from ldm.evaluation.processes import ALONE, Processes, connected


class Group:
    """What torch.distributed exchanges, among threads that each run the same body."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size, timeout=60)
        self.sent: dict[int, Any] = {}
        self.own = threading.local()

    def exchange(self, received: list[Any], sent: Any) -> None:
        self.sent[self.own.rank] = sent
        self.barrier.wait()
        for rank in range(self.size):
            if isinstance(sent, Tensor):
                assert received[rank].shape == self.sent[rank].shape
                received[rank].copy_(self.sent[rank])
            else:
                received[rank] = self.sent[rank]
        self.barrier.wait()

    def run(self, body: Callable[[Processes], Any]) -> list[Any]:
        def start(rank: int) -> Any:
            self.own.rank = rank
            return body(Processes(rank, self.size))

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(start, range(self.size)))


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    found = Group(3)
    monkeypatch.setattr(processes.distributed, "all_gather", found.exchange)
    monkeypatch.setattr(processes.distributed, "all_gather_object", found.exchange)
    return found


@pytest.mark.parametrize("count", [2, 3, 7, 12])
def test_rows_are_those_of_one_process_and_are_computed_once(group: Group, count: int) -> None:
    batch = torch.arange(2.0 * count).reshape(count, 2)
    computed: list[int] = []

    def square(rows: Tensor) -> Tensor:
        computed.append(len(rows))
        return rows**2

    for rows in group.run(lambda own: own.rows(square, batch)):
        assert torch.equal(rows, batch**2)
    # a batch with fewer rows than processes is not worth dividing
    assert sum(computed) == (count if count >= 3 else 3 * count)


def test_every_job_is_done_once_and_results_keep_their_order(group: Group) -> None:
    done: list[int] = []

    def job(number: int) -> Callable[[], int]:
        return lambda: done.append(number) or 10 * number  # type: ignore[func-returns-value]

    for results in group.run(lambda own: own.share([job(number) for number in range(5)])):
        assert results == [0, 10, 20, 30, 40]
    assert sorted(done) == [0, 1, 2, 3, 4]


def test_a_shared_extractor_gives_the_features_of_its_own(group: Group) -> None:
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    for features in group.run(lambda own: shared(PixelFeatures(), own)(images)):
        torch.testing.assert_close(features, PixelFeatures()(images))


def test_logits_stay_and_a_process_on_its_own_is_left_alone() -> None:
    class Naming(PixelFeatures):
        def logits(self, features: Tensor) -> Tensor:
            return features[:, :2]

    plain = PixelFeatures()
    assert shared(plain, ALONE) is plain
    assert not isinstance(shared(plain, Processes(0, 2)), Classifying)
    naming = shared(Naming(), Processes(0, 2))
    assert isinstance(naming, Classifying) and naming.logits(torch.ones(3, 64)).shape == (3, 2)
    assert (naming.name, naming.dim, naming.resize) == (plain.name, plain.dim, plain.resize)


def test_processes_that_cannot_find_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with connected() as own:
        assert own is ALONE
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="process 2 of 2.*torchrun --nproc-per-node 2"), connected():
        pass
