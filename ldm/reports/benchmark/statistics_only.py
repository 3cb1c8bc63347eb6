"""Released statistics without gradients: a few queries use the whole budget, and samples are drawn from the answers."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.checkpoint import save_checkpoint
from ldm.config import instantiate_from_config, load_config, to_plain
from ldm.errors import UserError
from ldm.inference import labels_for
from ldm.models.diffusion.latent_draws import LatentDraws
from ldm.models.diffusion.warm_up import train_further
from ldm.privacy.accounting import calibrate
from ldm.privacy.card import ReleaseCard
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.statistics import Release
from ldm.reports.benchmark.config import delta_for
from ldm.reports.benchmark.machine import device, trainer_flags
from ldm.samples import SampleSet
from ldm.training.driver import build_model
from ldm.training.preparation import cache_latents
from ldm.training.private_classifier import ClassifierPlan, label_samples, stored_classifier
from ldm.training.public_frame import load_frame
from ldm.training.statistics_file import load_releases
from ldm.training.statistics_plan import StatisticsPlan
from ldm.training.warm_up import add_classifier, drawer, latents_of, release_rounds, stored_mixture

logger = logging.getLogger(__name__)


def release_statistics(
    folder: Path, run: Path, warm_up: Mapping[str, Any], train_node: Mapping[str, Any], epsilon: float
) -> dict[str, Any]:
    """Spend ``epsilon`` on the rounds of ``warm_up``, in proportion to their shares.

    Writes ``statistics.ckpt`` and ``privacy.json`` into ``folder``. An existing release is not repeated, since a second
    one would spend the budget again. Returns the privacy that was spent.
    """
    section = load_config([run])
    model = build_model(section)
    data_node = to_plain(section.data)
    data_node["params"] = {"batch_size": 256, "num_workers": 0, "train": dict(train_node)}
    data = instantiate_from_config(data_node)
    data.setup()
    cache_latents(model, data, trainer_flags())
    train = data.datasets["train"]
    records, path = len(train), folder / "statistics.ckpt"
    if path.is_file():
        account, done = load_releases(path)
        plan, ledger = PrivacyPlan.from_dict(account["plan"]), Ledger.from_dict(account["ledger"])
        statistics = shared_out(warm_up, epsilon, records)
    else:
        statistics, done = shared_out(warm_up, epsilon, records), []
        plan, ledger = plan_of_queries(statistics, records), Ledger()
    frame = load_frame(statistics.frame)
    latents, labels = latents_of(model, train)
    _, releases = release_rounds(statistics, frame, plan, ledger, latents, labels, path, done)
    add_classifier(statistics, train, plan, ledger, path, releases)
    public = (f"weights of {section.model.params.ckpt_path}",)
    card = ReleaseCard(plan, ledger, public_data=public, statistics=tuple(item.summary() for item in releases))
    card.write(folder / "privacy.json")
    return {"epsilon": next(iter(card.epsilons().values())), "delta": plan.delta, "statement": card.statement()}


def train_on_release(folder: Path, run: Path, warm_up: Mapping[str, Any]) -> None:
    """Train the public model on draws from the release in ``folder``, into ``warm_up.ckpt`` there. Post-processing."""
    model = build_model(load_config([run])).to(device())
    account, releases = load_releases(folder / "statistics.ckpt")
    statistics = with_noise(warm_up, multipliers_of(warm_up, releases), 1.0)
    frame = load_frame(statistics.frame)
    draws = LatentDraws.of(stored_mixture(statistics, frame, releases), frame, model.latent_shape)
    train_further(model, drawer(draws), statistics.training)
    save_checkpoint({"state_dict": model.state_dict(), "privacy": account}, folder / "warm_up.ckpt")


def shared_out(warm_up: Mapping[str, Any], epsilon: float, records: int) -> StatisticsPlan:
    """The section with noise multipliers that together cost ``epsilon``.

    ``share`` of a round, and of the classifier (0.5 unless given), is its part of the sum of 1 / σ² over all queries:
    Gaussian mechanisms without sampling compose to one whose 1 / σ² is that sum (Dong et al. 2022, corollary 2). The
    rounds divide the part without the classifier's share in proportion to their shares, 1 each unless given.
    """
    sigma = calibrate(target_epsilon=epsilon, delta=delta_for(records), sample_rate=1.0, steps=1)
    taken = float(warm_up["classifier"].get("share", 0.5)) if warm_up.get("classifier") else 0.0
    if not 0 <= taken < 1:
        raise UserError(f"statistics_only.classifier.share is {taken}; give a number above 0 and below 1")
    shares = [float(entry.get("share", 1)) for entry in warm_up["rounds"]]
    if any(not 0 < share < math.inf for share in shares):
        raise UserError(f"statistics_only.rounds: the shares are {shares}; give numbers above 0")
    rounds = [sigma * math.sqrt(sum(shares) / (share * (1 - taken))) for share in shares]
    return with_noise(warm_up, rounds, sigma / math.sqrt(taken) if taken else 1.0)


def multipliers_of(warm_up: Mapping[str, Any], releases: Sequence[Release]) -> list[float]:
    """The noise multipliers of the rounds in stored releases, which a classifier's may follow."""
    return [item.event.noise_multiplier for item in releases[: len(warm_up["rounds"])]]


