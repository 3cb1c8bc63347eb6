"""The result of an evaluation: the content of evaluation.json, shared by its writer, pages, comparisons and tests."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from ldm.errors import UserError

FORMAT = "latent diffusion evaluation"
VERSION = 1

#: Reference levels of a score: guessing, real images in the samples' place, samples of the public model.
CHANCE, REAL, PUBLIC = "chance", "real", "public"


@dataclass(frozen=True)
class ImageSet:
    """Images that were measured: their source, their number, "HxW" pixels, and the count of each class by name."""

    source: str
    count: int
    size: str
    classes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class GeneratedSet(ImageSet):
    """Samples, and the metadata of their file on how they were drawn."""

    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SubsetSizes:
    """Numbers of images in the scores of pairs: at most `limit` of each set, chosen by `seed`."""

    limit: int
    seed: int
    samples: int
    real: int


@dataclass(frozen=True)
class MeasuringProtocol:
    """The settings of every score. `forced` names a difference of the two sets that was overridden, else ""."""

    suite: str
    policy: str
    extractor: str
    weights: str
    resize: str
    quantize: bool
    size: str
    subset: SubsetSizes
    forced: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreRow:
    """One score: its label, the better direction ("lower" or "higher"), its standard deviation over repetitions, a
    note on the images that were measured, and the values at the known levels (CHANCE, REAL, PUBLIC)."""

    value: float
    label: str
    better: str
    deviation: float | None = None
    note: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassRow:
    """Fréchet distance between the samples and the real images of one class, and the numbers of both."""

    label: int
    name: str
    frechet: float
    samples: int
    real: int


@dataclass(frozen=True)
class EpochRow:
    """One epoch of a classifier; accuracies 0 to 1, losses in nats, None for an epoch without a score."""

    loss: float
    validation_accuracy: float | None = None
    validation_loss: float | None = None
    average_accuracy: float | None = None
    average_loss: float | None = None


@dataclass(frozen=True)
class TrainingRow:
    """One trained classifier: accuracy of the chosen epoch on real images, and the curve over epochs."""

    best_epoch: int
    epochs: int
    curve: tuple[EpochRow, ...] = ()
    model: str = ""
    accuracy: float | None = None
    validation_accuracy: float | None = None
    seed: int = 0
    protocol: str = ""
    selection: str = ""
    uses_test_for_selection: bool = False
    average_accuracy: float | None = None
    average_epoch: int | None = None


@dataclass(frozen=True)
class DownstreamRow:
    """One classifier over its seeds: mean and sample deviation of the accuracy on real images, 0 to 1."""

    name: str
    model: str
    mean: float
    deviation: float
    results: tuple[TrainingRow, ...]
    note: str
    protocol: str = ""
    selection: str = ""
    uses_test_for_selection: bool = False
    levels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Downstream:
    """Classifiers trained on the samples: the real test images, the protocol, and one row per classifier.

    test_from_training_files: the real images were cut from the files of a data set's training part.
    """

    test: str
    test_count: int
    protocol: str
    settings: Mapping[str, Any]
    results: tuple[DownstreamRow, ...]
    test_from_training_files: bool = False


@dataclass(frozen=True)
class Steps:
    """Private steps of a run."""

    taken: int
    planned: int


@dataclass(frozen=True)
class PrivacySummary:
    """The figures of a privacy card: epsilon by accountant (a number, or "infinite"), and (step, epsilon) points."""

    statement: str
    private: bool
    epsilon: Mapping[str, float | str]
    delta: float
    relation: str
    record: str
    rng: str
    steps: Steps
    covered: tuple[str, ...]
    not_covered: tuple[str, ...]
    public_data: tuple[str, ...]
    plan: Mapping[str, Any]
    trained_coordinates: int
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def tightest(self) -> tuple[str, float | str]:
        """The first accountant of the card, which is its tightest, and its epsilon."""
        return next(iter(self.epsilon.items()), ("none", "infinite"))


@dataclass(frozen=True)
class EvaluationResult:
    """Everything of one evaluation but its images; `docs/evaluation.md` describes the file.

    levels: the image sets of the levels REAL and PUBLIC. not_measured: the reason for a missing metric, by its name.
    from_real_images: fields whose numbers were computed from real images.
    """

    title: str
    created: str
    samples: GeneratedSet
    real: ImageSet
    protocol: MeasuringProtocol
    scores: Mapping[str, ScoreRow] = field(default_factory=dict)
    per_class: tuple[ClassRow, ...] = ()
    downstream: Downstream | None = None
    privacy: PrivacySummary | None = None
    memorisation: Mapping[str, Mapping[str, Any]] | None = None
    not_measured: Mapping[str, str] = field(default_factory=dict)
    from_real_images: tuple[str, ...] = ("scores", "per_class", "downstream", "memorisation")
    levels: Mapping[str, ImageSet] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the format's name and version."""
        return {"format": FORMAT, "version": VERSION, **_with_file_names(asdict(self))}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str = "evaluation") -> EvaluationResult:
        """A result from the dict of `to_dict`, also with earlier names of keys. Raises UserError naming `where`."""
        if content.get("format") != FORMAT:
            raise UserError(f"{where}: not an evaluation; scripts/evaluate.py writes evaluation.json")
        if content.get("version") != VERSION:
            raise UserError(f"{where}: evaluation of version {content.get('version')!r}, this program reads {VERSION}")
        return build(cls, _with_field_names(content), where)


def _with_file_names(value: Any) -> Any:
    """Write `honest`, the file's key, which is the opposite of the code's `uses_test_for_selection`."""
    if isinstance(value, Mapping):
        named = {key: _with_file_names(entry) for key, entry in value.items()}
        if "uses_test_for_selection" in named:
            return {
                **{key: entry for key, entry in named.items() if key != "uses_test_for_selection"},
                "honest": not named["uses_test_for_selection"],
            }
        return named
    return [_with_file_names(entry) for entry in value] if isinstance(value, list | tuple) else value


def _with_field_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_with_file_names`; also renames the key `from_real_images` of earlier versions."""

    def renamed(value: Any) -> Any:
        if isinstance(value, Mapping):
            named = {key: renamed(entry) for key, entry in value.items()}
            if "honest" in named:
                named["uses_test_for_selection"] = not named.pop("honest")
            return named
        return [renamed(entry) for entry in value] if isinstance(value, list | tuple) else value

    result = dict(content)
    if "from_real_pictures" in result:
        result["from_real_images"] = result.pop("from_real_pictures")
    if result.get("downstream"):
        downstream = result["downstream"]
        result["downstream"] = {**downstream, "results": renamed(downstream.get("results", ()))}
    return result


def build(kind: Any, value: Any, where: str) -> Any:
    """A value of the type `kind` (dataclasses, tuples and mappings of them) from plain values; other keys are left
    out. Raises UserError that names the missing key."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        found = [choice for choice in inner if is_dataclass(choice) or get_origin(choice)]
        return build(found[0], value, where) if found else value
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: {value!r} stands where an object with keys belongs")
        hints, given = get_type_hints(kind), {}
        for entry in fields(kind):
            if entry.name in value:
                given[entry.name] = build(hints[entry.name], value[entry.name], f"{where}, {entry.name}")
            elif entry.default is MISSING and entry.default_factory is MISSING:
                raise UserError(f"{where}: has no {entry.name}")
        return kind(**given)
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(build(one, entry, where) for one, entry in zip(kinds, value, strict=True))
    if origin is Mapping and is_dataclass(inner[1]):
        return {key: build(inner[1], entry, f"{where}, {key}") for key, entry in value.items()}
    return value
