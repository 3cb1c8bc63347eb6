"""Mean and covariance of image features, gathered batch by batch, and their `.npz` file."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation.features import FeatureExtractor
from ldm.evaluation.inputs.images import quantize as quantize_images
from ldm.evaluation.metrics.frechet import frechet_distance
from ldm.files import write_atomic
from ldm.samples.array_files import NpzArchive

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"
INCEPTION_DIM = 2048
ROUNDING = 1e-5  # relative rounding error of a covariance stored in float32


@dataclass(frozen=True)
class FeatureStatistics:
    """Gaussian summary of one image set, with the settings that it was computed with.

    mu (D,) and sigma (D, D, unbiased) are float64. count 0 and extractor "unknown" mark files of other programs, which
    store only mu and sigma. weights: digest of the extractor's weights ("" when it has none). quantize: pixels were
    rounded to 8 bits first. size: the images' "HEIGHTxWIDTH" before the extractor's own resize, which `resize`
    describes; "mixed" for several sizes. source: name of the images for a reader.
    """

    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]
    count: int = 0
    extractor: str = UNKNOWN
    weights: str = ""
    quantize: bool = False
    resize: str = ""
    source: str = ""
    size: str = ""

    def save(self, path: str | Path) -> None:
        """Write an `.npz` with one array per field, atomically; other FID programs read its `mu` and `sigma`."""
        fields: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in self.__dataclass_fields__}

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:  # an open file, because savez appends .npz to bare names
                np.savez(file, **fields)

        write_atomic(Path(path), write)

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Read an `.npz` with at least `mu` and `sigma`. Raises UserError, one line, when it is not one."""
        path = Path(path)
        try:
            archive = NpzArchive(path)
            arrays = {name: archive.array(name) for name in cls.__dataclass_fields__ if name in archive.headers}
        except FileNotFoundError:
            raise UserError(
                f"{path}: no such file; write it with fid/compute_dataset_stats.py or fid/compute_samples_stats.py"
            ) from None
        except UserError as error:
            raise UserError(f"{path}: not a readable .npz statistics file ({error})") from error
        missing = {"mu", "sigma"} - arrays.keys()
        if missing:
            raise UserError(f"{path}: no {sorted(missing)} in this file (it holds {sorted(archive.headers)})")
        mu, sigma = checked_moments(arrays["mu"], arrays["sigma"], path)
        texts = {name: _text(arrays, name, path) for name in ("weights", "resize", "source", "size")}
        return cls(
            mu,
            sigma,
            count=_count(arrays, path),
            extractor=_text(arrays, "extractor", path) or UNKNOWN,
            quantize=bool(_scalar(arrays, "quantize", path, "b", False)),
            **texts,
        )

    def policy(self) -> str:
        """The pixel policy in words: rounding, the images' size, the extractor and its resize."""
        rounding = "rounded to 8 bits" if self.quantize else "floats, not rounded to 8 bits"
        size = f"{self.size} pixels, " if self.size else ""
        weights = f" (weights {self.weights})" if self.weights else ""
        return f"{size}clamped to [-1, 1], {rounding}, resized: {self.resize or 'unknown'}, {self.extractor}{weights}"


def checked_moments(mu: NDArray[Any], sigma: NDArray[Any], where: Path) -> tuple[Any, Any]:
    """Mean (D,) and covariance (D, D) as float64. Raises UserError when the arrays are not a mean and a covariance."""
    for name, array in (("mu", mu), ("sigma", sigma)):
        if array.dtype.kind not in "fiu":
            raise UserError(f"{where}: {name} has type {array.dtype}; expected real numbers")
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not len(mu):
        raise UserError(f"{where}: mu has shape {mu.shape} and sigma {sigma.shape}; expected (D,) and (D, D)")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{where}: mu or sigma hold NaN or infinite values; compute the statistics again")
    scale = float(np.abs(sigma).max())
    if float(np.abs(sigma - sigma.T).max()) > ROUNDING * scale:
        raise UserError(f"{where}: sigma is not symmetric, so it is no covariance; compute the statistics again")
    if float(np.linalg.eigvalsh(sigma)[0]) < -ROUNDING * scale * len(mu):
        raise UserError(f"{where}: sigma has negative eigenvalues; compute the statistics again")
    return mu, sigma


