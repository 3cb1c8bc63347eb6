"""How many records are computed on at once: by trying on a GPU, by estimate on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ldm.models.diffusion import microbatch
from ldm.models.diffusion.microbatch import (
    filled,
    fitting_size,
    free_memory,
    largest_that_runs,
    out_of_memory,
    size_by_estimate,
)


def test_microbatches_of_a_size_hold_almost_every_draw_and_little_more() -> None:
    draws = torch.distributions.Binomial(10_000, torch.tensor(0.02)).sample((20_000,))
    for halvings in range(5):
        capacity = fitting_size(200, halvings) * 2**halvings
        assert float((draws > capacity).float().mean()) < 1e-3 and capacity < 1.4 * 200
    assert fitting_size(1, 40) == 1


@pytest.mark.parametrize("capacity", [1, 7, 63, 64, 10_000])
def test_the_largest_size_that_runs_is_found(capacity: int) -> None:
    tried: list[int] = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")

    found = largest_that_runs(64, attempt)
    assert found <= max(1, capacity) and (found == fitting_size(64, 0) or 2 * found > capacity)
    assert tried == sorted(tried, reverse=True)


def test_other_errors_are_not_taken_for_a_full_memory() -> None:
    def attempt(size: int) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_runs(8, attempt)
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."))
    assert not out_of_memory(ValueError("no"))


def test_an_estimate_follows_what_autograd_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(*[nn.Linear(256, 256), nn.Tanh()] * 4)

    def loss(rows: dict[str, Tensor]) -> Tensor:
        return net(rows["x"]).sum((1, 2))

    rows = {"x": torch.zeros(1, 100, 256)}
    sizes = []
    for memory in (1 << 40, 40 << 20, 1 << 10):
        monkeypatch.setattr(microbatch, "free_memory", lambda memory=memory: memory)
        sizes.append(size_by_estimate(400, loss, rows))
    assert sizes[0] == fitting_size(400, 0) > sizes[1] > sizes[2] == 1
    needed = 5 * 100 * 256 * 4 * sizes[1]  # four outputs and an input, weights aside
    assert needed < 20 << 20 < 30 * needed
    monkeypatch.undo()
    assert free_memory() > 1 << 20


def test_filled_rows_are_the_given_ones_and_copies() -> None:
    rows = filled({"x": torch.arange(6.0).view(3, 2), "label": torch.tensor([4, 5, 6])}, 5)
    assert rows["label"].tolist() == [4, 5, 6, 4, 4] and rows["x"][3:].tolist() == [[0, 1], [0, 1]]
