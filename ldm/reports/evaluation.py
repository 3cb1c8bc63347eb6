"""A whole evaluation of a sample file: every metric that applies, one JSON file and one page that stands alone."""

from __future__ import annotations

import csv
import datetime
import json
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation.classifiers.downstream import downstream_accuracy
from ldm.evaluation.classifiers.networks import DISPLAY_NAMES, classifier_name
from ldm.evaluation.classifiers.protocols import HELD_OUT, ClassifierProtocol, protocol_named
from ldm.evaluation.features import make_extractor
from ldm.evaluation.inputs.image_source import Batches, ImageSource, open_images
from ldm.evaluation.inputs.sources import load_labelled
from ldm.evaluation.metrics.statistics import mismatch
from ldm.evaluation.metrics.suite import Measurement, MeasureOptions, Suite, get_suite, measure
from ldm.evaluation.metrics.summary import SetSummary, SummaryOptions, summarise
from ldm.evaluation.page.evaluation import SHOWN_CLASSES, ImageRows, evaluation_page
from ldm.evaluation.page.html import sheet
from ldm.files import check_writable, write_atomic
from ldm.privacy.card import ReleaseCard
from ldm.reports.memorisation import near_copies_of, read_membership
from ldm.samples import SampleSet

logger = logging.getLogger(__name__)

FORMAT = "latent diffusion evaluation"
VERSION = 1
JSON_NAME, PAGE_NAME, SHEET_NAME = "evaluation.json", "report.html", "samples.png"
#: Images of each class, and of a set without labels, that a page shows.
SHOWN, SHOWN_UNLABELLED = 10, 60


@dataclass(frozen=True)
class EvaluationRequest:
    """What a person asks for.

    samples, real, test: a sample file, a folder, or a dotted dataset class with its `key:value` words. test: real
    images that no training saw; they score the classifiers and stand beside the samples when copies are looked for.
    show_real puts real images on the page. privacy: a privacy card, or a run directory that has one.
    memorisation: look for copies and show these files of scripts/membership.py; None for neither.
    """

    samples: str
    real: str
    real_args: Sequence[str] = ()
    suite: str = "all"
    extractor: str = "inception"
    weights: str | None = None
    test: str | None = None
    test_args: Sequence[str] = ()
    classifiers: Sequence[str] | None = None
    protocol: str = HELD_OUT
    epochs: int | None = None
    seeds: int = 1
    privacy: str | None = None
    show_real: bool = False
    memorisation: Sequence[str] | None = None
    title: str | None = None
    batch_size: int = 250
    num_workers: int = 0
    summary: SummaryOptions = field(default_factory=lambda: SummaryOptions(quantize=True))
    measure: MeasureOptions = field(default_factory=MeasureOptions)


@dataclass(frozen=True)
class Evaluation:
    """A result as plain values (docs/evaluation.md) and the images of its page."""

    result: dict[str, Any]
    images: ImageRows


