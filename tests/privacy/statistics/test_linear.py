"""The private linear classifier: what it learns, what it costs, and that every step is charged before it is used."""

from __future__ import annotations

import math

import pytest
import torch
from dp_accounting.dp_event import GaussianDpEvent
from dp_accounting.pld import PLDAccountant
from torch import Tensor

from ldm.errors import UserError
from ldm.privacy.event import ADD_OR_REMOVE_ONE, REPLACE_ONE
from ldm.privacy.ledger import Ledger
from ldm.privacy.statistics import LinearClassifier, LinearTraining, Release, classifier_of, fit_linear, linear
from ldm.privacy.statistics.linear import ClassifierGradient

CLASSES, FEATURES = 3, 6


def records(count: int = 600) -> tuple[Tensor, Tensor]:
    """Rows of unit length around one direction a class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    rows = torch.eye(CLASSES, FEATURES)[labels] + 0.4 * torch.randn(count, FEATURES, generator=generator)
    return rows / rows.norm(dim=1, keepdim=True), labels


def accuracy(classifier: LinearClassifier) -> float:
    rows, labels = records()
    return float((classifier(rows) == labels).float().mean())


def trained(sigma: float = 1e-3, ledger: Ledger | None = None, **settings: float) -> tuple[LinearClassifier, Release]:
    how = LinearTraining(sigma, 600, **{"steps": 20, "learning_rate": 20.0, **settings})  # type: ignore[arg-type]
    rows, labels = records()
    return fit_linear(rows, labels, CLASSES, how, ledger=Ledger() if ledger is None else ledger)


def test_it_learns_the_classes_and_drowns_in_large_noise() -> None:
    assert accuracy(trained()[0]) > 0.93
    assert accuracy(trained(sigma=1e6)[0]) < 0.8


def test_without_clipping_the_sum_is_the_gradient_of_the_cross_entropy() -> None:
    rows, labels = records(50)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(FEATURES, CLASSES, generator=generator, requires_grad=True)
    bias = torch.randn(CLASSES, generator=generator, requires_grad=True)
    torch.nn.functional.cross_entropy(rows @ weight + bias, labels, reduction="sum").backward()
    total = ClassifierGradient(LinearClassifier(weight.detach(), bias.detach()), 1e3).total(rows, labels)["gradient"]
    assert weight.grad is not None and bias.grad is not None
    torch.testing.assert_close(total[:-1].float(), weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(total[-1].float(), bias.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.1, 0.3, 1.3])
def test_the_rounding_of_a_sum_of_many_equal_records_stays_within_the_bound(value: float) -> None:
    """In float32 a chunk of them is rounded by more than the slack, and otherwise when one record is missing."""
    rows, labels = torch.full((20_000, 16), value), torch.zeros(20_000, dtype=torch.long)
    weight = 0.05 * torch.randn(16, CLASSES, generator=torch.Generator().manual_seed(0))
    for classifier in (LinearClassifier.zeros(16, CLASSES), LinearClassifier(weight, torch.zeros(CLASSES))):
        query = ClassifierGradient(classifier, 0.3)
        change = query.total(rows, labels)["gradient"] - query.total(rows[1:], labels[1:])["gradient"]
        assert float(change.norm()) <= query.bound


@pytest.mark.parametrize("steps", [1, 7, 60])
def test_all_steps_cost_what_one_query_with_sigma_costs(steps: int) -> None:
    how = LinearTraining(4.0, 600, steps=steps)
    together, alone = PLDAccountant(), PLDAccountant()
    for event, count in how.history(ADD_OR_REMOVE_ONE):
        together.compose(GaussianDpEvent(event.noise_multiplier), count)
    alone.compose(GaussianDpEvent(4.0))
    assert together.get_epsilon(1e-6) == pytest.approx(alone.get_epsilon(1e-6), rel=0.01)


def test_the_ledger_holds_exactly_the_planned_steps() -> None:
    ledger = Ledger()
    trained(sigma=3.0, ledger=ledger)
    assert list(ledger.events) == list(LinearTraining(3.0, 600, steps=20).history(ADD_OR_REMOVE_ONE))


def test_every_step_is_in_the_ledger_before_its_noisy_sum_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, seen, noised = Ledger(), [], linear.release

    def watched(*args: object, **options: object) -> Release:
        answer = noised(*args, **options)  # type: ignore[arg-type]
        seen.append(ledger.steps)
        return answer

    monkeypatch.setattr(linear, "release", watched)
    trained(sigma=3.0, ledger=ledger)
    assert seen == list(range(1, 21))


def test_two_trainings_get_different_noise() -> None:
    assert not torch.equal(trained(sigma=1.0)[0].weight, trained(sigma=1.0)[0].weight)


def test_the_release_says_what_was_done_and_gives_the_classifier_back() -> None:
    classifier, stored = trained(sigma=2.0)
    assert stored.count == 20 and stored.event.noise_multiplier == pytest.approx(2.0 * math.sqrt(20))
    again = Release.from_dict(stored.to_dict())
    assert again.summary() == stored.summary() and stored.summary()["count"] == 20
    assert torch.equal(classifier_of(again).weight, classifier.weight)


def test_noise_follows_the_relation() -> None:
    rows, labels = records()
    _, stored = fit_linear(rows, labels, CLASSES, LinearTraining(2.0, 600), ledger=Ledger(), relation=REPLACE_ONE)
    assert stored.event.relation == REPLACE_ONE
    assert stored.noise_std == pytest.approx(2 * 0.3 * 2.0 * math.sqrt(60))


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"learning_rate": 0.0}, {"clip_norm": -1.0}, {"momentum": 1.0}, {"noise_multiplier": 0.0}],
)
def test_constants_out_of_range_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        LinearTraining(**{"noise_multiplier": 1.0, "records": 10, **settings})  # type: ignore[arg-type]


def test_another_release_holds_no_classifier() -> None:
    _, stored = trained()
    with pytest.raises(UserError, match="holds no classifier"):
        classifier_of(Release("counts", {"count": torch.zeros(3)}, 1.0, stored.event, {}))
