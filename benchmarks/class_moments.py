"""Three ways to spend one budget on class moments: one query; the means and then the spread around them; cells as well.

python benchmarks/class_moments.py my-shapes my-shapes-test --epsilon 1 5

A CNN is trained on images decoded from draws, and scored on the folder my-shapes-test. The noise has a fixed seed, and
its size is that of the moments of `dp-ldm new`: this is for made-up folders only.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file, from any folder

from benchmarks.own_images import accuracy, images_of
from ldm.cli import ArgumentParser, run
from ldm.data.folder import ImageFolder
from ldm.inference import labels_for, load_model
from ldm.privacy.ledger import Ledger
from ldm.privacy.statistics import ClassMixture, ClassMoments, Frame, fit_round, leading_cells, release
from ldm.reports.own_images import CELL_SHARES, CELLS, LEADING, MEANS_SHARE, PUBLIC_MODELS, Moments, Settings
from ldm.samples import SampleSet
from ldm.shipped import find_shipped
from ldm.training.public_frame import load_frame

BY_NAME = {model.name: model for model in PUBLIC_MODELS if model.moments is not None}
ALL, MEANS, SPREAD, OWN = (1.0, 1.0, 1.0), (1.0, 1.0, 0.0), (0.2, 0.3, 1.0), (0.5, 0.7, 1.0)


def shipped(name: str) -> Path:
    """The place of a shipped file, so that the working folder does not matter."""
    return find_shipped(name) or Path(name)


def released(
    way: str, moments: Moments, frame: Frame, sigma: float, latents: Tensor, labels: Tensor, classes: int, seed: int
) -> ClassMixture:
    """The mixture fitted to moments released in one query ("one"), around the means ("centred"), or also of cells."""

    def answer(query: ClassMoments, share: float, place: int, before: ClassMixture | None = None) -> ClassMixture:
        noise = sigma / math.sqrt(share)
        noisy = release(
            query, latents, labels, noise_multiplier=noise, ledger=Ledger(), insecure_seed=100 * seed + place
        )
        return fit_round(query, noisy, before)

    if way == "one":
        return answer(ClassMoments(frame, classes, moments.clip_norm, ALL), 1.0, 0)
    shares = (MEANS_SHARE, 1 - MEANS_SHARE) if way == "centred" else CELL_SHARES
    means = answer(ClassMoments(frame, classes, moments.clip_norm, MEANS), shares[0], 0)
    around = ClassMoments(frame, classes, moments.spread_norm, SPREAD, means.centres(1), centred=True)
    spread = answer(around, shares[1], 1)
    if way == "centred":
        return spread
    anchors, basis = leading_cells(spread, CELLS, LEADING)
    norm = spread.radius(anchors, basis)
    return answer(ClassMoments(frame, classes, norm, OWN, anchors, True, True, basis), shares[2], 2, spread)


@torch.no_grad()
def encoded(model: Any, images: Tensor) -> Tensor:
    """Scaled latents, posterior means."""
    scale = float(torch.as_tensor(model.scale_factor))
    return torch.cat([model.encode_moments(part)[:, : model.channels] * scale for part in images.split(250)])


@torch.no_grad()
def decoded(model: Any, mixture: ClassMixture, frame: Frame, count: int) -> SampleSet:
    """Images of draws, as many of each class."""
    labels = labels_for(range(mixture.classes), count)
    assert labels is not None
    latents = frame.restore(mixture.draw(labels, torch.Generator().manual_seed(0))).float()
    shaped = latents.view(count, *model.latent_shape)
    return SampleSet(torch.cat([model.decode_first_stage(part).clamp(-1, 1) for part in shaped.split(250)]), labels)


def main() -> None:
    """Parse the command line and print the accuracy of all ways for every epsilon and seed of the noise."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="made-up images, a subfolder a class")
    parser.add_argument("test", type=Path, help="held-out images with the same classes")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[5.0])
    parser.add_argument("--public-model", choices=list(BY_NAME), default="clothes32")
    parser.add_argument("--count", type=int, default=1000, help="draws")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the noise")
    args = parser.parse_args()
    public = BY_NAME[args.public_model]
    assert public.moments is not None
    names = ImageFolder(root=args.folder, size=public.size, channels=public.channels).class_names
    train, test = (images_of(place, public.size, public.channels, names) for place in (args.folder, args.test))
    assert train.labels is not None
    model = load_model(public.configs[0], shipped(public.weights), torch.device("cpu"))
    frame, latents = load_frame(shipped(public.moments.frame)), encoded(model, train.images)
    for epsilon in args.epsilon:
        sigma = Settings.for_size(public, epsilon, len(train.images), len(names)).noise_multiplier
        for way in ("one", "centred", "cells"):
            scores = []
            for seed in range(args.seeds):
                mixture = released(way, public.moments, frame, sigma, latents, train.labels, len(names), seed)
                scores.append(accuracy(decoded(model, mixture, frame, args.count), test, len(names)))
            found = ", ".join(f"{score:.1f}" for score in scores)
            print(f"epsilon {epsilon:g}, sigma {sigma:.3g}, {way:8} {found} %", flush=True)


if __name__ == "__main__":
    run(main)
