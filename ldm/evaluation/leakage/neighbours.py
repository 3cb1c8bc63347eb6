"""Distances of samples to their nearest private images, and the share of near-copies beside that of held-out images.

All results are computed from private images, and no (epsilon, delta) covers them. They are for the holder of the data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation.inputs.image_source import ImageSource
from ldm.evaluation.inputs.images import resize, to_grey, to_rgb
from ldm.evaluation.metrics.subset import SeededSubset
from ldm.files import write_atomic
from ldm.samples import grid

logger = logging.getLogger(__name__)

PRIVATE = "PRIVATE"
NOT_COVERED = "computed from private images; not covered by any (epsilon, delta)"
QUERY_CHUNK = 256
TILE = 64  # least side of an image on the sheet in pixels, so that its caption fits
FEWEST_BELOW = 20  # with fewer held-out images below the threshold, a share is too uncertain


@dataclass(frozen=True)
class Neighbours:
    """The k nearest references of every query: distances (N, k) ascending, and their positions (N, k) in the stream.

    references: number of references.
    """

    distances: Tensor
    indices: Tensor
    references: int


def raw_pixels(size: int, channels: int) -> Callable[[Tensor], Tensor]:
    """Images (N, 1 or 3, H, W) in [-1, 1] -> rows whose Euclidean distance is the root mean square difference of
    their pixels, in [0, 2], at side ``size`` and with ``channels`` 1 or 3."""

    def rows(images: Tensor) -> Tensor:
        images = to_grey(images) if channels == 1 else to_rgb(images)
        flat = resize(images.float(), size).clamp(-1, 1).flatten(1)
        return flat / flat.shape[1] ** 0.5

    return rows


def nearest_neighbours(queries: Tensor, references: Iterable[Tensor], k: int = 1) -> Neighbours:
    """The k nearest of all ``references``, rows (M, D) in batches, of each of the ``queries`` (N, D), Euclidean.

    Memory does not grow with the number of references. Results are on the CPU.
    Raises UserError when there are fewer than k references, or widths differ.
    """
    if queries.ndim != 2 or not len(queries) or k < 1:
        raise UserError(f"queries have shape {tuple(queries.shape)} and {k} neighbours were asked for; need (N, D), 1")
    best = torch.full((len(queries), k), torch.inf)
    places = torch.full((len(queries), k), -1, dtype=torch.int64)
    seen = 0
    for rows in references:
        if rows.ndim != 2 or rows.shape[1] != queries.shape[1]:
            raise UserError(
                f"references have shape {tuple(rows.shape)} and queries {tuple(queries.shape)}; make both alike"
            )
        rows = rows.to(queries.device, torch.float32)
        for start in range(0, len(queries), QUERY_CHUNK):
            part = slice(start, start + QUERY_CHUNK)
            found, index = _nearest_in(queries[part].float(), rows, k)
            together = torch.cat([best[part], found.cpu()], dim=1)
            order = together.sort(dim=1, stable=True).indices[:, :k]
            best[part] = together.gather(1, order)
            places[part] = torch.cat([places[part], index.cpu() + seen], dim=1).gather(1, order)
        seen += len(rows)
    if seen < k:
        raise UserError(f"{seen} reference images have no {k} nearest; at least {k} are needed")
    return Neighbours(best, places, seen)


def _nearest_in(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """k nearest of one batch, found by the fast product formula, then measured again without its rounding error."""
    rough = torch.cdist(queries, rows)
    index = rough.topk(min(k, len(rows)), dim=1, largest=False).indices
    exact = (queries[:, None, :] - rows[index]).square().sum(dim=2).sqrt()
    order = exact.sort(dim=1, stable=True).indices
    return exact.gather(1, order), index.gather(1, order)


@dataclass(frozen=True)
class NearCopies:
    """Share of samples that are near-copies of a private image, beside the share of held-out images.

    threshold: the ``quantile`` of the distances from one half of the held-out images to their nearest private image.
    share, held_out_share: shares of the samples and of the other half (``held_out`` images) below the threshold, with
    exact 95 % intervals (Clopper and Pearson). Held-out images were not trained on, so their share is that of chance.
    copying: the samples' interval lies above the held-out one. space names the distance.
    """

    space: str
    quantile: float
    threshold: float
    samples: int
    held_out: int
    private: int
    share: float
    share_interval: tuple[float, float]
    held_out_share: float
    held_out_interval: tuple[float, float]
    nearest_sample: float
    median_sample: float
    median_held_out: float
    copying: bool
    warning: str = NOT_COVERED

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = "samples copy private images" if self.copying else "no more than chance gives"
        return (
            f"{self.space}: {100 * self.share:.2f} % of {self.samples} samples are near-copies, "
            f"{100 * self.held_out_share:.2f} % of {self.held_out} held-out images ({verdict})"
        )


def near_copies(
    samples: Neighbours, held_out: Neighbours, *, space: str, quantile: float = 0.05, seed: int = 0
) -> NearCopies:
    """Compare distances to the nearest private image of samples and of held-out images, each from `nearest_neighbours`.

    Half of the held-out images, chosen by ``seed``, set the threshold, and the other half are counted. With one set
    for both, their share would be ``quantile`` by construction. Raises UserError below two held-out images.
    """
    if not 0 < quantile < 1:
        raise UserError(f"quantile {quantile} is outside (0, 1); 0.05 is customary")
    if samples.references != held_out.references:
        raise UserError(
            f"samples were compared with {samples.references} private images and held-out images with "
            f"{held_out.references}; use the same ones"
        )
    far, near = held_out.distances[:, 0], samples.distances[:, 0]
    if len(far) < 2:
        raise UserError(f"{len(far)} held-out images are too few; at least 2 are needed, some hundreds are better")
    if len(far) * quantile < 2 * FEWEST_BELOW:
        logger.warning("%d held-out images are few for the quantile %g; the shares are coarse", len(far), quantile)
    order = torch.randperm(len(far), generator=torch.Generator().manual_seed(seed))
    threshold = float(far[order[: len(far) // 2]].quantile(quantile))
    counted = far[order[len(far) // 2 :]]
    hits, reference_hits = int((near < threshold).sum()), int((counted < threshold).sum())
    interval, reference = _share_interval(hits, len(near)), _share_interval(reference_hits, len(counted))
    return NearCopies(
        space,
        quantile,
        threshold,
        len(near),
        len(counted),
        samples.references,
        hits / len(near),
        interval,
        reference_hits / len(counted),
        reference,
        float(near.min()),
        float(near.median()),
        float(far.median()),
        copying=interval[0] > reference[1],
    )


def _share_interval(hits: int, count: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    found = binomtest(hits, count).proportion_ci(confidence_level=0.95, method="exact")
    return float(found.low), float(found.high)


@torch.no_grad()
def look_for_copies(
    samples: Tensor,
    private: ImageSource,
    held_out: ImageSource,
    rows: Callable[[Tensor], Tensor],
    *,
    space: str,
    quantile: float = 0.05,
    count: int = 2000,
    batch_size: int = 500,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[NearCopies, Neighbours]:
    """Nearest private image of every sample (N, C, H, W), and the verdict beside ``count`` held-out images at most.

    rows: images -> (B, D), such as `raw_pixels` or a feature extractor. Private images are read once, batch by batch.
    Also returns the samples' neighbours.
    """

    def stream(source: ImageSource) -> Iterator[Tensor]:
        for images, _ in source.batches(batch_size):
            yield rows(images.to(device)).flatten(1).float()

    mine = torch.cat([rows(part.to(device)).flatten(1).float() for part in samples.split(batch_size)])
    chosen = SeededSubset(count, seed)
    for part in stream(held_out):
        chosen.update(part)
    theirs = torch.from_numpy(chosen.rows).to(device)
    both = nearest_neighbours(torch.cat([mine, theirs]), stream(private))
    found = Neighbours(both.distances[: len(mine)], both.indices[: len(mine)], both.references)
    reference = Neighbours(both.distances[len(mine) :], both.indices[len(mine) :], both.references)
    return near_copies(found, reference, space=space, quantile=quantile, seed=seed), found


def take(source: ImageSource, indices: Tensor, batch_size: int = 500) -> Tensor:
    """The images of a source at ``indices`` (N,), in that order, by one pass through it."""
    wanted, kept, seen = indices.unique(), [], 0
    for images, _ in source.batches(batch_size):
        here = wanted[(wanted >= seen) & (wanted < seen + len(images))] - seen
        kept.append(images[here])
        seen += len(images)
    return torch.cat(kept)[torch.searchsorted(wanted, indices)]


def private_path(path: str | Path) -> Path:
    """The file name with PRIVATE in it, for a sheet that shows private images."""
    path = Path(path)
    return path if PRIVATE in path.name else path.with_name(f"{path.stem}.{PRIVATE}{path.suffix or '.png'}")


def require_holder(holds_private_data: bool) -> None:
    """Raise UserError unless the user states the right to see the private images."""
    if not holds_private_data:
        raise UserError("the image would show private images; type --i-hold-the-private-data if they are yours to see")


def some(images: Tensor, count: int, seed: int = 0) -> Tensor:
    """``count`` of the images (N, ...) at random, or all of them."""
    if count < 1:
        raise UserError(f"{count} images asked for; at least 1 is needed")
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]]


def save_pairs(
    samples: Tensor, private: Tensor, distances: Tensor, path: str | Path, *, holds_private_data: bool
) -> Path:
    """Draw each sample (N, C, H, W) with its nearest private image (N, C, H, W) right of it, nearest pair first.

    Marked PRIVATE across the image and in the file name, which is returned. Raises UserError unless the caller states
    that the user holds the private data, because the sheet shows private images unchanged.
    """
    require_holder(holds_private_data)
    if not len(samples) == len(private) == len(distances) or not len(samples):
        raise UserError(f"{len(samples)} samples, {len(private)} private images and {len(distances)} distances given")
    order = distances.argsort()
    side = max(samples.shape[-1], private.shape[-1])
    pairs = torch.stack([to_rgb(resize(part.cpu().float(), side))[order] for part in (samples, private)], dim=1)
    pairs = pairs.flatten(0, 1).repeat_interleave(factor := -(-TILE // side), dim=-1)
    pairs = pairs.repeat_interleave(factor, dim=-2)
    captions = [text for distance in distances[order].tolist() for text in (f"{distance:.3f}", PRIVATE)]
    sheet = grid(pairs, columns=8, labels=captions)
    marked = Image.new("RGB", (sheet.width, sheet.height + 2 * 16), "darkred")
    marked.paste(sheet, (0, 16))
    draw = ImageDraw.Draw(marked)
    text = f"{PRIVATE}: every second image is a private image"
    for top in (2, sheet.height + 16 + 2):
        draw.text((4, top), text, fill="white")
    target = private_path(path)
    known = Image.registered_extensions()
    if target.suffix.lower() not in known:
        raise UserError(f"{target}: cannot tell an image format from the name; end it in .png")
    write_atomic(target, lambda temporary: marked.save(temporary, format=known[target.suffix.lower()]))
    return target
