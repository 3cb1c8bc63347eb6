"""Sums of private records: sensitivity on neighbouring data sets, noise, ledger, and bugs that these tests notice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.privacy.event import ADD_OR_REMOVE_ONE, REPLACE_ONE, SamplingEvent
from ldm.privacy.ledger import Ledger
from ldm.privacy.statistics import ClassMeanImages, ClassMoments, FourierEmbedding, Frame, Release, moments, release
from ldm.privacy.statistics.linear import ClassifierGradient, LinearClassifier
from ldm.privacy.statistics.query import SumQuery, sensitivity

CLASSES, SIDE = 3, 4
DIMENSIONS = SIDE * SIDE


def frame(rank: int = 5) -> Frame:
    generator = torch.Generator().manual_seed(7)
    public = torch.randn(200, DIMENSIONS, generator=generator) @ torch.randn(
        DIMENSIONS, DIMENSIONS, generator=generator
    )
    return Frame.fit(public, rank)


def anchors(cells: int = 2, rank: int = 5) -> Tensor:
    return torch.randn(CLASSES, cells, rank, generator=torch.Generator().manual_seed(8))


def basis(directions: int = 2, rank: int = 5) -> Tensor:
    columns = torch.randn(CLASSES, rank, directions, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return torch.linalg.qr(columns)[0]


QUERIES: dict[str, Callable[[], SumQuery]] = {
    "moments": lambda: ClassMoments(frame(), CLASSES, 1.5),
    "weighted moments": lambda: ClassMoments(frame(), CLASSES, 0.5, weights=(0.3, 2.0, 1.1)),
    "counts and means": lambda: ClassMoments(frame(), CLASSES, 1.5, weights=(1.0, 1.0, 0.0)),
    "cells": lambda: ClassMoments(frame(), CLASSES, 1.5, anchors=anchors()),
    "cells with matrices": lambda: ClassMoments(frame(), CLASSES, 1.5, anchors=anchors(), second_by_cell=True),
    "centred": lambda: ClassMoments(frame(), CLASSES, 0.7, (0.2, 0.3, 1.0), anchors(1), centred=True),
    "centred cells with matrices": lambda: ClassMoments(
        frame(), CLASSES, 0.7, anchors=anchors(), second_by_cell=True, centred=True
    ),
    "cells in leading directions": lambda: ClassMoments(
        frame(), CLASSES, 0.7, (0.5, 0.7, 1.0), anchors(), second_by_cell=True, centred=True, basis=basis()
    ),
    "centred groups of cells": lambda: ClassMoments(
        frame(), CLASSES, 0.7, (0.3, 0.4, 1.0), anchors(3), centred=True, groups=torch.tensor([[0, 1, 0]] * CLASSES)
    ),
    "centred counts and means": lambda: ClassMoments(frame(), CLASSES, 0.7, (0.5, 1.0, 0.0), anchors(3), centred=True),
    "mean images": lambda: ClassMeanImages(CLASSES, 2),
    "mean images, small norm": lambda: ClassMeanImages(CLASSES, 2, clip_norm=0.5),
    "fourier": lambda: FourierEmbedding(CLASSES, DIMENSIONS, features=40, width=3.0),
    "classifier gradient": lambda: ClassifierGradient(random_classifier(), 0.3),
    "classifier gradient, first step": lambda: ClassifierGradient(LinearClassifier.zeros(DIMENSIONS, CLASSES), 1.5),
}


def random_classifier() -> LinearClassifier:
    generator = torch.Generator().manual_seed(9)
    return LinearClassifier(
        torch.randn(DIMENSIONS, CLASSES, generator=generator), torch.randn(CLASSES, generator=generator)
    )


def records() -> tuple[Tensor, Tensor]:
    """Ordinary records, far ones, a dark, a bright and an opposite one, a label without a class, and one of NaN."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(12, 1, SIDE, SIDE, generator=generator)
    rows[2] *= 1e4
    rows[3] = -rows[2]
    rows[4], rows[5] = -1.0, 1.0
    rows[6] = 1e30
    rows[7, 0, 0, 0] = math.nan
    rows[8, 0, 0, 0] = math.inf
    labels = torch.arange(12) % CLASSES
    labels[9], labels[10] = 17, -1
    labels[3] = labels[2]
    return rows, labels


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Euclidean distance over all tensors together."""
    assert one.keys() == other.keys() and all(one[name].shape == other[name].shape for name in one)
    return math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in one))


def measured(query: SumQuery, relation: str) -> float:
    """The largest change of the sum over neighbouring data sets made of `records`."""
    rows, labels = records()
    everyone = list(range(len(rows)))

    def total(members: list[int]) -> dict[str, Tensor]:
        return query.total(rows[members], labels[members])

    if relation == ADD_OR_REMOVE_ONE:
        whole = total(everyone)
        return max(distance(whole, total([i for i in everyone if i != left_out])) for left_out in everyone)
    half = everyone[:6]
    return max(
        distance(total([*half, one]), total([*half, other])) for one, other in itertools.combinations(everyone, 2)
    )


@pytest.mark.parametrize("relation", [ADD_OR_REMOVE_ONE, REPLACE_ONE])
@pytest.mark.parametrize("name", QUERIES)
def test_one_record_moves_the_sum_by_at_most_the_sensitivity(name: str, relation: str) -> None:
    query = QUERIES[name]()
    assert measured(query, relation) <= sensitivity(query, relation) * (1 + 1e-9)


@pytest.mark.parametrize("name", QUERIES)
def test_the_bound_is_used_up(name: str) -> None:
    query = QUERIES[name]()
    assert measured(query, ADD_OR_REMOVE_ONE) > 0.99 * query.bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", QUERIES)
def test_no_number_of_any_type_moves_the_sum_further(name: str, dtype: torch.dtype) -> None:
    """Numbers at the ends of a type's range, where norms and products leave it, zeros with a sign, and odd labels."""
    query, most, least = QUERIES[name](), torch.finfo(dtype).max, torch.finfo(dtype).tiny
    rows = torch.zeros(10, 1, SIDE, SIDE, dtype=dtype)
    for place, value in enumerate((most, -most, most / 2, least, -0.0, math.nan, math.inf, -math.inf)):
        rows[place] = value
    rows[8, 0, 0, 0], rows[8, 0, 0, 1] = most, -most
    rows[9, 0, 2] = 1e-3 * most
    for label in (0, CLASSES - 1, CLASSES, -1, 2**62):
        for row in rows:
            total = query.total(row[None], torch.tensor([label]))
            length = math.sqrt(sum(float(value.square().sum()) for value in total.values()))
            assert length <= query.bound * (1 + 1e-9), (label, row.flatten()[:2])


