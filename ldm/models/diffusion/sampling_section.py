"""`SamplingSection`: the public section ``sampling`` of a YAML file, which says what images of the model are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldm.errors import UserError, nearest

#: Samples of the diffusion model, or draws of the released class statistics, decoded.
MODEL, DRAWS = "model", "draws"
SOURCES = (MODEL, DRAWS)


@dataclass(frozen=True)
class SamplingSection:
    """The section ``sampling``. It is a public declaration: it goes into the release. Raises UserError for a typo."""

    #: What `dp-ldm sample` takes: model (the diffusion model) or draws (of the class statistics that a run releases).
    source: str = MODEL

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            known = f"; choose one of {', '.join(SOURCES)}"
            raise UserError(f"sampling.source: {self.source!r} is unknown{nearest(self.source, SOURCES) or known}")

    @property
    def draws(self) -> bool:
        """Whether images are draws of the released statistics."""
        return self.source == DRAWS

    @classmethod
    def read(cls, section: Any) -> SamplingSection:
        """The section as plain values, or None for the defaults. Raises UserError naming the wrong key."""
        if section is not None and not isinstance(section, Mapping):
            raise UserError(f"sampling: {section!r} is no section; write sampling.source below it, such as draws")
        from ldm.config import read_options  # late: a command that lists its flags needs the names alone

        given = {str(key): value for key, value in (section or {}).items() if value is not None}
        return read_options(cls, given, "sampling")

    def check(self, dp_config: Mapping[str, Any]) -> None:
        """Raise UserError for draws from a run whose ``dp_config`` releases no class statistics."""
        if self.draws and not dp_config.get("warm_up"):
            raise UserError(
                "sampling.source: draws are those of the class statistics that dp_config.warm_up releases, and this "
                "run has none; write sampling.source: model, or leave the section out"
            )
