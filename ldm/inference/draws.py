"""Images decoded from draws of a private run's released statistics, in place of samples of its diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ldm.cli import pick_device
from ldm.errors import UserError
from ldm.files import file_digest
from ldm.inference.class_names import named_labels
from ldm.inference.decode import Decoder
from ldm.inference.generate import labels_for
from ldm.inference.load import load_model
from ldm.inference.request import check_count
from ldm.models.diffusion.latent_draws import LatentDraws
from ldm.samples import SampleSet

#: Images decoded at a time.
PART = 250


def decoded_draws(
    draws: Path,
    config: Path,
    weights: Path,
    count: int,
    classes: Sequence[int] | None = None,
    *,
    class_names: Sequence[str] = (),
    seed: int | None = 0,
    device: str | None = None,
) -> SampleSet:
    """``count`` images, class by class, decoded by the first stage of a model; no step of its diffusion model is taken.

    ``draws``: file of `LatentDraws`. ``classes``: labels, all of the statistics by default. They are post-processing
    and cost no privacy. Raises UserError for statistics of other latents, and for a class without statistics.
    """
    check_count(count)
    model = load_model(config, weights, pick_device(device))
    source = LatentDraws.read(draws)
    if source.shape != model.latent_shape:
        raise UserError(f"{draws}: statistics of latents {source.shape}, which are not those of this model")
    labels = labels_for(range(source.mixture.classes) if classes is None else classes, count)
    assert labels is not None  # classes were given
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    latents, decode = source.draw(labels, generator), Decoder(model)
    images = torch.cat([decode(part.to(model.betas.device)) for part in latents.split(PART)])
    meta = {"draws_sha256": file_digest(draws), "checkpoint_sha256": file_digest(weights), "seed": seed}
    return SampleSet(images, labels, meta | named_labels(labels, class_names))
