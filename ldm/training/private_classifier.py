"""``dp_config.warm_up.classifier``: a private linear classifier on public features, which can label samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import read_checkpoint, save_safetensors
from ldm.config import instantiate_from_config, load_config, section_at, to_plain
from ldm.data.latent_cache import LatentCache
from ldm.errors import UserError
from ldm.modules.feature_map import BATCH, FeatureMap
from ldm.privacy.event import History
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.statistics import LinearClassifier, LinearTraining, Release, classifier_of, fit_linear
from ldm.samples import SampleSet

KEYS = ("features", *(entry.name for entry in fields(LinearTraining) if entry.name != "records"))


@dataclass(frozen=True)
class ClassifierPlan:
    """Public constants of the classifier: the file of its `FeatureMap`, and the settings of its training."""

    features: str
    settings: Mapping[str, Any]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> ClassifierPlan:
        """Read the section, whose keys are known. Raises UserError naming the key that is missing or out of range."""
        settings = dict(config)
        features = settings.pop("features", None)
        for name, value in (("features", features), ("noise_multiplier", settings.get("noise_multiplier"))):
            if value is None:
                raise UserError(f"dp_config.warm_up.classifier.{name} is missing")
        plan = cls(str(features), settings)
        plan.training(1)  # checks every value
        return plan

    def training(self, records: int) -> LinearTraining:
        """The training for a public number of records."""
        return LinearTraining(records=records, **self.settings)

    def history(self, relation: str) -> History:
        """The ledger's charges, known before any record is read."""
        return self.training(1).history(relation)


def save_feature_map(features: FeatureMap, path: str | Path, source: str) -> None:
    """Write a feature map as ``.safetensors``; ``source`` describes its public data in words."""
    save_safetensors(features.state(), path, {"source": source})


def load_feature_map(path: str | Path) -> FeatureMap:
    """Read `save_feature_map` back. Raises UserError for another file."""
    return FeatureMap.from_state(read_checkpoint(path)["state_dict"], str(path))


def release_classifier(how: ClassifierPlan, dataset: Any, classes: int, plan: PrivacyPlan, ledger: Ledger) -> Release:
    """Train the classifier on the images behind a latent cache, charged to ``ledger``; returns its release."""
    features = load_feature_map(how.features)
    rows, labels = features_of(dataset, features)
    _, answer = fit_linear(
        rows,
        labels,
        classes,
        how.training(plan.num_records or round(plan.expected_batch_size / plan.sample_rate)),
        ledger=ledger,
        relation=plan.relation,
        insecure_seed=plan.insecure_seed,
    )
    return Release(**{**vars(answer), "constants": {**answer.constants, "map": features.digest()}})


def features_of(dataset: Any, features: FeatureMap) -> tuple[Tensor, Tensor]:
    """Features (N, k) and labels (N,) of the records. Raises UserError for a data set whose latents are not cached."""
    if not isinstance(dataset, LatentCache):
        raise UserError("dp_config.warm_up.classifier needs data.params.latent_cache: true and no augmentation")
    parts = []
    for start in range(0, len(dataset), BATCH):
        items = [dataset.dataset[place] for place in range(start, min(start + BATCH, len(dataset)))]
        images = torch.stack([torch.as_tensor(item["image"]) for item in items]).permute(0, 3, 1, 2)
        parts.append(features(images.contiguous()))
    return torch.cat(parts), torch.from_numpy(dataset.labels)


def label_samples(samples: SampleSet, classifier: LinearClassifier, features: FeatureMap) -> SampleSet:
    """The same images with the classes that ``classifier`` finds. Post-processing of a released classifier."""
    return SampleSet(samples.images, classifier(features(samples.images.float())))


def stored_classifier(how: ClassifierPlan, releases: list[Release]) -> tuple[LinearClassifier, FeatureMap]:
    """The classifier among stored releases, and its features. Raises UserError if there is none or the map differs."""
    features = load_feature_map(how.features)
    for item in releases:
        if "map" in item.constants:
            if item.constants["map"] != features.digest():
                raise UserError(f"{how.features}: the classifier was trained on other features")
            return classifier_of(item), features
    raise UserError("the run has released no classifier; set dp_config.warm_up.classifier before training")


def public_feature_map(
    files: Sequence[str], count: int, rank: int, whitening: float, seed: int = 0
) -> tuple[FeatureMap, list[str]]:
    """The map fitted to ``count`` images of the training data of each file, and the names of the data sets.

    All of them must be public and of one shape. Raises UserError for other data or a rank above what they give.
    """
    parts, names = [], []
    for file in files:
        node = to_plain(section_at(load_config([file]), "data.params.train", file))
        dataset = instantiate_from_config(node)
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:count].tolist()
        parts.append(torch.stack([torch.as_tensor(dataset[place]["image"]) for place in order]).permute(0, 3, 1, 2))
        names.append(f"{node['target']} of {file}")
        if parts[-1].shape[1:] != parts[0].shape[1:]:
            raise UserError(
                f"{file}: images of {tuple(parts[-1].shape[1:])}, earlier ones of {tuple(parts[0].shape[1:])}"
            )
    return FeatureMap.fit(torch.cat(parts).contiguous(), rank, whitening), names