def test_an_empty_data_set_has_sums_of_the_same_shape() -> None:
    for make in QUERIES.values():
        rows, labels = records()
        empty, full = make().total(rows[:0], labels[:0]), make().total(rows, labels)
        assert {name: value.shape for name, value in empty.items()} == {n: v.shape for n, v in full.items()}
        assert all(not value.any() for value in empty.values())


# ---------------------------------------------------------------------- planted bugs


def unclipped(rows: Tensor, norm: float) -> Tensor:
    return rows


def clipped_in_each_coordinate(rows: Tensor, norm: float) -> Tensor:
    return rows.clamp(-norm, norm)


@pytest.mark.parametrize("broken", [unclipped, clipped_in_each_coordinate])
def test_the_measurement_catches_a_norm_that_is_not_kept(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "clipped", broken)
    for name in ("moments", "centred", "cells in leading directions"):
        query = QUERIES[name]()
        assert measured(query, ADD_OR_REMOVE_ONE) > 1.1 * query.bound, name


class WholeMatrix(ClassMoments):
    """Stores the triangle twice over: the off-diagonal counts four times in the square instead of twice."""

    @property
    def triangle(self) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        row, column, _ = ClassMoments.triangle.func(self)  # type: ignore[attr-defined]
        return row, column, torch.where(row == column, 1.0, 2.0).double()