def _scalar(arrays: dict[str, NDArray[Any]], name: str, where: Path, kinds: str, default: Any) -> Any:
    """One value of a file, or the default if it is missing. Raises UserError for another type or an array."""
    value = arrays.get(name)
    if value is None:
        return default
    if value.ndim != 0 or value.dtype.kind not in kinds:
        raise UserError(f"{where}: {name} is {value.dtype} of shape {value.shape}; compute the statistics again")
    return value.item()


def _text(arrays: dict[str, NDArray[Any]], name: str, where: Path) -> str:
    return str(_scalar(arrays, name, where, "US", ""))


def _count(arrays: dict[str, NDArray[Any]], where: Path) -> int:
    count = int(_scalar(arrays, "count", where, "iu", 0))
    if count < 0 or ("count" in arrays and count == 1):
        raise UserError(f"{where}: count is {count}; a covariance takes at least 2 images")
    return count


class RunningStatistics:
    """Mean and unbiased covariance of feature batches in float64; holds (D, D) and no features.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1983), eq. 1.5, extended to covariances; the
    result equals np.cov of all rows at once.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = np.zeros(dim)
        self._scatter = np.zeros((dim, dim))

    def update(self, features: Tensor | NDArray[Any]) -> None:
        """Add the rows of `features` (B, D). Raises UserError when a value is not finite."""
        rows = np.asarray(features.detach().cpu() if isinstance(features, Tensor) else features, np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise ValueError(f"features have shape {rows.shape}; expected (B, {len(self.mean)})")
        if not np.isfinite(rows).all():
            raise UserError("the features hold NaN or infinite values; check the images and the extractor's weights")
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        centred = rows - mean
        self.merge(len(rows), mean, centred.T @ centred)

    def merge(self, count: int, mean: NDArray[np.float64], scatter: NDArray[np.float64]) -> None:
        """Add ``count`` rows of which only the ``mean`` (D,) and the ``scatter`` (D, D) around it are known."""
        shift = mean - self.mean
        total = self.count + count
        self._scatter += scatter + np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    @property
    def covariance(self) -> NDArray[np.float64]:
        """(D, D), divided by count - 1 as np.cov does. Raises UserError below two rows."""
        if self.count < 2:
            raise UserError(f"{self.count} images have no covariance; at least 2 are needed")
        return self._scatter / (self.count - 1)


class FeatureStream:
    """Computes features of image batches and updates their statistics; every metric gets its features here.

    quantize rounds to 8 bits first, as writing PNG files and reading them back would. Values outside [-1, 1] are
    clamped, as in image files.
    """

    def __init__(self, extractor: FeatureExtractor, *, quantize: bool = False, source: str = "") -> None:
        self.extractor, self.quantize, self.source = extractor, quantize, source
        self.size = ""
        self._running: RunningStatistics | None = None

    def update(self, images: Tensor) -> Tensor:
        """Take images (B, 1 or 3, H, W) in [-1, 1]; returns their features (B, D)."""
        size = f"{images.shape[-2]}x{images.shape[-1]}"
        self.size = size if self.size in ("", size) else "mixed"
        images = images.float().clamp(-1, 1)
        with torch.inference_mode():
            features = self.extractor(quantize_images(images) if self.quantize else images)
        if self._running is None:
            self._running = RunningStatistics(features.shape[1])
        self._running.update(features)
        return features

    def result(self) -> FeatureStatistics:
        """The statistics of all images so far. Raises UserError below two images; warns of a singular covariance."""
        running = self._running or RunningStatistics(self.extractor.dim)
        dim = len(running.mean)
        if 1 < running.count <= dim:
            logger.warning(
                "%s: %d images for %d features: the covariance is singular and the distance is biased upwards; "
                "use more than %d images (10,000 or more for a number to publish)",
                self.source or "this set",
                running.count,
                dim,
                dim,
            )
        return self.describe(running)

    def describe(self, running: RunningStatistics, source: str = "") -> FeatureStatistics:
        """A `FeatureStatistics` from moments of some of this stream's features, such as those of one class."""
        return FeatureStatistics(
            running.mean,
            running.covariance,
            count=running.count,
            extractor=self.extractor.name,
            weights=self.extractor.weights,
            quantize=self.quantize,
            resize=self.extractor.resize,
            source=source or self.source,
            size=self.size,
        )


