"""`SamplingRequest`: a sampling command whose arguments are read, checked without torch before anything is loaded.

Its parts are a `ModelSource` and a `SamplePlan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ldm.errors import UserError, nearest
from ldm.files import check_writable
from ldm.inference.options import SamplingOptions
from ldm.samples.shards import Shard
from ldm.shipped import find_shipped


@dataclass(frozen=True)
class ModelSource:
    """The files of a diffusion model, and how they are read.

    ``config`` and ``checkpoint``: YAML file and weights. ``ema``: averaged weights, if there are any. ``guide``:
    checkpoint of a weaker model of the same configuration, such as the public one, see `Autoguided`. ``settings``:
    ``key.path=value``, which override the configuration.
    """

    config: str | Path
    checkpoint: str | Path
    ema: bool = True
    guide: str | Path | None = None
    settings: Sequence[str] = ()


@dataclass(frozen=True)
class SamplePlan:
    """The images to draw: ``count`` in all, of ``classes`` class by class, or of ``prompts`` in turn, or neither.

    ``class_names``: stored with the labels; those that the configuration declares when None.
    Raises UserError for a count below 1.
    """

    count: int
    options: SamplingOptions
    classes: Sequence[int] | None = None
    prompts: Sequence[str] | None = None
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_count(self.count)


@dataclass(frozen=True)
class SamplingRequest:
    """Images of one model in one file.

    ``output``: a ``.pt`` file, or a ``.png`` with a grid of the images. ``config``, ``checkpoint``, ``ema``, ``guide``,
    ``settings``: see `ModelSource`. ``count``, ``options``, ``classes``, ``prompts``, ``class_names``: see
    `SamplePlan`. ``picture``: image file with a grid of the first hundred of a ``.pt``. ``device``: see
    `ldm.cli.pick_device`. ``columns``: images in a line of a ``.png``.
    """

    output: Path
    config: str | Path
    checkpoint: str | Path
    count: int
    options: SamplingOptions
    classes: Sequence[int] | None = None
    prompts: Sequence[str] | None = None
    picture: Path | None = None
    device: str | None = None
    ema: bool = True
    guide: str | Path | None = None
    columns: int = 10
    class_names: Sequence[str] | None = None
    settings: Sequence[str] = ()
    shard: Shard = field(default_factory=Shard.here)

    @property
    def source(self) -> ModelSource:
        """The model of the request."""
        return ModelSource(self.config, self.checkpoint, self.ema, self.guide, self.settings)

    @property
    def plan(self) -> SamplePlan:
        """The images of the request."""
        return SamplePlan(self.count, self.options, self.classes, self.prompts, self.class_names)

    def check(self) -> None:
        """Raise UserError for a mistake that can be seen without the model."""
        check_count(self.count)
        check_output(self.output)
        if self.picture is not None:
            check_output(self.picture, (".jpg", ".jpeg", ".png"))
        require_file(self.config, "config file", shipped=True)
        for weights in (self.checkpoint, self.guide):
            if weights is not None:
                require_file(weights, "checkpoint")
        check_grid(self.output, self.shard)
        if self.guide is not None and self.options.guidance == 1.0:
            raise UserError("--guide_with needs --guidance above 1, such as --guidance 1.5")
        if self.guide is not None and self.options.uncond_class is not None:
            raise UserError("--uc is for guidance without a second model; leave it or --guide_with out")

    def run(self) -> bool:
        """Draw and write the images; whether the output is complete (else other processes still draw their part)."""
        self.check()
        from ldm.inference.files import run_request

        return run_request(self)


def check_count(count: int) -> None:
    """Raise UserError for a number of images below 1."""
    if count < 1:
        raise UserError(f"{count} samples asked for; give the number of images, 1 or more")


def check_grid(output: Path, shard: Shard) -> None:
    """Raise UserError for a grid of images that several processes would draw."""
    if output.suffix == ".png" and not shard.whole:
        raise UserError(f"{output}: a grid is drawn by one process; name a .pt file, or use one process")


def check_output(path: str | Path, suffixes: Sequence[str] = (".pt", ".png")) -> Path:
    """Check before sampling that the result can be written. Raises UserError."""
    path = Path(path)
    if path.suffix not in suffixes:
        raise UserError(f"{path}: cannot tell what to write; end the name in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it, such as {path / 'samples.pt'}")
    check_writable(path.parent, f"{path}: folder")
    return path


def require_file(path: str | Path, kind: str, shipped: bool = False) -> None:
    """Raise UserError when there is nothing at ``path``, nor ``shipped`` with the package under that name."""
    path = Path(path)
    if path.exists() or (shipped and find_shipped(path) is not None):
        return
    folder = path.parent
    hint = nearest(path.name, (entry.name for entry in folder.iterdir())) if folder.is_dir() else "; no such folder"
    raise UserError(f"{kind} '{path}' does not exist{hint}")
