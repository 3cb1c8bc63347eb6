"""Images decoded from draws of a private run's released statistics, in place of samples of its diffusion model."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.errors import UserError
from ldm.files import file_digest
from ldm.inference.batches import SampleHeader, whole_set, write_batches
from ldm.inference.class_names import named_labels
from ldm.inference.decode import Decoder
from ldm.inference.generate import BAR, batch_seed, labels_for
from ldm.inference.load import load_model
from ldm.inference.request import check_count
from ldm.models.diffusion.latent_draws import LatentDraws
from ldm.samples import SampleSet, unfinished_meta
from ldm.samples.shards import WHOLE, Shard

#: Images of a batch. A public constant, so that a seed gives the same images everywhere.
PART = 250


@dataclass(frozen=True)
class DrawsPlan:
    """Images of released statistics: ``count`` in all, class by class. Post-processing, which costs no privacy.

    ``draws``: file of `LatentDraws`. ``config`` and ``weights``: the model whose first stage decodes; no step of its
    diffusion model is taken. ``classes``: labels, all of the statistics by default. ``class_names``: stored with the
    labels. ``seed``: a new one if None. Raises UserError for a count below 1.
    """

    draws: Path
    config: Path
    weights: Path
    count: int
    classes: Sequence[int] | None = None
    class_names: Sequence[str] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        check_count(self.count)


def decoded_draws(plan: DrawsPlan, device: torch.device) -> SampleSet:
    """The images in memory. Raises UserError for statistics of other latents, and for a class without statistics."""
    return whole_set(DecodedDraws.prepare(plan, device))


def write_draws(output: Path, plan: DrawsPlan, device: torch.device, shard: Shard = WHOLE) -> bool:
    """Write the images of `decoded_draws` to a `.pt` file; whether it is complete. See `write_batches`."""
    if not shard.whole and plan.seed is None:
        raise UserError("several processes need one seed; give --seed, such as --seed 0")
    return write_batches(output, DecodedDraws.prepare(plan, device, unfinished_meta(output).get("seed")), shard)


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class DecodedDraws:
    """Released statistics and a decoder that are about to make images (`ImageBatches`)."""

    source: LatentDraws
    decode: Decoder
    labels: Tensor
    seed: int
    header: SampleHeader
    batch_size: int

    @classmethod
    def prepare(cls, plan: DrawsPlan, device: torch.device, seed: int | None = None) -> DecodedDraws:
        """Load the model and check the plan. ``seed``: of a plan without one, a new one if None. Raises UserError."""
        model = load_model(plan.config, plan.weights, device)
        source = LatentDraws.read(plan.draws)
        if source.shape != model.latent_shape:
            raise UserError(f"{plan.draws}: statistics of latents {source.shape}, which are not those of this model")
        labels = labels_for(range(source.mixture.classes) if plan.classes is None else plan.classes, plan.count)
        assert labels is not None  # classes were given
        source.check_labels(labels)
        used = plan.seed if plan.seed is not None else secrets.randbits(32) if seed is None else seed
        meta = {"draws_sha256": file_digest(plan.draws), "checkpoint_sha256": file_digest(plan.weights), "seed": used}
        header = SampleHeader(plan.count, labels, meta | named_labels(labels, plan.class_names))
        return cls(source, Decoder(model), labels, used, header, PART)

    def batches(self, numbers: range, progress: bool = True) -> Iterator[Tensor]:
        """The images of the batches with these numbers."""
        device = self.decode.model.betas.device
        with tqdm(total=self.header.count, desc="draws", bar_format=BAR, disable=not progress) as bar:
            bar.update(numbers.start * self.batch_size)
            for number in numbers:
                rows = self.labels[number * self.batch_size : (number + 1) * self.batch_size]
                generator = torch.Generator().manual_seed(batch_seed(self.seed, number))
                yield self.decode(self.source.draw(rows, generator).to(device))
                bar.update(len(rows))
