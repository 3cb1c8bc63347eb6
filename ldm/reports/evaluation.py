"""A whole evaluation of a sample file: every metric that applies, as one result with the images of its page."""

from __future__ import annotations

import datetime
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ldm.errors import UserError
from ldm.evaluation.classifiers.networks import classifier_name
from ldm.evaluation.classifiers.protocols import HELD_OUT, ClassifierProtocol, protocol_named
from ldm.evaluation.features import FeatureExtractor, make_extractor, shared
from ldm.evaluation.inputs.image_source import ImageSource, open_images
from ldm.evaluation.inputs.sources import load_labelled
from ldm.evaluation.metrics.statistics import mismatch
from ldm.evaluation.metrics.suite import Measurement, MeasureOptions, Suite, get_suite, measure
from ldm.evaluation.metrics.summary import SummaryOptions
from ldm.evaluation.page.evaluation import ImageRows
from ldm.evaluation.processes import ALONE, Processes
from ldm.evaluation.result import (
    PUBLIC,
    REAL,
    ClassRow,
    Downstream,
    EvaluationResult,
    MeasuringProtocol,
    PrivacySummary,
    SubsetSizes,
)
from ldm.reports.evaluation_classifiers import score_downstream
from ldm.reports.evaluation_inputs import (
    Sources,
    Summaries,
    class_namer,
    generated_set,
    image_rows,
    image_set,
    read_all,
    summarise_sets,
)
from ldm.reports.memorisation import near_copies_of, read_membership
from ldm.reports.privacy_summary import read_privacy
from ldm.samples import SampleSet

logger = logging.getLogger(__name__)

VERSIONS_OF = ("torch", "numpy", "torch-fidelity")


@dataclass(frozen=True)
class EvaluationRequest:
    """The inputs and settings of an evaluation.

    samples, real, test, public: a sample file, a folder, or a dotted dataset class; real and test with `key:value`
    words. test: held-out real images; they score the classifiers, are the reference of the memorisation test, and with
    real_level are measured in the samples' place. public: samples of the public model, measured in the same way.
    show_real: put real images on the page. privacy: a privacy card, or a run directory that has one. memorisation:
    look for near-copies, and show these files of scripts/membership.py; None for neither.
    """

    samples: str
    real: str
    real_args: Sequence[str] = ()
    suite: str = "all"
    extractor: str = "inception"
    weights: str | None = None
    test: str | None = None
    test_args: Sequence[str] = ()
    public: str | None = None
    real_level: bool = False
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
    """A result, and the images of its page."""

    result: EvaluationResult
    images: ImageRows


@dataclass(frozen=True)
class _Settings:
    """The parts of a request that need no images, checked and read."""

    suite: Suite
    classifiers: tuple[str, ...]
    protocol: ClassifierProtocol
    privacy: PrivacySummary | None
    membership: Mapping[str, Mapping[str, Any]]


def evaluate(request: EvaluationRequest, device: torch.device, processes: Processes = ALONE) -> Evaluation:
    """Measure everything that applies. All checks of the request come before long computations. Raises UserError.

    Several ``processes`` share out features and classifiers; every one of them returns the whole result.
    """
    settings = _read_settings(request)
    sources, test = _open_sources(request)
    extractor = shared(make_extractor(request.extractor, weights=request.weights, device=device), processes)
    summaries = summarise_sets(
        sources,
        extractor,
        request.summary,
        batch_size=request.batch_size,
        show_real=request.show_real,
        real_level=request.real_level,
    )
    measurement = _measure_sets(summaries, sources, settings.suite, request.measure, device)
    downstream, no_downstream = _train_classifiers(request, settings, sources, test, device, processes)
    copies, no_copies = _look_for_copies(request, sources, summaries, extractor, device)
    name_class = class_namer(settings.suite, sources.samples, sources.real)
    name_real = class_namer(settings.suite, sources.real, sources.samples)
    result = EvaluationResult(
        title=request.title or Path(request.samples).stem,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        samples=generated_set(sources.samples, summaries.samples, name_class),
        real=image_set(sources.real, summaries.real, name_real),
        protocol=_protocol(request, summaries, device),
        scores=measurement.scores,
        per_class=tuple(
            ClassRow(label, name_class(label), row["frechet"], int(row["samples"]), int(row["real"]))
            for label, row in measurement.per_class.items()
        ),
        downstream=downstream,
        privacy=settings.privacy,
        memorisation={**copies, **settings.membership} or None,
        not_measured={**measurement.skipped, **no_downstream, **no_copies},
        levels={
            level: image_set(source, summaries.levels[level], name_class)
            for level, source in ((REAL, sources.test), (PUBLIC, sources.public))
            if source is not None and level in summaries.levels
        },
    )
    return Evaluation(result, image_rows(summaries, name_class, name_real))


