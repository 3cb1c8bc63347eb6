"""``dp_config.warm_up``: release statistics of the records, and train the model on draws from the fitted mixture."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import read_checkpoint, save_checkpoint
from ldm.data.latent_cache import LatentCache
from ldm.errors import UserError
from ldm.models.diffusion.ddpm import LatentDiffusion
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


def latents_of(model: LatentDiffusion, dataset: Any) -> tuple[Tensor, Tensor]:
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


def drawer(draws: LatentDraws) -> Draw:
    """Sampler of scaled latents (B, C, h, w) and labels (B,), with equal probability for all classes."""

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(draws.mixture.classes, (count,), generator=generator)
        return draws.draw(labels, generator), labels

    return draw


@dataclass(frozen=True)
class WarmUp:
    """The part of a private run before its first step: it releases statistics and trains the model on draws from them.

    Files in the run directory: ``statistics.ckpt`` with the releases, ``draws.safetensors`` with the fitted mixture,
    ``warm_up.ckpt`` with the trained weights.
    """

    model: LatentDiffusion
    dataset: Any
    statistics: StatisticsPlan
    plan: PrivacyPlan
    ledger: Ledger
    run_dir: RunDirectory

    def run(
        self,
        done: Sequence[Release],
        released: Callable[[Sequence[Release]], None],
        model_config: Mapping[str, Any],
    ) -> None:
        """Make the releases that are not ``done``, store the fitted mixture, and train the model on its draws.

        ``released`` is called with all releases when their file is complete. ``model_config`` goes into the file of
        weights. Raises UserError for a frame of other latents, and for several processes.
        """
        frame = self._read_frame()
        mixture, releases = self._release(frame, done)
        released(releases)
        draws = LatentDraws.of(mixture, frame, self.model.latent_shape)
        self._list_on_card(draws.state())
        draws.save(self.run_dir.draws, self._account())
        if self.statistics.training.steps:
            self._train(draws, model_config)

    def _read_frame(self) -> Frame:
        frame, shape = load_frame(self.statistics.frame), self.model.latent_shape
        if frame.dimensions != math.prod(shape):
            raise UserError(
                f"{self.statistics.frame}: directions of {frame.dimensions} numbers; latents here have {shape}"
            )
        if launched() and not self.run_dir.warmed_up.is_file():
            raise UserError("dp_config.warm_up runs in one process; start on one device, then --resume on several")
        return frame

    def _release(self, frame: Frame, done: Sequence[Release]) -> tuple[ClassMixture, list[Release]]:
        """The mixture and all releases; the records are read only if a round is not ``done``."""
        if len(done) < len(self.statistics.rounds):
            latents, labels = latents_of(self.model, self.dataset)
        else:
            latents, labels = torch.zeros(0, *self.model.latent_shape), torch.zeros(0, dtype=torch.long)
        path = self.run_dir.statistics
        mixture, releases = release_rounds(
            self.statistics, frame, self.plan, self.ledger, latents, labels, path, list(done)
        )
        add_classifier(self.statistics, self.dataset, self.plan, self.ledger, path, releases)
        return mixture, releases

    def _train(self, draws: LatentDraws, model_config: Mapping[str, Any]) -> None:
        """Train the model on draws, or load the weights if an earlier process of the run has trained it."""
        path = self.run_dir.warmed_up
        if path.is_file():
            self.model.load_lineage_state(read_checkpoint(path)["state_dict"], source=str(path))
            return
        train_further(self.model, drawer(draws), self.statistics.training)
        state = self.model.state_dict()
        self._list_on_card(state)
        save_checkpoint({"state_dict": state, "model_config": dict(model_config), "privacy": self._account()}, path)

    def _account(self) -> dict[str, Any]:
        return {"plan": self.plan.to_dict(), "ledger": self.ledger.to_dict()}

    def _list_on_card(self, state: Mapping[str, Tensor]) -> None:
        """Put the digest of a file's tensors on the run's card, which lists a file before it is written."""
        if self.model.private is not None:
            self.model.private.release(state)
