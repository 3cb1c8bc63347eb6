"""`ModelFiles`: the files of a trained model in a release folder or a run directory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.cli import typed
from ldm.config import load_config, to_plain, value_at
from ldm.errors import UserError, nearest
from ldm.inference.class_names import declared_class_names
from ldm.reports.release_folder import ReleaseFolder
from ldm.training.run_directory import RunDirectory

_LONGEST_LABEL = 10  # digits; a label with more is no class of any model


@dataclass(frozen=True)
class ModelFiles:
    """Configuration and weights of a trained model, and the public names of its classes if declared.

    ``draws``: file of the statistics that the run released, to draw from (`LatentDraws`), if there is one.
    """

    config: Path
    weights: Path
    class_names: tuple[str, ...] = ()
    draws: Path | None = None

    @classmethod
    def find(cls, place: Path) -> ModelFiles:
        """The files in a release folder (``dp-ldm release``) or a run directory (``dp-ldm train``).

        Raises UserError for another folder.
        """
        if not place.is_dir():
            raise UserError(f"{place}: no such folder; name a release folder or a run directory, such as logs/RUN")
        release, run = ReleaseFolder(place), RunDirectory(place)
        if release.config.is_file() and release.facts.is_file():
            names = release.read_facts().class_names
            return cls(*release.require_model(), names, _if_there(release.draws))
        configs = sorted(run.configs.glob("*-project.yaml"))
        if not configs:
            raise UserError(f"{place}: is neither a release folder nor a run directory (no configs/*-project.yaml)")
        if not run.last_checkpoint.is_file():
            raise UserError(f"{place}: has no checkpoints/last.ckpt; go on with dp-ldm train --resume {typed(place)}")
        return cls(configs[-1], run.last_checkpoint, run_class_names(place), _if_there(run.draws))

    def check_settings(self, settings: Sequence[str]) -> None:
        """Raise UserError for ``key.path=value`` settings that the configuration cannot have."""
        if settings:
            from ldm.training.model_check import check_parts
            from ldm.training.settings import check_settings  # sampling alone needs no trainer

            own = {*load_config([self.config]), "sampling"}
            lost = [entry for entry in settings if re.split("[.=]", entry, maxsplit=1)[0] not in own]
            if lost:
                raise UserError(f"{lost[0]}: has no effect, because {self.config} has no such section; leave it out")
            config = load_config([self.config], settings)
            check_settings(config, settings)
            params = value_at(to_plain(config.get("model", {})), "params")
            if isinstance(params, Mapping):
                check_parts(params)

    def default_classes(self) -> list[int] | None:
        """The classes to sample by default: all declared ones, else all of the model but the null class.

        None for a model without classes.
        """
        if self.class_names:
            return list(range(len(self.class_names)))
        params = value_at(
            to_plain(load_config([self.config]).get("model", {})), "params", "cond_stage_config", "params"
        )
        count = params.get("n_classes") if isinstance(params, Mapping) else None
        if not isinstance(count, int) or not isinstance(params, Mapping):
            return None
        return list(range(count - 1 if params.get("ucg_rate") else count))

    def labels(self, words: Sequence[str]) -> list[int]:
        """The labels of classes given by number or by name. Raises UserError for an unknown class."""
        return [self._label(word) for word in words]

    def _label(self, word: str) -> int:
        if word in self.class_names:
            return self.class_names.index(word)
        if word.isdecimal() and len(word) < _LONGEST_LABEL:
            return int(word)
        known = f"; its classes are {', '.join(self.class_names)}" if self.class_names else "; give numbers: 0 1 2"
        raise UserError(f"--classes {word}: no such class{nearest(word, self.class_names) or known}")


def run_class_names(run: Path) -> tuple[str, ...]:
    """The names that the configuration of a run directory declares; none without a configuration."""
    configs = sorted(RunDirectory(run).configs.glob("*-project.yaml"))
    return declared_class_names(configs[-1]) if configs else ()


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None