def evaluate(request: EvaluationRequest, device: torch.device) -> Evaluation:
    """Measure everything that applies. What may fail is tried before the long computations. Raises UserError."""
    suite = get_suite(request.suite)
    classifiers = [classifier_name(name) for name in (request.classifiers or suite.classifiers)]
    protocol = protocol_named(request.protocol).changed(epochs=request.epochs)
    if request.seeds < 1:
        raise UserError(f"--seeds {request.seeds}: give a number of 1 or more")
    privacy = read_privacy(request.privacy) if request.privacy else None
    membership = read_membership(request.memorisation) if request.memorisation else {}
    samples = open_images(request.samples)
    first, first_labels = next(iter(samples.batches(request.batch_size)))
    side = int(first.shape[-1])
    real = open_images(request.real, request.real_args, size=side, num_workers=request.num_workers)
    test = load_labelled(request.test, request.test_args, size=side) if request.test else None
    extractor = make_extractor(request.extractor, weights=request.weights, device=device)

    shown, shown_real = ImageCollector(), ImageCollector()
    real_batches = real.batches(request.batch_size)
    real_summary = summarise(
        shown_real.watch(real_batches) if request.show_real else real_batches,
        extractor,
        request.summary,
        source=real.name,
    )
    made_summary = summarise(
        shown.watch(samples.batches(request.batch_size)), extractor, request.summary, source=samples.name
    )
    measurement = measure(real_summary, made_summary, suite, request.measure, device)
    if samples.class_names and real.class_names and samples.class_names != real.class_names:
        measurement = _without_classes(measurement, "the two folders have different subfolders")

    downstream, reason = None, _no_downstream(test, first_labels, classifiers)
    if test is not None and not reason:
        images = collect(samples, request.batch_size)
        downstream = score_downstream(images, test, classifiers, protocol, request, device)
    copies: dict[str, Any] = {}
    if request.memorisation is not None and request.test:
        copies = near_copies_of(
            samples,
            made_summary.statistics.count,
            real,
            open_images(request.test, request.test_args, size=side),
            extractor,
            batch_size=request.batch_size,
            seed=request.summary.seed,
            device=device,
        )
    not_measured = {**measurement.skipped, **({"downstream": reason} if reason else {})}
    if request.memorisation is not None and not request.test:
        not_measured["near_copies"] = "no held-out real images were given (--test)"
    name_class = class_namer(suite, samples, real)
    result = {
        "format": FORMAT,
        "version": VERSION,
        "title": request.title or Path(request.samples).stem,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "samples": {**_describe(samples, made_summary, name_class), "meta": dict(samples.meta)},
        "real": _describe(real, real_summary, name_class),
        "protocol": _protocol(request, made_summary, real_summary, device),
        "scores": {name: score.to_dict() for name, score in measurement.scores.items()},
        "per_class": _per_class(measurement, name_class),
        "downstream": downstream,
        "privacy": privacy,
        "memorisation": {**copies, **membership} or None,
        "not_measured": not_measured,
        "from_real_images": ["scores", "per_class", "downstream", "memorisation"],
    }
    rows = {label: name_class(label) if label >= 0 else "" for label in shown.kept}
    return Evaluation(
        result,
        ImageRows(
            {name: torch.stack(shown.kept[label]) for label, name in list(rows.items())[:SHOWN_CLASSES]},
            {rows[label]: torch.stack(found) for label, found in shown_real.kept.items() if label in rows},
            left_out=max(len(made_summary.classes) - SHOWN_CLASSES, 0),
        ),
    )


def write_evaluation(evaluation: Evaluation, folder: str | Path) -> None:
    """Write `evaluation.json`, `report.html` and a sheet of samples into `folder`, each whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(evaluation.result, indent=2, allow_nan=False, ensure_ascii=False)
    document = evaluation_page(evaluation.result, evaluation.images)
    write_text(folder / JSON_NAME, content + "\n")
    write_text(folder / PAGE_NAME, document)
    rows = list(evaluation.images.samples.values())
    every = torch.cat(rows if len(rows) == 1 else [row[:SHOWN] for row in rows if len(row) >= SHOWN] or rows)
    image = sheet(every[:200], columns=SHOWN)
    write_atomic(folder / SHEET_NAME, lambda path: image.save(path, format="PNG"))


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 file, whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(content, encoding="utf-8")

    write_atomic(path, write)


def check_output_folder(folder: str | Path) -> None:
    """Raise UserError now when `folder` could not be written after a long computation."""
    if Path(folder).is_file():
        raise UserError(f"--output {folder} is a file; name a folder")
    check_writable(Path(folder), "--output")


def format_scores(result: Mapping[str, Any]) -> str:
    """A short table for the terminal."""
    lines = []
    for score in result["scores"].values():
        spread = "" if score["deviation"] is None else f" +- {score['deviation']:.2g}"
        lines.append(f"{score['label']:36} {score['value']:.4f}{spread}")
    for found in (result["downstream"] or {}).get("results", ()):
        lines.append(f"{'accuracy, ' + found['name']:36} {100 * found['mean']:.2f} %")
    for row in result["per_class"]:
        lines.append(f"{'  class ' + row['name']:36} {row['frechet']:.4f}")
    for name, why in result["not_measured"].items():
        lines.append(f"{name.replace('_', ' '):36} not measured: {why}")
    return "\n".join(lines)


class ImageCollector:
    """Keeps the first images of every class while a stream passes by; label -1 stands for no label."""

    def __init__(self, classes: int = 2 * SHOWN_CLASSES) -> None:
        self.kept: dict[int, list[Tensor]] = {}
        self.classes = classes

    def watch(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The same batches, looked at on the way."""
        for images, labels in batches:
            names = [-1] * len(images) if labels is None else labels.tolist()
            for image, label in zip(images, names, strict=True):
                room = SHOWN_UNLABELLED if label < 0 else SHOWN
                if len(self.kept.get(label, ())) < room and (label in self.kept or len(self.kept) < self.classes):
                    self.kept.setdefault(label, []).append(image.clone())
            yield images, labels
        self.kept = dict(sorted(self.kept.items()))


