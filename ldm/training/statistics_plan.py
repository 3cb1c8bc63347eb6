"""`StatisticsPlan`: the public constants of ``dp_config.warm_up``, read and checked before any record is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ldm.errors import UserError, nearest
from ldm.models.diffusion.warm_up import FurtherTraining
from ldm.privacy.event import History
from ldm.privacy.statistics import ClassMixture, ClassMoments, Frame, cell_groups, leading_cells
from ldm.privacy.statistics.query import event_of
from ldm.privacy.validate import number, whole
from ldm.training.private_classifier import KEYS as CLASSIFIER_KEYS
from ldm.training.private_classifier import ClassifierPlan

OWN_KEYS = ("frame", "clip_norm", "classes", "rounds", "spread", "training", "classifier")
TRAINING_KEYS = tuple(entry.name for entry in fields(FurtherTraining))


@dataclass(frozen=True)
class MomentRound:
    """Public constants of one query of class moments.

    They are its noise multiplier, the number of cells per class, and the weights of count, mean and second moment.
    ``centred``: the moments are those of the differences from the cells' centres. ``clip_norm``: bound on the norm of
    what is summed; None for that of the section, or, if ``centred``, for the median distance of draws from the centres.
    ``leading``: the number of leading principal directions of each class in which cells and moments are taken; None
    for all directions of the frame. ``refine``: the cells are those of the round before, around the means that it
    released; otherwise they come from k-means on draws of the rounds before. ``groups``: the number of groups of cells
    a class whose second moments are released; None for those of each class, or of each cell.
    """

    noise_multiplier: float
    cells: int = 1
    second_by_cell: bool = False
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    centred: bool = False
    clip_norm: float | None = None
    leading: int | None = None
    refine: bool = False
    groups: int | None = None

    def __post_init__(self) -> None:
        number("warm_up.rounds noise_multiplier", self.noise_multiplier, above=0)
        whole("warm_up.rounds cells", self.cells)
        if self.leading is not None:
            whole("warm_up.rounds leading", self.leading)
            if not (self.centred and self.second_by_cell and self.weights[1] and self.weights[2]):
                raise UserError(
                    "warm_up.rounds leading: needs means and spread of cells around their centres; set centred and "
                    "second_by_cell to true and give three weights above 0"
                )
        if self.groups is not None:
            whole("warm_up.rounds groups", self.groups)
            if not (self.centred and self.weights[1] and self.weights[2]) or self.second_by_cell:
                raise UserError(
                    "warm_up.rounds groups: needs means and spread around centres; set centred to true, leave out "
                    "second_by_cell, and give three weights above 0"
                )
            if self.groups > self.cells:
                raise UserError(f"warm_up.rounds groups: {self.groups} groups of {self.cells} cells; give at most that")
        if self.refine and (not self.centred or not self.weights[1] or self.leading is not None):
            raise UserError(
                "warm_up.rounds refine: needs mean differences from the centres before; set centred to true, give a "
                "second weight above 0, and leave out leading"
            )
        if self.clip_norm is not None:
            number("warm_up.rounds clip_norm", self.clip_norm, above=0)

    @property
    def knows_spread(self) -> bool:
        """Whether the spread of the classes is known after this round, given that the rounds before it are in order."""
        return bool(self.weights[2]) or (self.centred and self.cells > 1)


@dataclass(frozen=True)
class StatisticsPlan:
    """The public constants of ``dp_config.warm_up``.

    ``frame``: file with the public directions (`save_frame`). ``clip_norm``: bound R on the norm of coordinates in the
    frame. ``rounds``: sequence of class-moment queries; from the second round on, the cells come from the previous
    releases. ``spread``: see `fit_mixture`. ``training``: ordinary steps on generated latents; 0 steps leave the model
    unchanged. ``classifier``: a private classifier that can label samples.
    """

    frame: str
    clip_norm: float
    classes: int
    rounds: tuple[MomentRound, ...]
    spread: bool
    training: FurtherTraining
    classifier: ClassifierPlan | None = None

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> StatisticsPlan:
        """Read ``dp_config.warm_up``. Raises UserError naming the key that is unknown, missing or out of range."""
        check_keys("dp_config.warm_up", config, OWN_KEYS)
        for key in ("frame", "clip_norm", "classes", "rounds"):
            if config.get(key) is None:
                raise UserError(f"dp_config.warm_up.{key} is missing")
        rounds = []
        for entry in config["rounds"]:
            check_keys("dp_config.warm_up.rounds", entry, [field.name for field in fields(MomentRound)])
            if entry.get("noise_multiplier") is None:
                raise UserError("dp_config.warm_up.rounds: every round needs its noise_multiplier")
            given = dict(entry)
            given["noise_multiplier"] = float(given["noise_multiplier"])
            if "weights" in given:
                given["weights"] = tuple(float(weight) for weight in given["weights"])
            if given.get("clip_norm") is not None:
                given["clip_norm"] = float(given["clip_norm"])
            rounds.append(MomentRound(**given))
        _check_order(rounds)
        training = dict(config.get("training") or {})
        check_keys("dp_config.warm_up.training", training, TRAINING_KEYS)
        for key in ("learning_rate", "ema_power", "weight_limit"):
            if key in training:
                training[key] = float(training[key])
        number("dp_config.warm_up.clip_norm", float(config["clip_norm"]), above=0)
        whole("dp_config.warm_up.classes", config["classes"])
        return cls(
            str(config["frame"]),
            float(config["clip_norm"]),
            config["classes"],
            tuple(rounds),
            bool(config.get("spread", True)),
            FurtherTraining(**{"steps": 0, **training}),
            _classifier(config.get("classifier")),
        )

    def events(self, relation: str) -> History:
        """The ledger's charges for all rounds and the classifier, known before any record is read."""
        rounds: History = [(event_of(round.noise_multiplier, relation), 1) for round in self.rounds]
        return rounds if self.classifier is None else [*rounds, *self.classifier.history(relation)]

    @property
    def count(self) -> int:
        """Number of releases."""
        return len(self.rounds) + (self.classifier is not None)

    def query(self, index: int, frame: Frame, before: ClassMixture | None) -> ClassMoments:
        """The query of round ``index``; its cells are centred on the mixture of the previous rounds."""
        entry = self.rounds[index]
        anchors, norm = None, self.clip_norm if entry.clip_norm is None else entry.clip_norm
        basis = None
        if before is not None and (entry.cells > 1 or entry.centred):
            if entry.refine:
                anchors = before.means
            elif entry.leading is None:
                anchors = before.centres(entry.cells)
            else:
                if entry.leading > frame.rank:
                    raise UserError(
                        f"warm_up.rounds leading: {entry.leading}, and the frame has {frame.rank} directions"
                    )
                anchors, basis = leading_cells(before, entry.cells, entry.leading)
            if entry.centred and entry.clip_norm is None:
                # 0 when the noise has hidden every spread: a run that has spent budget must not stop because of it
                norm = before.radius(anchors, basis) or self.clip_norm
        groups = None if entry.groups is None or anchors is None else cell_groups(anchors, entry.groups)
        return ClassMoments(
            frame, self.classes, norm, entry.weights, anchors, entry.second_by_cell, entry.centred, basis, groups
        )


