"""`SamplingOptions`: how images are sampled. The module imports no torch, so that a mistake is refused at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ldm.errors import UserError, nearest

#: The samplers by the names that flags, configurations and sample files use.
SAMPLERS = ("ddim", "plms", "dpm-solver++", "unipc")

DEFAULT_SAMPLER = "ddim"

#: Names of earlier versions.
OLD_SAMPLERS = {"dpm": "dpm-solver++"}
OLD_FIELDS = {"scale": "guidance"}

#: Steps without --steps: the fewest at which no score is worse than with 200 (results/sampling.md).
DEFAULT_STEPS = {"ddim": 15, "plms": 20, "dpm-solver++": 20, "unipc": 20}

#: Steps of the published commands, which `--lineage` takes.
LINEAGE_STEPS = 200

PRECISIONS = ("fp32", "bf16-decode", "bf16")


@dataclass(frozen=True)
class SamplingOptions:
    """Options of sampling. ``steps`` in [1, T] and ``eta`` in [0, 1]; None takes the sampler's default.

    ``guidance`` is the guidance scale (1 = none). ``uncond_class`` is the class that stands for "no condition" in
    guidance; None selects the model's null class, or the empty caption for text. ``sampler`` is one of `SAMPLERS`;
    only ddim can have an ``eta`` above 0, and has 1 by default. ``height`` and ``width`` are in pixels, None for those
    of the model. ``precision``: networks in float32, or the decoder, or both networks in bfloat16; the sampler's own
    arithmetic is always float32. ``compile``: compile the denoising network first.

    Raises UserError for values outside these ranges.
    """

    steps: int = None  # type: ignore[assignment]  # replaced in __post_init__
    eta: float = None  # type: ignore[assignment]  # replaced in __post_init__
    guidance: float = 1.0
    uncond_class: int | None = None
    batch_size: int = 500
    decoder_batch_size: int | None = None
    seed: int | None = None
    sampler: str = DEFAULT_SAMPLER
    height: int | None = None
    width: int | None = None
    precision: str = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampler", OLD_SAMPLERS.get(self.sampler, self.sampler))
        if self.sampler not in SAMPLERS:
            raise UserError(f"sampler: {self.sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}")
        if self.steps is None:
            object.__setattr__(self, "steps", DEFAULT_STEPS[self.sampler])
        if self.eta is None:
            object.__setattr__(self, "eta", 1.0 if self.sampler == "ddim" else 0.0)
        if not 0.0 <= self.eta <= 1.0:
            raise UserError(f"eta: {self.eta} is outside [0, 1]; 0 is deterministic, 1 adds ancestral noise")
        if self.sampler != "ddim" and self.eta != 0.0:
            raise UserError(f"eta: {self.eta} adds noise, which only DDIM can use; set eta to 0, or sample with DDIM")
        if not math.isfinite(self.guidance):
            raise UserError(f"guidance: {self.guidance} is no scale; 1 is none, and 1.5 to 5 are common")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision: {self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        for name in ("steps", "batch_size", "decoder_batch_size", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: {value} is below 1")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> SamplingOptions:
        """The options of a section of a configuration, also by `OLD_FIELDS`. Raises UserError for an unknown name."""
        known = [field.name for field in fields(cls)]
        given = {OLD_FIELDS.get(name, name): value for name, value in values.items()}
        for name in given:
            if name not in known:
                raise UserError(f"sampling: unknown option {name!r}{nearest(name, known)}")
        return cls(**given)
