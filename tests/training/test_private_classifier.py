"""A private run that trains a classifier on its records before the first step, and samples labelled by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from ldm.errors import UserError
from ldm.modules.feature_map import FeatureMap
from ldm.privacy.card import ReleaseCard
from ldm.privacy.statistics import Frame
from ldm.samples import SampleSet
from ldm.training import private_run, train
from ldm.training.private_classifier import (
    ClassifierPlan,
    label_samples,
    load_feature_map,
    public_feature_map,
    save_feature_map,
    stored_classifier,
)
from ldm.training.public_frame import save_frame
from ldm.training.run_directory import RunDirectory
from ldm.training.statistics_file import load_releases
from ldm.training.statistics_plan import StatisticsPlan
from tests import tiny

SIGMA, STEPS = 9.0, 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("classifier")
    tiny.write_digits(folder / "digits")
    tiny.public_checkpoint(folder / "public.ckpt")
    generator = torch.Generator().manual_seed(0)
    save_frame(Frame.fit(torch.randn(200, 2, 4, 4, generator=generator), 5), folder / "frame.safetensors", "numbers")
    public = torch.rand(60, 1, tiny.SIDE, tiny.SIDE, generator=generator) * 2 - 1
    save_feature_map(FeatureMap.fit(public, 12), folder / "features.safetensors", "random images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(private_run, "EpsilonMeter", lambda plan, history=(), others=(): lambda steps: 0.0)
        yield folder


def section(place: Path, **changes: Any) -> dict[str, Any]:
    classifier = {"features": str(place / "features.safetensors"), "noise_multiplier": SIGMA, "steps": STEPS}
    return {
        "frame": str(place / "frame.safetensors"),
        "clip_norm": 4.0,
        "classes": 10,
        "rounds": [{"noise_multiplier": 8}],
        "classifier": {**classifier, **changes},
    }


def start(place: Path, name: str) -> RunDirectory:
    given = tiny.dp(noise_multiplier=None, epsilon=2, warm_up=section(place))
    model = tiny.ldm(ckpt_path=str(place / "public.ckpt"), train_condition_only=True, dp_config=given)
    return train(tiny.options(place / name, tiny.run_config(model, place / "digits", max_epochs=1)))


@pytest.fixture(scope="module")
def finished(place: Path) -> RunDirectory:
    return start(place, "finished")


def test_classifier_and_steps_together_meet_the_target(finished: RunDirectory) -> None:
    card = ReleaseCard.read(finished.privacy_card)
    accountant = PLDAccountant()
    accountant.compose(GaussianDpEvent(8.0))
    accountant.compose(GaussianDpEvent(SIGMA))  # all its steps together
    step = PoissonSampledDpEvent(card.plan.sample_rate, GaussianDpEvent(card.plan.noise_multiplier))
    accountant.compose(SelfComposedDpEvent(step, card.plan.steps))
    assert 0.97 * 2 < accountant.get_epsilon(card.plan.delta) <= 2 * 1.001
    assert card.ledger.steps == 1 + STEPS + card.plan.steps


def test_the_card_names_the_classifier_and_its_entries(finished: RunDirectory) -> None:
    first, second = ReleaseCard.read(finished.privacy_card).statistics
    assert (first["count"], second["count"]) == (1, STEPS)
    assert second["constants"]["clip_norm"] == 0.3 and second["numbers"] == 13 * 10


def test_samples_get_the_classes_that_the_stored_classifier_finds(finished: RunDirectory, place: Path) -> None:
    how = StatisticsPlan.read(section(place)).classifier
    assert how is not None
    classifier, features = stored_classifier(how, load_releases(finished.statistics)[1])
    samples = SampleSet(torch.rand(20, 1, tiny.SIDE, tiny.SIDE) * 2 - 1, torch.zeros(20, dtype=torch.long))
    labelled = label_samples(samples, classifier, features)
    expected = (features(samples.images) @ classifier.weight + classifier.bias).argmax(dim=1)
    assert labelled.labels is not None and torch.equal(labelled.labels, expected)
    assert torch.equal(labelled.images, samples.images)


def test_a_released_classifier_is_not_trained_again(
    place: Path, finished: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.training import warm_up

    monkeypatch.setattr(warm_up, "release_classifier", lambda *args: pytest.fail("the records were read again"))
    _, releases = load_releases(finished.statistics)
    warm_up.add_classifier(StatisticsPlan.read(section(place)), None, None, None, finished.statistics, releases)  # type: ignore[arg-type]


def test_mistakes_are_named(finished: RunDirectory, place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="classifier.features is missing"):
        StatisticsPlan.read(section(place, features=None))
    with pytest.raises(UserError, match=r"classifier.stepz is unknown.*steps"):
        StatisticsPlan.read(section(place, stepz=3))
    public = torch.rand(60, 1, tiny.SIDE, tiny.SIDE) * 2 - 1
    save_feature_map(FeatureMap.fit(public, 12), tmp_path / "other.safetensors", "other images")
    releases = load_releases(finished.statistics)[1]
    with pytest.raises(UserError, match="trained on other features"):
        stored_classifier(
            ClassifierPlan.read({"features": str(tmp_path / "other.safetensors"), "noise_multiplier": 1}), releases
        )
    with pytest.raises(UserError, match="released no classifier"):
        stored_classifier(ClassifierPlan.read(section(place)["classifier"]), releases[:1])
    with pytest.raises(UserError, match="no feature map"):
        load_feature_map(place / "frame.safetensors")


def test_a_map_is_made_from_the_training_data_of_public_files(place: Path, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    config = tiny.run_config(tiny.ldm(), place / "digits")
    OmegaConf.save(OmegaConf.create(config), tmp_path / "public.yaml")
    features, names = public_feature_map([str(tmp_path / "public.yaml")], count=12, rank=4, whitening=0.5)
    assert features.rank == 4 and names[0].startswith("ldm.data.mnist.MNISTTrain of ")