def charges_before(warm_up: Mapping[str, Any] | None, relation: str) -> History:
    """The ledger's charges for ``dp_config.warm_up``, which precede the first step; none without that section."""
    return StatisticsPlan.read(warm_up).events(relation) if warm_up else ()


def _check_order(rounds: Sequence[MomentRound]) -> None:
    """Raise UserError for a round that needs more than the rounds before it release."""
    where = "dp_config.warm_up.rounds"
    if not rounds:
        raise UserError(f"{where} is empty; a warm-up needs one query at least")
    if rounds[0].cells != 1:
        raise UserError(f"{where}: the first has one cell a class, nothing is known to split by")
    if rounds[0].refine:
        raise UserError(f"{where}: the first has no cells to refine; set refine in the round after the one with cells")
    if rounds[0].centred:
        raise UserError(f"{where}: the first has no centre; release means in it, and set centred in the second")
    for place, (before, entry) in enumerate(itertools.pairwise(rounds), start=2):
        if entry.refine and entry.cells != before.cells:
            raise UserError(
                f"{where}: number {place} refines {entry.cells} cells, and number {place - 1} has {before.cells}; give "
                "both the same number"
            )
        if before.knows_spread:
            continue
        if entry.cells > 1 or entry.leading is not None:
            raise UserError(
                f"{where}: number {place} splits classes whose spread number {place - 1} did not release; give that "
                "one a third weight above 0"
            )
        if entry.centred and entry.clip_norm is None:
            raise UserError(
                f"{where}: number {place} is centred, and number {place - 1} released no spread to take its clip_norm "
                "from; set a clip_norm, such as the one that scripts/public_frame.py prints"
            )


def _classifier(config: Any) -> ClassifierPlan | None:
    if config is None:
        return None
    check_keys("dp_config.warm_up.classifier", config, CLASSIFIER_KEYS)
    return ClassifierPlan.read(config)


def check_keys(where: str, config: Any, known: Any) -> None:
    """Raise UserError unless ``config`` is a mapping with keys of ``known`` only."""
    if not isinstance(config, Mapping):
        raise UserError(f"{where}: expected keys and values, found {config!r}")
    for key in config:
        if key not in known:
            raise UserError(f"{where}.{key} is unknown{nearest(str(key), known)}")
