"""Downstream accuracy from files on disk to a printed table: the common part of the accuracy commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ldm.evaluation.classifiers.downstream import (
    DownstreamResult,
    SeedSummary,
    downstream_accuracy,
    format_accuracies,
    hold_out,
)
from ldm.evaluation.classifiers.protocols import HELD_OUT, REAL_HELD_OUT, SELECTIONS, ClassifierProtocol
from ldm.evaluation.inputs.sources import load_labelled
from ldm.files import require_writable, write_atomic, write_text
from ldm.samples import SampleSet


def score_files(
    train: str | Path,
    test: str,
    protocol: ClassifierProtocol,
    classifiers: Sequence[str],
    *,
    test_args: Sequence[str] = (),
    held_out: str | Path | None = None,
    held_out_args: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    device: torch.device | str = "cpu",
    amp: bool = False,
    output: str | Path | None = None,
) -> str:
    """Train on the sample file ``train``, score on ``test`` (a labelled file or a dotted dataset class with its
    ``test_args``); returns the table, and writes all numbers as JSON by classifier to ``output``.

    held_out: a file or dataset class (with ``held_out_args``) with the images that choose the epoch: samples, one
    sixth of ``train`` if None, or real images, by the protocol.
    Raises UserError; for an ``output`` that cannot be written, before any training.
    """
    if output is not None:
        require_writable(output)
    samples, chosen_on = SampleSet.load(train, need_labels=True), None
    if held_out is not None and protocol.selection in (HELD_OUT, REAL_HELD_OUT):
        size = samples.images.shape[-1]
        chosen_on = load_labelled(str(held_out), held_out_args, size=size, for_scores=False)
    elif protocol.selection == HELD_OUT:
        samples, chosen_on = hold_out(samples)
    real = load_labelled(test, test_args, size=samples.images.shape[-1])
    scores = downstream_accuracy(
        samples,
        real,
        held_out=chosen_on,
        classifiers=classifiers,
        protocol=protocol,
        seeds=seeds,
        device=device,
        amp=amp,
    )
    if output is not None:
        write_scores(scores, output)
    return f"{headline(len(real), protocol, chosen_on)}\n{format_accuracies(scores)}"


def headline(real: int, protocol: ClassifierProtocol, chosen_on: SampleSet | None) -> str:
    """The line above the table: the number of real images, and the rule that chose the epoch."""
    by_samples = chosen_on is not None and protocol.selection == HELD_OUT
    chosen = f"epoch chosen on {len(chosen_on)} held-out samples" if by_samples and chosen_on else protocol.note
    return f"accuracy on {real} real images, {chosen}"


def write_scores(scores: Sequence[SeedSummary], path: str | Path) -> None:
    """All numbers as JSON, by classifier."""
    text = json.dumps({summary.model: summary.to_dict() for summary in scores}, indent=2)
    write_text(path, text)


def write_curves(result: DownstreamResult, path: str | Path) -> None:
    """One training as `accuracy/train_classifier.py` of DP-LDM wrote it, and how its epoch was chosen.

    train_losses (epochs, steps); val_epochs from 0, with val_accuracies and ema_val_accuracies (0-1) on the images
    that choose the epoch; test_accuracy and ema_test_accuracy on the real ones; selection; note.
    """
    scored = [(epoch, score) for epoch, score in enumerate(result.curve) if score.validation_accuracy is not None]
    content = {
        "train_losses": torch.tensor(result.step_losses),
        "val_accuracies": [score.validation_accuracy for _, score in scored],
        "ema_val_accuracies": [score.average_accuracy for _, score in scored if score.average_accuracy is not None],
        "val_epochs": [epoch for epoch, _ in scored],
        "test_accuracy": result.accuracy,
        "ema_test_accuracy": result.average_accuracy,
        "selection": result.selection,
        "note": SELECTIONS[result.selection],
    }
    write_atomic(path, lambda temporary: torch.save(content, temporary))