def collect(source: ImageSource, batch_size: int) -> SampleSet:
    """All images of a source in memory, as the classifiers need them."""
    images, labels = zip(*source.batches(batch_size), strict=True)
    found = [part for part in labels if part is not None]
    return SampleSet(torch.cat(images), torch.cat(found) if found else None)


def class_namer(suite: Suite, *sources: ImageSource) -> Any:
    """label -> name: the suite's, or else those of a folder's subfolders, or else the number."""
    folders = next((source.class_names for source in sources if source.class_names), ())
    return replace(suite, class_names=suite.class_names or folders).class_name


def _no_downstream(test: SampleSet | None, labels: Tensor | None, classifiers: Sequence[str]) -> str:
    if test is None:
        return "no real test images were given (--test)"
    if labels is None:
        return "the samples have no labels"
    return "" if classifiers else "the suite has no classifiers (--classifiers)"


def score_downstream(
    samples: SampleSet,
    test: SampleSet,
    classifiers: Sequence[str],
    protocol: ClassifierProtocol,
    request: EvaluationRequest,
    device: torch.device,
) -> dict[str, Any]:
    """Accuracy on real images of classifiers trained on the samples, as plain values."""
    found = downstream_accuracy(
        samples, test, classifiers=classifiers, protocol=protocol, seeds=range(request.seeds), device=device
    )
    return {
        "test": " ".join([str(request.test), *request.test_args]),
        "test_count": len(test),
        "protocol": protocol.name,
        "settings": protocol.to_dict(),
        "results": [{"name": DISPLAY_NAMES[summary.model], **summary.to_dict()} for summary in found],
    }


def read_privacy(path: str | Path) -> dict[str, Any]:
    """The figures of a privacy card, or of the run directory that holds one, and its epsilon by step if logged."""
    path = Path(path)
    card_path = path / "privacy.json" if path.is_dir() else path
    card = ReleaseCard.read(card_path).to_dict()
    keys = ("statement", "private", "epsilon", "delta", "relation", "record", "rng", "steps", "covered", "not_covered")
    return {
        **{key: card[key] for key in (*keys, "public_data", "plan")},
        "trained_coordinates": card["trained"]["coordinates"],
        "curve": epsilon_curve(card_path.parent),
    }


def epsilon_curve(run: Path, most: int = 200) -> list[list[float]]:
    """[step, epsilon] pairs that a run logged, thinned to `most`; empty when it logged none."""
    points = []
    for file in sorted((run / "metrics").glob("version_*/metrics.csv")):
        with file.open(newline="", encoding="utf-8") as stream:
            for line in csv.DictReader(stream):
                if line.get("privacy/epsilon") and line.get("step"):
                    points.append([int(line["step"]), float(line["privacy/epsilon"])])
    stride = -(-len(points) // most) if points else 1
    return points[::-1][::stride][::-1]  # the last one stays


def _without_classes(measurement: Measurement, reason: str) -> Measurement:
    scores = {name: score for name, score in measurement.scores.items() if name != "frechet_class_mean"}
    return Measurement(scores, {}, {**measurement.skipped, "per_class": reason})


def _describe(source: ImageSource, summary: SetSummary, name_class: Any) -> dict[str, Any]:
    return {
        "source": source.name,
        "count": summary.statistics.count,
        "size": summary.statistics.size,
        "classes": {name_class(label): count for label, count in summary.classes.items()},
    }


def _per_class(measurement: Measurement, name_class: Any) -> list[dict[str, Any]]:
    return [{"label": label, "name": name_class(label), **row} for label, row in measurement.per_class.items()]


def _protocol(request: EvaluationRequest, made: SetSummary, real: SetSummary, device: torch.device) -> dict[str, Any]:
    statistics = made.statistics
    return {
        "suite": request.suite,
        "policy": statistics.policy(),
        "forced": mismatch(statistics, real.statistics),
        "extractor": statistics.extractor,
        "weights": statistics.weights,
        "resize": statistics.resize,
        "quantize": statistics.quantize,
        "size": statistics.size,
        "subset": {
            "limit": request.summary.subset,
            "seed": request.summary.seed,
            "samples": len(made.subset),
            "real": len(real.subset),
        },
        "options": asdict(request.measure),
        "device": device.type,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", "torch-fidelity"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