class MeansByTheCount(ClassMoments):
    """Divides by the number of records in the class, as published code does."""

    def total(self, records: Tensor, labels: Tensor) -> dict[str, Tensor]:
        sums = super().total(records, labels)
        return {**sums, "mean": 12 * sums["mean"] / sums["count"].clamp(min=1)[..., None]}


class CentredByTheData(ClassMoments):
    """Takes the mean of the records away first: then one record moves all contributions."""

    def total(self, records: Tensor, labels: Tensor) -> dict[str, Tensor]:
        usable = torch.isfinite(records.flatten(1)).all(dim=1)
        centre = records[usable].mean(dim=0) if usable.any() else torch.zeros_like(records[0])
        return super().total(records - centre, labels)


@pytest.mark.parametrize("kind", [WholeMatrix, MeansByTheCount, CentredByTheData])
def test_the_measurement_catches_mistaken_sums(kind: type[ClassMoments]) -> None:
    query = kind(frame(), CLASSES, 1.5)
    assert measured(query, ADD_OR_REMOVE_ONE) > 1.05 * query.bound


# ---------------------------------------------------------------------- noise and ledger


def ask(query: SumQuery, **changes: Any) -> tuple[Release, Ledger]:
    ledger = changes.pop("ledger", Ledger())
    rows, labels = records()
    return release(query, rows, labels, **{"noise_multiplier": 2.0, "ledger": ledger, **changes}), ledger


@pytest.mark.parametrize("relation", [ADD_OR_REMOVE_ONE, REPLACE_ONE])
def test_a_release_is_one_event_of_all_records(relation: str) -> None:
    answer, ledger = ask(QUERIES["moments"](), relation=relation)
    assert ledger.events == ((SamplingEvent(1.0, 2.0, "poisson", relation), 1),)
    assert answer.event == ledger.events[0][0]
    assert answer.noise_std == pytest.approx(2 * math.sqrt(3) * (2 if relation == REPLACE_ONE else 1))


@pytest.mark.parametrize("relation", [ADD_OR_REMOVE_ONE, REPLACE_ONE])
@pytest.mark.parametrize("name", QUERIES)
def test_the_noise_has_the_size_that_the_ledger_says(name: str, relation: str) -> None:
    query = QUERIES[name]()
    exact = query.total(*records())
    scale = 2.0 * sensitivity(query, relation)
    numbers = []
    while sum(len(n) for n in numbers) < 3_000:
        answer, _ = ask(query, relation=relation)
        numbers.append(torch.cat([(answer.sums[key] - exact[key]).flatten() for key in sorted(exact)]) / scale)
    noise = torch.cat(numbers)
    assert abs(float(noise.mean())) < 5 / math.sqrt(len(noise))
    assert abs(float(noise.var()) - 1) < 5 * math.sqrt(2 / len(noise))
    assert abs(float((noise.abs() > 2).double().mean()) - 0.0455) < 5 * math.sqrt(0.0455 / len(noise))


def test_matrices_get_less_noise_off_the_diagonal_as_they_are_stored_once() -> None:
    query = ClassMoments(Frame.identity(DIMENSIONS), CLASSES, 1.5)
    exact = query.matrices(query.total(*records())["second"])
    off = ~torch.eye(DIMENSIONS, dtype=torch.bool)
    deviations = []
    for _ in range(30):
        answer, _ = ask(query)
        noisy = query.matrices(answer.sums["second"])
        assert torch.equal(noisy, noisy.transpose(1, 2))
        deviations.append(noisy - exact)
    noise = torch.stack(deviations)
    std = 2 * math.sqrt(3)
    assert float(noise[..., off].std()) == pytest.approx(std / math.sqrt(2), rel=0.05)
    assert float(noise[..., ~off].std()) == pytest.approx(std, rel=0.1)


