"""``dp_config.warm_up``: release statistics of the records, and train the model on draws from the fitted mixture."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import read_checkpoint, save_checkpoint
from ldm.data.latent_cache import LatentCache
from ldm.errors import UserError
from ldm.models.diffusion.latent_draws import LatentDraws
from ldm.models.diffusion.warm_up import Draw, train_further
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.statistics import ClassMixture, Frame, Release, fit_round, release
from ldm.training.private_classifier import release_classifier
from ldm.training.public_frame import load_frame
from ldm.training.run_directory import RunDirectory, launched
from ldm.training.statistics_file import require_own, require_planned, save_releases
from ldm.training.statistics_plan import StatisticsPlan

logger = logging.getLogger(__name__)


def latents_of(model: Any, dataset: Any) -> tuple[Tensor, Tensor]:
    """Scaled latents (N, z, h, w) and labels (N,) of the records: posterior means, not draws.

    Raises UserError for a data set whose latents are not cached.
    """
    if not isinstance(dataset, LatentCache):
        raise UserError("dp_config.warm_up needs cached latents: set data.params.latent_cache: true, no augmentation")
    scale = float(torch.as_tensor(model.scale_factor))
    latents = torch.from_numpy(dataset.moments[:, : model.channels].copy()).mul_(scale)
    return latents, torch.from_numpy(dataset.labels)


def release_rounds(
    statistics: StatisticsPlan,
    frame: Frame,
    plan: PrivacyPlan,
    ledger: Ledger,
    latents: Tensor,
    labels: Tensor,
    path: Path,
    done: list[Release],
) -> tuple[ClassMixture, list[Release]]:
    """Release the rounds that are not ``done``; each is stored in ``path`` before anything is computed from it."""
    releases, mixture = list(done), None
    planned = statistics.events(plan.relation)
    require_planned(path, planned)
    for index in range(len(statistics.rounds)):
        query = statistics.query(index, frame, mixture)
        if index == len(releases):
            require_own(path, ledger)
            answer = release(
                query,
                latents,
                labels,
                noise_multiplier=statistics.rounds[index].noise_multiplier,
                ledger=ledger,
                relation=plan.relation,
                insecure_seed=plan.insecure_seed,
            )
            releases.append(answer)
            save_releases(path, plan, ledger, releases, planned)
            logger.info("%s released once with noise multiplier %.4g", answer.name, answer.event.noise_multiplier)
        elif releases[index].constants != query.describe():
            raise UserError(f"{path}: release {index} has other constants than dp_config.warm_up; a run keeps its plan")
        mixture = fit_round(query, releases[index], mixture, spread=statistics.spread)
    assert mixture is not None
    return mixture, releases


def add_classifier(
    statistics: StatisticsPlan, dataset: Any, plan: PrivacyPlan, ledger: Ledger, path: Path, releases: list[Release]
) -> None:
    """Release the classifier after the rounds and add it to ``releases``, if one is configured and not there yet."""
    how = statistics.classifier
    if how is None or len(releases) == statistics.count:
        return
    require_own(path, ledger)
    releases.append(release_classifier(how, dataset, statistics.classes, plan, ledger))
    save_releases(path, plan, ledger, releases, statistics.events(plan.relation))


def stored_mixture(statistics: StatisticsPlan, frame: Frame, releases: Sequence[Release]) -> ClassMixture:
    """The mixture fitted to stored releases, without reading any record. Raises UserError if the constants differ."""
    mixture = None
    for index, item in enumerate(releases[: len(statistics.rounds)]):
        query = statistics.query(index, frame, mixture)
        if item.constants != query.describe():
            raise UserError(f"release {index} has other constants than dp_config.warm_up")
        mixture = fit_round(query, item, mixture, spread=statistics.spread)
    if mixture is None:
        raise UserError("nothing has been released yet")
    return mixture


def drawer(mixture: ClassMixture, frame: Frame, shape: tuple[int, int, int]) -> Draw:
    """Sampler of scaled latents (B, *shape) and labels, with equal probability for all classes."""
    draws = LatentDraws.of(mixture, frame, shape)

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(mixture.classes, (count,), generator=generator)
        return draws.draw(labels, generator), labels

    return draw


def prepare_model(
    model: Any,
    dataset: Any,
    statistics: StatisticsPlan,
    plan: PrivacyPlan,
    ledger: Ledger,
    run_dir: RunDirectory,
    done: Sequence[Release],
    released: Callable[[Sequence[Release]], None],
    model_config: Mapping[str, Any],
) -> None:
    """Release the rounds that are not ``done``, and train ``model`` on latents drawn from the fitted mixture.

    ``released`` is called when the file with the releases is complete; the fitted mixture is then stored, too. If an
    earlier process of the run has trained the model, its weights (``warm_up.ckpt``) are loaded.
    """
    frame = load_frame(statistics.frame)
    shape = model.latent_shape
    if frame.dimensions != math.prod(shape):
        raise UserError(f"{statistics.frame}: directions of {frame.dimensions} numbers; latents here have {shape}")
    if launched() and not run_dir.warmed_up.is_file():
        raise UserError("dp_config.warm_up runs in one process; start on one device, then --resume on several")
    if len(done) < len(statistics.rounds):
        latents, labels = latents_of(model, dataset)
    else:
        latents, labels = torch.zeros(0, *shape), torch.zeros(0, dtype=torch.long)  # no query is left
    mixture, releases = release_rounds(statistics, frame, plan, ledger, latents, labels, run_dir.statistics, list(done))
    add_classifier(statistics, dataset, plan, ledger, run_dir.statistics, releases)
    released(releases)
    account = {"plan": plan.to_dict(), "ledger": ledger.to_dict()}
    draws = LatentDraws.of(mixture, frame, shape)
    _list_on_card(model, draws.state())
    draws.save(run_dir.draws, account)
    if not statistics.training.steps:
        return
    if run_dir.warmed_up.is_file():
        model.load_lineage_state(read_checkpoint(run_dir.warmed_up)["state_dict"], source=str(run_dir.warmed_up))
        return
    train_further(model, drawer(mixture, frame, shape), statistics.training)
    state = model.state_dict()
    _list_on_card(model, state)
    content = {"state_dict": state, "model_config": dict(model_config), "privacy": account}
    save_checkpoint(content, run_dir.warmed_up)


def _list_on_card(model: Any, state: Mapping[str, Tensor]) -> None:
    """Put the digest of a file's tensors on the run's card, which lists a file before it is written."""
    if model.private is not None:
        model.private.release(state)