def compute_statistics(
    batches: Iterable[Tensor], extractor: FeatureExtractor, *, quantize: bool = False, source: str = ""
) -> FeatureStatistics:
    """Statistics of image batches (B, C, H, W) in [-1, 1]; see `FeatureStream`."""
    stream = FeatureStream(extractor, quantize=quantize, source=source)
    for images in batches:
        stream.update(images)
    return stream.result()


def merged(parts: Sequence[FeatureStatistics]) -> FeatureStatistics:
    """The statistics of all images of ``parts``, of one set and made alike; equal to one pass but for rounding.

    Source: Chan, Golub and LeVeque (1983), equation 1.5, as in `RunningStatistics`.
    """
    first = parts[0]
    running = RunningStatistics(len(first.mu))
    for part in parts:
        running.merge(part.count, part.mu, part.sigma * (part.count - 1))
    size = first.size if all(part.size == first.size for part in parts) else "mixed"
    return replace(first, mu=running.mean, sigma=running.covariance, count=running.count, size=size)


def compare(first: FeatureStatistics, second: FeatureStatistics, *, force: bool = False) -> float:
    """Fréchet distance between two summaries.

    Raises UserError when their settings differ (extractor, weights, rounding, or size of the images), because the
    distance would then measure the settings as well; `force` turns the error into a warning if both have the same
    feature width.
    """
    require_alike(first, second, force=force)
    counts = sorted(count for count in (first.count, second.count) if count)
    if counts and counts[-1] > 2 * counts[0]:
        logger.warning("the sets have %d and %d images; the distance depends on the smaller", counts[0], counts[-1])
    return frechet_distance(first.mu, first.sigma, second.mu, second.sigma)


def require_alike(first: FeatureStatistics, second: FeatureStatistics, *, force: bool = False) -> None:
    """Raise UserError, or with `force` warn, when the settings of two summaries differ."""
    problem = mismatch(first, second)
    if problem and not force:
        raise UserError(
            f"{problem}; make both with the same --extractor, --weights and --quantize from images of one size, "
            "or pass --force"
        )
    if problem:
        logger.warning("compared by force although %s", problem)


def mismatch(first: FeatureStatistics, second: FeatureStatistics) -> str:
    """The differences between the settings of two summaries, in words; "" when they may be compared."""
    if UNKNOWN in (first.extractor, second.extractor):
        names = {first.extractor, second.extractor}
        if names <= {UNKNOWN, "inception"} and len(first.mu) == len(second.mu):
            return ""  # files of other FID programs name no extractor, but 2048 features are those of Inception
        return f"the statistics come from different extractors ({first.extractor} and {second.extractor})"
    if first.extractor != second.extractor:
        return f"the statistics come from different extractors ({first.extractor} and {second.extractor})"
    if first.weights and second.weights and first.weights != second.weights:
        return f"the statistics come from {first.extractor} extractors with different weights"
    if first.resize != second.resize and first.resize and second.resize:
        return f"the images were resized differently ({first.resize}; {second.resize})"
    if first.quantize != second.quantize:
        return "one set was rounded to 8 bits (--quantize) and the other was not"
    if first.size != second.size and first.size and second.size:
        sizes = f"{first.size} and {second.size} pixels"
        return f"the images have different sizes ({sizes}; --real_args size:N resizes real ones)"
    return ""


def describe(first: FeatureStatistics, second: FeatureStatistics) -> str:
    """The name of the distance: "FID" for Inception features only, otherwise with the name of the stand-in."""
    names = {first.extractor, second.extractor}
    standard = names <= {"inception", UNKNOWN} and len(first.mu) == INCEPTION_DIM
    return "FID" if standard else f"Frechet distance ({' / '.join(sorted(names))})"
