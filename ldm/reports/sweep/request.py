"""`SweepRequest`: the arguments of a sweep, and the file from which a stopped sweep resumes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from ldm.cli import typed
from ldm.config import load_config
from ldm.errors import UserError
from ldm.files import read_json, write_json
from ldm.reports.budget import PlannedRun
from ldm.reports.sweep.grid import Setting
from ldm.reports.sweep.result import RESULT
from ldm.training.learning_rate import base_learning_rate

logger = logging.getLogger(__name__)

FORMAT = "dp-ldm sweep request"
VERSION = 1
REQUEST = "request.json"
LARGEST = 2**20  # bytes of it
PUBLIC, COMPOSITION, SELECTION = "public", "composition", "selection"
HERE = ("out", "device", "progress")  # of the process, and not of the sweep


@dataclass(frozen=True)
class SweepRequest:
    """The settings to try, and the images to try them on.

    ``base``: configuration of the private run, ``settings``: overrides of all runs. ``public``: a data set class or a
    folder in the private one's place, or "" to train on the private images; ``charge`` then names how runs are charged.
    ``held_out``: public images that score the runs; "" for a part of ``public``. ``out``: a new folder.
    """

    base: Path
    grid: tuple[Setting, ...]
    out: Path
    settings: tuple[str, ...] = ()
    public: str = ""
    public_args: tuple[str, ...] = ()
    charge: str = ""
    held_out: str = ""
    held_out_args: tuple[str, ...] = ()
    expected_runs: float = 0.0
    eta: float = 1.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Callable[[str], None] = logger.info

    def check(self) -> None:
        """Raise UserError for a request that is not covered, a configuration that is not private, or an unknown key."""
        if bool(self.public) == bool(self.charge):
            raise UserError(
                "say which images to try on: --public CLASS|FOLDER (free), or the private ones with --charge "
                "composition (every run counts) or --charge selection (the best of a random number of runs)"
            )
        if self.charge == SELECTION and not self.held_out:
            raise UserError("--charge selection needs public images to choose by: --held-out CLASS|FOLDER")
        for setting in self.grid:  # a later run that is refused would come after earlier ones were charged
            base_learning_rate(PlannedRun.read(self.base, [*self.settings, *setting]).config)

    def check_new(self) -> None:
        """Raise UserError when the folder is there, naming the command that goes on with a stopped sweep."""
        if (self.out / REQUEST).is_file() and not (self.out / RESULT).is_file():
            raise UserError(f"{self.out} holds a sweep that was stopped; type dp-ldm sweep --resume {typed(self.out)}")
        if self.out.exists():
            raise UserError(f"{self.out} exists; name a new folder with --output")

    def write(self, overrides: Sequence[Sequence[str]] = ()) -> None:
        """Write ``request.json``. ``overrides``: further settings of each run, which name the runs that it charges."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in HERE}
        content: dict[str, Any] = {"format": FORMAT, "version": VERSION, **given, "base": str(self.base.resolve())}
        content["config_sha256"] = _digest(self.base)
        content["overrides"] = [list(words) for words in overrides]
        write_json(self.out / REQUEST, content)

    @classmethod
    def read(
        cls, out: Path, device: torch.device, progress: Callable[[str], None]
    ) -> tuple[SweepRequest, list[list[str]]]:
        """The request of a stopped sweep, and the further settings of each of its runs.

        Raises UserError for a folder without one, a finished sweep, and a configuration that has changed since: the
        runs were charged for the old one.
        """
        if not (out / REQUEST).is_file():
            raise UserError(f"{out}: holds no {REQUEST}; name the folder of a sweep that was stopped")
        if (out / RESULT).is_file():
            raise UserError(f"{out}: this sweep is finished; its table is in {out / RESULT}")
        content = read_json(out / REQUEST, LARGEST)
        if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
            raise UserError(f"{out / REQUEST}: is not the file of a sweep of this version; start a new sweep")
        base = Path(content["base"])
        if _digest(base) != content["config_sha256"]:
            raise UserError(f"{base} has changed since {out} was started; undo the change, or start a new sweep")
        names = {entry.name for entry in fields(cls)} - {*HERE, "base", "grid"}
        given: dict[str, Any] = {
            name: tuple(content[name]) if isinstance(content[name], list) else content[name] for name in names
        }
        grid = tuple(tuple(setting) for setting in content["grid"])
        return cls(base=base, grid=grid, out=out, device=device, progress=progress, **given), content["overrides"]


def _digest(base: Path) -> str:
    text = json.dumps(OmegaConf.to_container(load_config([base]), resolve=False), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