def _read_settings(request: EvaluationRequest) -> _Settings:
    """Check all settings that need no image. Raises UserError."""
    suite = get_suite(request.suite)
    classifiers = tuple(classifier_name(name) for name in (request.classifiers or suite.classifiers))
    protocol = protocol_named(request.protocol).changed(epochs=request.epochs)
    if request.seeds < 1:
        raise UserError(f"--seeds {request.seeds}: give a number of 1 or more")
    if request.real_level and not request.test:
        raise UserError("--real_level measures held-out real images; name them with --test")
    privacy = read_privacy(request.privacy) if request.privacy else None
    membership = read_membership(request.memorisation) if request.memorisation else {}
    return _Settings(suite, classifiers, protocol, privacy, membership)


def _open_sources(request: EvaluationRequest) -> tuple[Sources, SampleSet | None]:
    """The image sets, and the labelled test images in memory. Raises UserError."""
    samples = open_images(request.samples)
    first, labels = next(iter(samples.batches(request.batch_size)))
    side = int(first.shape[-1])
    real = open_images(request.real, request.real_args, size=side, num_workers=request.num_workers)
    labelled = load_labelled(request.test, request.test_args, size=side) if request.test else None
    test = open_images(request.test, request.test_args, size=side) if request.test else None
    public = open_images(request.public) if request.public else None
    return Sources(samples, real, test, public, labels is not None), labelled


def _measure_sets(
    summaries: Summaries, sources: Sources, suite: Suite, options: MeasureOptions, device: torch.device
) -> Measurement:
    """Every score of the samples, with its values at the known levels."""
    found = measure(summaries.real, summaries.samples, suite, options, device)
    for level, summary in summaries.levels.items():
        for name, score in measure(summaries.real, summary, suite, options, device).scores.items():
            if name in found.scores:
                row = found.scores[name]
                found.scores[name] = replace(row, levels={**row.levels, level: score.value})
    samples, real = sources.samples.class_names, sources.real.class_names
    if samples and real and samples != real:
        return _without_classes(found, "the two sets have different classes")
    return found


def _without_classes(measurement: Measurement, reason: str) -> Measurement:
    scores = {name: score for name, score in measurement.scores.items() if name != "frechet_class_mean"}
    return Measurement(scores, {}, {**measurement.skipped, "per_class": reason})


def _train_classifiers(
    request: EvaluationRequest,
    settings: _Settings,
    sources: Sources,
    test: SampleSet | None,
    device: torch.device,
    processes: Processes,
) -> tuple[Downstream | None, dict[str, str]]:
    """Classifiers trained on the samples, or the reason for their absence."""
    reason = ""
    if test is None:
        reason = "no real test images were given (--test)"
    elif not sources.has_labels:
        reason = "the samples have no labels"
    elif _other_classes(test, sources.samples):
        reason = "the samples and the test images have different classes"
    elif not settings.classifiers:
        reason = "the suite has no classifiers (--classifiers)"
    if test is None or reason:
        return None, {"downstream": reason}
    level_sources = {REAL: sources.real if request.real_level else None, PUBLIC: sources.public}
    others = {name: read_all(source, request.batch_size) for name, source in level_sources.items() if source}
    downstream = score_downstream(
        read_all(sources.samples, request.batch_size),
        test,
        settings.classifiers,
        settings.protocol,
        test_name=" ".join([str(request.test), *request.test_args]),
        seeds=request.seeds,
        device=device,
        others={name: images for name, images in others.items() if images.labels is not None},
        processes=processes,
    )
    return downstream, {}


def _other_classes(test: SampleSet, samples: ImageSource) -> bool:
    """Whether both have class names and the names differ."""
    names = (test.meta or {}).get("class_names") or ()
    return bool(names and samples.class_names) and list(names) != list(samples.class_names)


def _look_for_copies(
    request: EvaluationRequest,
    sources: Sources,
    summaries: Summaries,
    extractor: FeatureExtractor,
    device: torch.device,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Near-copies of real images among the samples, or the reason for leaving the test out."""
    if request.memorisation is None:
        return {}, {}
    if sources.test is None:
        return {}, {"near_copies": "no held-out real images were given (--test)"}
    copies = near_copies_of(
        sources.samples,
        summaries.samples.statistics.count,
        sources.real,
        sources.test,
        extractor,
        batch_size=request.batch_size,
        seed=request.summary.seed,
        device=device,
    )
    return copies, {}


def _protocol(request: EvaluationRequest, summaries: Summaries, device: torch.device) -> MeasuringProtocol:
    statistics = summaries.samples.statistics
    return MeasuringProtocol(
        suite=request.suite,
        policy=statistics.policy(),
        forced=mismatch(statistics, summaries.real.statistics),
        extractor=statistics.extractor,
        weights=statistics.weights,
        resize=statistics.resize,
        quantize=statistics.quantize,
        size=statistics.size,
        subset=SubsetSizes(
            request.summary.subset, request.summary.seed, len(summaries.samples.subset), len(summaries.real.subset)
        ),
        options=asdict(request.measure),
        device=device.type,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
