"""`SampleSource`: whether images are samples of the diffusion model or draws of the released statistics, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.cli import typed
from ldm.config import load_config, to_plain
from ldm.errors import UserError
from ldm.models.diffusion.sampling_section import DRAWS, MODEL, SamplingSection
from ldm.reports.model_files import ModelFiles
from ldm.reports.release_folder import ReleaseFolder


@dataclass(frozen=True)
class SampleSource:
    """The source of images, `DRAWS` or `MODEL`; ``line`` gives the user the reason, and is "" without a choice."""

    source: str
    line: str = ""

    @property
    def draws(self) -> bool:
        """Whether images are decoded draws of the released statistics."""
        return self.source == DRAWS

    @classmethod
    def choose(
        cls,
        files: ModelFiles,
        asked: str | None = None,
        of_the_model: str | None = None,
        settings: Sequence[str] = (),
    ) -> SampleSource:
        """The source that the user ``asked`` for, else that of a sampler's flag, else the one that is declared.

        ``of_the_model``: a flag that makes sense for the diffusion model alone. Raises UserError for draws of a model
        without statistics, and for draws beside such a flag.
        """
        declared = declared_source(files.config, settings)
        if asked == DRAWS and of_the_model:
            raise UserError(
                f"{of_the_model}: is about the diffusion model, and drawing from the released statistics takes no "
                "diffusion step; give MODEL without it, or type --source model"
            )
        if asked is None and of_the_model is None and declared == DRAWS and files.draws is None:
            raise UserError(
                f"{files.config}: declares sampling.source: draws, but draws.safetensors is missing; ask the curator "
                "for a whole release, or type --source model"
            )
        if asked == DRAWS and files.draws is None:
            raise UserError(
                "--source draws: this model has no draws.safetensors; a run of dp-ldm new with class moments writes "
                "one, and its release folder holds it"
            )
        if files.draws is None:
            return cls(MODEL)
        if asked is not None:
            return cls(asked, _line(asked, "you asked for it"))
        if of_the_model is not None:
            return cls(MODEL, _line(MODEL, f"{of_the_model} applies to it alone"))
        why = (
            f"its configuration declares sampling.source: {DRAWS}"
            if declared == DRAWS
            else "its configuration declares no other"
        )
        return cls(declared, _line(declared, why))


def declared_source(config: str | Path, settings: Sequence[str] = ()) -> str:
    """The ``sampling.source`` of a configuration with ``key.path=value`` settings. Raises UserError."""
    return SamplingSection.read(to_plain(load_config([config], settings).get("sampling"))).source


def line_of_weights(config: str | Path, settings: Sequence[str] = ()) -> str:
    """The line for a configuration and a checkpoint alone; "" where the configuration declares nothing else."""
    if declared_source(config, settings) != DRAWS:
        return ""
    return (
        "source      the diffusion model, because a checkpoint alone was named; its configuration declares draws, "
        "which the release folder has: dp-ldm sample FOLDER"
    )


def how_to_sample(place: Path) -> str:
    """The command that samples a run directory or a release folder, and its source if there is a choice."""
    command = f"dp-ldm sample {typed(place)} --output samples.png"
    if not ReleaseFolder(place).draws.is_file():
        return command
    if SampleSource.choose(ModelFiles.find(place)).draws:
        return f"{command}  # draws of the released statistics; --source {MODEL}: of the diffusion model"
    return f"{command}  # of the diffusion model; --source {DRAWS}: draws of the released statistics"


def _line(source: str, why: str) -> str:
    if source == DRAWS:
        return f"source      draws of the released statistics, because {why}; the diffusion model: --source {MODEL}"
    return f"source      the diffusion model, because {why}; draws of the released statistics: --source {DRAWS}"