def with_noise(warm_up: Mapping[str, Any], rounds: Sequence[float], classifier: float) -> StatisticsPlan:
    """The section with a noise multiplier for each of its rounds, and the classifier's own."""
    section = dict(warm_up)
    section["rounds"] = [
        {**{key: value for key, value in entry.items() if key != "share"}, "noise_multiplier": sigma}
        for entry, sigma in zip(warm_up["rounds"], rounds, strict=True)
    ]
    if warm_up.get("classifier"):
        settings = {key: value for key, value in warm_up["classifier"].items() if key != "share"}
        section["classifier"] = {**settings, "noise_multiplier": classifier}
    return StatisticsPlan.read(section)


def plan_of_queries(statistics: StatisticsPlan, records: int) -> PrivacyPlan:
    """The plan of the last round, each query a step on all records; rounds with another noise are history before it."""
    last = statistics.rounds[-1]
    return PrivacyPlan(
        sample_rate=1.0,
        steps=sum(entry.noise_multiplier == last.noise_multiplier for entry in statistics.rounds),
        noise_multiplier=last.noise_multiplier,
        max_grad_norm=math.hypot(*last.weights),
        delta=delta_for(records),
        expected_batch_size=records,
        num_records=records,
    )


@torch.no_grad()
def draws_of(run_dir: Path, run: Path, overlay: Mapping[str, Any], count: int, seed: int = 0) -> SampleSet:
    """``count`` images decoded from draws of a run's released statistics, class by class. Post-processing.

    ``overlay``: the settings that overrode the run's file; ``dp_config.warm_up`` has the constants of the release.
    """
    section = OmegaConf.merge(load_config([run]), OmegaConf.create(dict(overlay)))
    assert isinstance(section, DictConfig)  # both are mappings
    model = build_model(section).eval().to(device())
    warm_up = to_plain(section.model.params.dp_config.warm_up)
    _, releases = load_releases(run_dir / "statistics.ckpt")
    warm_up.pop("classifier", None)
    statistics = with_noise(warm_up, multipliers_of(warm_up, releases), 1.0)
    frame = load_frame(statistics.frame)
    mixture = stored_mixture(statistics, frame, releases)
    labels = labels_for(range(mixture.classes), count)
    assert labels is not None
    generator = torch.Generator().manual_seed(seed)
    images = []
    for part in labels.split(500):
        latents = frame.restore(mixture.draw(part, generator)).float().view(len(part), *model.latent_shape)
        images.append(model.decode_first_stage(latents.to(model.device)).clamp(-1, 1).cpu())
    return SampleSet(torch.cat(images), labels)


def labelled_by(samples: SampleSet, released: Path, section: Mapping[str, Any]) -> SampleSet:
    """Samples with the classes that the classifier in the file ``released`` finds. Post-processing.

    ``section``: ``warm_up.classifier`` of the run, whose noise multiplier plays no role here.
    """
    settings = {key: value for key, value in section.items() if key != "share"}
    how = ClassifierPlan.read({"noise_multiplier": 1.0, **settings})
    classifier, features = stored_classifier(how, load_releases(released)[1])
    return label_samples(samples, classifier, features)
