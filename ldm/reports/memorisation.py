"""The memorisation part of an evaluation: near-copies among the samples, and results of the membership command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation.features import FeatureExtractor
from ldm.evaluation.inputs.image_source import ImageSource
from ldm.evaluation.leakage.neighbours import look_for_copies, raw_pixels, take
from ldm.reports.evaluation_files import read_json

#: Greatest number of samples, and of held-out images, in the test for near-copies.
LOOKED_AT = 2000


def near_copies_of(
    samples: ImageSource,
    count: int,
    private: ImageSource,
    held_out: ImageSource,
    extractor: FeatureExtractor,
    *,
    batch_size: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, Any]]:
    """Share of samples nearer to a private image than held-out images usually are, by pixels and by features.

    count: images in `samples`. Returns plain values by the name of the space; they are private, see
    `ldm.evaluation.leakage.neighbours`.
    """
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:LOOKED_AT]
    chosen_images = take(samples, chosen, batch_size)

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            return extractor(images)

    spaces: dict[str, Callable[[Tensor], Tensor]] = {
        "pixels, root mean square": raw_pixels(chosen_images.shape[-1], chosen_images.shape[1]),
        f"{extractor.name} features": features,
    }
    found = {}
    for space, rows in spaces.items():
        result, _ = look_for_copies(
            chosen_images,
            private,
            held_out,
            rows,
            space=space,
            count=LOOKED_AT,
            batch_size=batch_size,
            seed=seed,
            device=device,
        )
        found[f"Near-copies: {space}"] = {"verdict": str(result), **result.to_dict()}
    return found


def read_membership(paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Results in files of scripts/membership.py, by attack. Raises UserError that names a file of another kind."""
    found = {}
    for path in paths:
        results = read_json(path, "scripts/membership.py writes it with --output")
        if not isinstance(results, list) or not all(isinstance(one, dict) and "attack" in one for one in results):
            raise UserError(f"{path}: not a result of scripts/membership.py")
        for result in results:
            name = f"Membership inference: {result['attack']}"
            found[name if name not in found else f"{name} ({path})"] = result
    return found