def test_noise_is_fresh_and_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    query = QUERIES["fourier"]()
    torch.manual_seed(0)
    one, _ = ask(query)
    torch.manual_seed(0)
    other, _ = ask(query)
    assert not torch.equal(one.sums["embedding"], other.sums["embedding"])
    first, ledger = ask(query, insecure_seed=3)
    again, _ = ask(query, insecure_seed=3)
    later, _ = ask(query, insecure_seed=3, ledger=ledger)
    assert torch.equal(first.sums["embedding"], again.sums["embedding"])
    assert not torch.equal(first.sums["embedding"], later.sums["embedding"])


def test_every_tensor_of_a_release_has_noise_of_its_own() -> None:
    query = QUERIES["cells"]()
    exact = query.total(*records())
    answer, _ = ask(query)
    noise = [(answer.sums[name] - exact[name]).flatten()[:6] for name in exact]
    for one, other in itertools.combinations(noise, 2):
        assert float((one - other).abs().max()) > 0.01 * answer.noise_std


@pytest.mark.parametrize("name", QUERIES)
def test_released_numbers_do_not_show_the_last_bits_of_the_noise(name: str) -> None:
    """A float64 sum plus a normal number tells in its last bits whether the sum is 0, as in a class without records."""
    for sigma in (0.7, 8.0):
        answer, _ = ask(QUERIES[name](), noise_multiplier=sigma)
        numbers = torch.cat([value.flatten() for value in answer.sums.values()])
        coarse = 2.0 ** math.floor(math.log2(answer.noise_std * 2.0**-17))
        assert torch.equal(torch.remainder(numbers, coarse), torch.zeros_like(numbers))
        assert len(numbers.unique()) > 0.9 * len(numbers), "and they are still different numbers"


def test_the_event_is_in_the_ledger_before_there_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    from ldm.privacy.statistics import query as module

    ledger, seen = Ledger(), []
    add = module.GaussianNoise.add_
    monkeypatch.setattr(module.GaussianNoise, "add_", lambda self, sums: (seen.append(ledger.steps), add(self, sums)))
    ask(QUERIES["moments"](), ledger=ledger)
    assert seen == [1]


def test_a_release_survives_a_file(tmp_path: Any) -> None:
    answer, _ = ask(QUERIES["cells"]())
    torch.save(answer.to_dict(), tmp_path / "release.pt")
    read = Release.from_dict(torch.load(tmp_path / "release.pt", weights_only=True))
    assert all(torch.equal(read.sums[name], answer.sums[name]) for name in answer.sums)
    assert (read.event, read.noise_std, read.constants) == (answer.event, answer.noise_std, answer.constants)
    with pytest.raises(UserError, match="damaged"):
        Release.from_dict({"name": "x"})


def test_bad_constants_and_records_are_refused() -> None:
    rows, labels = records()
    with pytest.raises(UserError, match="one class each"):
        release(QUERIES["moments"](), rows, labels[:3], noise_multiplier=1.0, ledger=Ledger())
    with pytest.raises(UserError, match="noise_multiplier"):
        ask(QUERIES["moments"](), noise_multiplier=0.0)
    with pytest.raises(UserError, match="clip_norm"):
        ClassMoments(frame(), CLASSES, 0.0)
    with pytest.raises(UserError, match="anchors"):
        ClassMoments(frame(), CLASSES, 1.0, anchors=torch.zeros(CLASSES, 2, 4))
    with pytest.raises(UserError, match="weights"):
        ClassMoments(frame(), CLASSES, 1.0, weights=(0.0, 1.0, 1.0))
    with pytest.raises(UserError, match="rank 400"):
        Frame.fit(torch.randn(30, 16), 400)
