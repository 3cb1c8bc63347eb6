"""`BenchmarkConfig`: the content of a benchmark file under ``configs/benchmark``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ldm.config import load_config, to_plain
from ldm.errors import UserError, nearest
from ldm.evaluation.classifiers.networks import classifier_name
from ldm.evaluation.classifiers.protocols import ClassifierProtocol, protocol_named
from ldm.inference import SamplingOptions
from ldm.shipped import find_shipped

KEYS = (
    "title",
    "run",
    "files",
    "test",
    "rehearsal",
    "classes",
    "samples",
    "sampling",
    "classifier",
    "budgets",
    "statistics_only",
    "direct",
    "linear",
    "quick",
)


@dataclass(frozen=True)
class DirectTraining:
    """The baseline that trains a classifier with DP-SGD: the network by name, and its public constants."""

    classifier: str = "cnn"
    batch_size: int = 4096
    steps: int = 300
    learning_rate: float = 2e-3
    max_grad_norm: float = 0.5
    max_batch_size: int = 256


@dataclass(frozen=True)
class BenchmarkConfig:
    """One data set: the private run, its budgets, and the settings of sampling and scoring.

    ``run``: configuration file of the private run, for ``main.py``; ``budgets``: epsilon to the settings that override
    it. ``test``: node of the real test set. ``rehearsal``: nodes ``train`` and ``test`` of the data sets that replace
    the private set and the test set while settings are chosen. ``statistics_only``: a ``dp_config.warm_up`` section
    whose rounds divide the whole budget by their ``share``, with ``budgets`` as above. ``quick``: settings that
    override this file to run the whole chain in minutes. ``linear``: settings of the linear classifier trained
    directly, with ``budgets``.
    ``classifiers``: names of the classifiers of a row (``classifier.name``, or ``classifier.names`` for several).
    ``files``: files that must exist before anything is run, such as a public model, each with how to get it.
    """

    path: Path
    title: str
    run: Path
    test: Mapping[str, Any]
    classes: int
    samples: int
    sampling: SamplingOptions
    classifiers: tuple[str, ...]
    protocol: ClassifierProtocol
    budgets: Mapping[str, Mapping[str, Any]]
    rehearsal: Mapping[str, Any] = field(default_factory=dict)
    statistics_only: Mapping[str, Any] = field(default_factory=dict)
    direct: DirectTraining = field(default_factory=DirectTraining)
    linear: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path, quick: bool = False) -> BenchmarkConfig:
        """Read a benchmark file. Raises UserError naming the unknown or missing key."""
        path = Path(path)
        raw = to_plain(load_config([path]))
        if quick:
            raw = to_plain(OmegaConf.merge(OmegaConf.create(raw), OmegaConf.create(raw.get("quick") or {})))
        for key in raw:
            if key not in KEYS:
                raise UserError(f"{path}: unknown key {key!r}{nearest(str(key), KEYS)}")
        for key in ("title", "run", "test", "budgets"):
            if not raw.get(key):
                raise UserError(f"{path}: {key} is missing")
        scoring = dict(raw.get("classifier") or {})
        protocol = protocol_named(scoring.pop("protocol", "dpdm"))
        name = str(scoring.pop("name", "cnn"))
        names = tuple(classifier_name(str(each)) for each in scoring.pop("names", [name]))
        return cls(
            path=path,
            title=str(raw["title"]),
            run=(path.parent / str(raw["run"])).resolve(),
            test=raw["test"],
            classes=int(raw.get("classes", 10)),
            samples=int(raw.get("samples", 60_000)),
            sampling=SamplingOptions.read(raw.get("sampling") or {}),
            classifiers=names,
            protocol=protocol.changed(**scoring),
            budgets={str(key): value or {} for key, value in raw["budgets"].items()},
            rehearsal=raw.get("rehearsal") or {},
            statistics_only=raw.get("statistics_only") or {},
            direct=DirectTraining(**(raw.get("direct") or {})),
            linear=raw.get("linear") or {},
            files={str(file): str(how) for file, how in (raw.get("files") or {}).items()},
        )

    def stand_in(self, which: str) -> Mapping[str, Any]:
        """The node ``train`` or ``test`` of the rehearsal. Raises UserError for a file without a rehearsal."""
        if which not in self.rehearsal:
            raise UserError(
                f"{self.path}: no rehearsal.{which}; this benchmark has no other set in the private one's place"
            )
        return self.rehearsal[which]

    def budget(self, epsilon: str) -> Mapping[str, Any]:
        """The settings that override the run for an epsilon. Raises UserError listing the known epsilons."""
        if epsilon not in self.budgets:
            raise UserError(f"{self.path}: no budget for epsilon {epsilon}; there is {', '.join(self.budgets)}")
        return self.budgets[epsilon]


def require_files(config: BenchmarkConfig) -> None:
    """Raise UserError for the first file of the section ``files`` that does not exist, with how to get it."""
    for name, how in config.files.items():
        if not Path(name).is_file() and find_shipped(name) is None:
            raise UserError(f"{config.path}: {name} is missing; {how}")


def statistics_section(config: BenchmarkConfig, epsilon: str) -> dict[str, Any]:
    """The ``statistics_only`` section for an epsilon: the common settings, overridden by those of ``budgets``."""
    section = dict(config.statistics_only)
    budgets = section.pop("budgets", {})
    if epsilon not in budgets:
        raise UserError(f"{config.path}: statistics_only has no budget for epsilon {epsilon}; {', '.join(budgets)}")
    return to_plain(OmegaConf.merge(OmegaConf.create(section), OmegaConf.create(budgets[epsilon] or {})))


def delta_for(records: int) -> float:
    """delta = 1 / (N ln N), as in DPImageBench."""
    return 1 / (records * math.log(records))
