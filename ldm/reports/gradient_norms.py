"""Per-record gradient norms of public records; a clipping norm chosen by them costs no privacy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ldm.config import instantiate_from_config, load_config, section_at, to_plain
from ldm.inference.load import without_checkpoints
from ldm.models.diffusion.latent_denoiser import LatentDenoiser
from ldm.models.diffusion.timesteps import TimestepRule
from ldm.privacy.clipping import Clipping, PerRecordClipper


@dataclass(frozen=True)
class NormRecorder(Clipping):
    """A clipping rule that records the norms. For public records only, because the norms are not noised."""

    seen: list[Tensor] = field(default_factory=list)

    def factors(self, squared_norms: Tensor) -> Tensor:
        """As `Clipping.factors`, after recording the norms (B,) over all parts."""
        self.seen.append(squared_norms.detach().sum(dim=0).sqrt().cpu())
        return super().factors(squared_norms)


def starting_model(config: str | Path, checkpoint: str | Path, device: torch.device) -> LatentDenoiser:
    """The model at the start of fine-tuning: the weights of ``checkpoint``, and new adapters if configured."""
    loaded = load_config([config])
    section, params = loaded.get("model"), section_at(loaded, "model.params", config)
    ignored = params.get("ignore_keys") or []
    plain = to_plain(without_checkpoints(section))
    plain.pop("base_learning_rate", None)
    plain["params"] = {**plain["params"], "ckpt_path": str(checkpoint), "ignore_keys": list(ignored)}
    return instantiate_from_config(plain).to(device).eval()


def record_norms(
    model: LatentDenoiser,
    dataset: Any,
    count: int,
    multiplicity: int = 1,
    microbatch: int = 64,
    timestep: int | None = None,
) -> Tensor:
    """Gradient norms (count,) of the first ``count`` public records under the model's fine-tuning rule.

    A record's loss is the mean over ``multiplicity`` timesteps and noises, as in training, or over noises at one
    ``timestep``; ``microbatch`` is the number of records computed at a time.
    """
    selection = model.select_trainable()
    recorder = NormRecorder(max_grad_norm=1.0)
    clipper = PerRecordClipper(model, selection.parameters, recorder)
    loader = DataLoader(Subset(dataset, range(min(count, len(dataset)))), batch_size=microbatch)
    for batch in loader:
        examples: dict[str, Tensor] = dict(model.expand_batch(on_device(batch, model.device), multiplicity, microbatch))
        if timestep is not None:
            examples["t"] = torch.full_like(examples["t"], timestep)
        clipper.accumulate(model.per_example_losses, examples, multiplicity)
    clipper.pop_sums()
    return torch.cat(recorder.seen)


def medians_by_timestep(
    model: LatentDenoiser, dataset: Any, count: int, multiplicity: int, points: int = 11
) -> dict[int, float]:
    """The median norm of `record_norms` at ``points`` timesteps from 0 to the last, evenly spaced.

    The model's own ``timestep_weights`` do not count, so that a configuration that has them gives the same table again.
    """
    last, rule = model.num_timesteps - 1, model.timesteps
    chosen = sorted({round(last * place / (points - 1)) for place in range(points)})
    model.timesteps = TimestepRule(model.num_timesteps)
    try:
        return {t: float(record_norms(model, dataset, count, multiplicity, timestep=t).median()) for t in chosen}
    finally:
        model.timesteps = rule


def equalizing_weights(medians: Mapping[int, float]) -> dict[str, list[float]]:
    """The table ``timestep_weights`` under which the given median norms become equal: their inverse, at least 1."""
    largest = max(medians.values())
    return {"steps": list(medians), "values": [float(f"{largest / norm:.3g}") for norm in medians.values()]}


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors on a device."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
