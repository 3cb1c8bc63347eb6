"""The release of a finished private run: one folder with weights, configuration, card and checksums."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from ldm.checkpoint import export_checkpoint, read_checkpoint, without_paths
from ldm.cli import typed
from ldm.config import load_config, to_plain
from ldm.errors import UserError
from ldm.files import check_new_folder, new_folder
from ldm.inference.load import without_checkpoints
from ldm.models.diffusion.latent_draws import write_half
from ldm.models.diffusion.sampling_section import SamplingSection
from ldm.privacy.card import ReleaseCard
from ldm.reports.audit_file import AUDIT, AuditFile
from ldm.reports.claim import check_weights
from ldm.reports.model_files import run_class_names
from ldm.reports.release_card import CardContent, card_page, card_text
from ldm.reports.release_facts import ReleaseFacts
from ldm.reports.release_folder import PUBLIC_DP_KEYS, ReleaseFolder
from ldm.reports.verification import verify_release
from ldm.training.run_directory import RunDirectory

#: Hidden folder of the runs of a selection (`dp-ldm sweep`), of which the best alone leaves it.
CANDIDATES = ".candidates"


def release_run(
    run: Path, out: Path, facts: ReleaseFacts, checkpoint: Path | None = None, half: bool = False
) -> tuple[Path, ...]:
    """Write the release of a run directory into the new folder ``out``, atomically; returns its files.

    ``checkpoint``: a file of the run, by default ``checkpoints/last.ckpt``. ``half``: weights and statistics in half
    precision. All checks come before the first write.

    Raises UserError, with advice, for a run that is not private as a whole, a folder without card, configuration or
    checkpoint, an ``out`` that exists, and a release that `verify_release` would refuse.
    """
    card, place = releasable_card(run), RunDirectory(run)
    facts.check_for(run_class_names(run))
    weights = checkpoint or place.last_checkpoint
    if not weights.is_file():
        raise UserError(f"{weights}: no such checkpoint; train first, or name one with --checkpoint FILE")
    check_weights(card, read_checkpoint(weights), weights)  # weights of another run would go out under this card
    draws = place.draws if place.draws.is_file() else None
    if draws is not None:
        check_weights(card, read_checkpoint(draws), draws)
    card = with_audit(card, run)
    public = public_config(run)
    if "sampling" in public and draws is None:
        raise UserError(
            f"{place.draws}: is missing, and the configuration declares sampling.source: draws; go on with dp-ldm "
            f"train --resume {typed(run)}, which writes it"
        )
    check_new_folder(out, ", so that no file of an earlier release stays in it")
    with new_folder(out) as staging:
        release = ReleaseFolder(staging)
        export_checkpoint(weights, release.weights, half=half)
        release.config.write_text(yaml.safe_dump(public, sort_keys=False), encoding="utf-8")
        if draws is not None:
            (write_half if half else shutil.copyfile)(draws, release.draws)
        card.write(release.card)
        release.facts.write_text(json.dumps(facts.to_dict(), indent=2) + "\n", encoding="utf-8")
        content = CardContent.make(facts, card)
        release.card_text.write_text(card_text(content), encoding="utf-8")
        release.card_page.write_text(card_page(content), encoding="utf-8")
        release.write_sums()
        refuse_unsound(staging, run)
    return ReleaseFolder(out).files


def refuse_unsound(written: Path, run: Path) -> None:
    """Raise UserError unless `verify_release` finds a new release sound: an edited run must not become one.

    This also covers a checkpoint of the run without a model, such as the statistics, and an edited configuration.
    """
    wrong = [check for check in verify_release(written).checks if check.problem]
    if wrong:
        raise UserError(
            f"{run}: its release would not verify ({wrong[0].question}: {wrong[0].problem}); nothing was written: "
            "were files of the run edited, or is it another checkpoint?"
        )


def releasable_card(run: Path) -> ReleaseCard:
    """The card of a run that is private as a whole. Raises UserError with the reason if it is not."""
    if not run.is_dir():
        raise UserError(f"{run}: no such run directory; type dp-ldm release logs/RUN OUT")
    path = RunDirectory(run).privacy_card
    if not path.is_file():
        raise UserError(
            f"{run}: has no privacy.json, so it was not trained privately, or stopped before its first "
            "checkpoint; only private runs can be released. Train with dp_config.enabled: true"
        )
    if run.resolve().parent.name == CANDIDATES:
        raise UserError(f"{run}: is a candidate of a selection that is not finished; only the best one may be released")
    card = ReleaseCard.read(path)
    if not card.plan.secure:
        raise UserError(f"{path}: {card.statement()}; train again without dp_config.insecure_seed")
    if card.not_covered:
        raise UserError(
            f"{path}: the guarantee does not cover: {'; '.join(card.not_covered)}. Train again without it; a run keeps "
            "what its card says"
        )
    if not card.private or card.ledger.steps == 0:
        raise UserError(f"{path}: {card.statement()}; there is nothing to release")
    return card


def with_audit(card: ReleaseCard, run: Path) -> ReleaseCard:
    """The card with the run's ``audit.json``, if there is one. Raises UserError for a failed or outdated audit."""
    path = run / AUDIT
    return replace(card, audit=AuditFile.read(path).for_card(card, path)) if path.is_file() else card


def check_releasable(place: Path) -> None:
    """Raise UserError for a private run directory that `releasable_card` refuses, so that no export goes round it.

    The same for a release that does not verify, whose card would go with the export; its documents may be those of
    another version.
    """
    if ReleaseFolder(place).facts.is_file() and not verify_release(place, documents=False).sound:
        raise UserError(f"{place}: does not verify; type dp-ldm verify {typed(place)} to see why")
    run = RunDirectory(place)
    if run.checkpoints.is_dir() and run.privacy_card.is_file():
        releasable_card(place)


def release_documents(place: Path) -> tuple[Path, ...]:
    """The card files of a release folder, for another folder with its weights; of a run its ``privacy.json``."""
    release = ReleaseFolder(place)
    return tuple(path for path in (release.card, release.card_text, release.card_page) if path.is_file())


def public_config(run: Path) -> dict[str, Any]:
    """The released part of a run's configuration as plain values, without paths of files or of private data.

    It is the section ``model`` and, where draws of the released statistics are declared, the section ``sampling``.
    Raises UserError when the run directory holds no configuration, or one without a model.
    """
    paths = sorted((run / "configs").glob("*.yaml"))
    if not paths:
        raise UserError(f"{run}: has no configs/*.yaml; give the run directory that main.py wrote")
    config = load_config([str(path) for path in paths])
    if not isinstance(config.get("model"), DictConfig) or not isinstance(config.model.get("params"), DictConfig):
        raise UserError(f"{run}/configs: no section 'model' with params; give the run directory that main.py wrote")
    section: dict[str, Any] = without_paths(to_plain(without_checkpoints(config.model)))
    params = section.get("params", {})
    dp_config = params.get("dp_config") or {}
    if not isinstance(dp_config, Mapping):
        raise UserError(f"{run}/configs: model.params.dp_config is {dp_config!r}, no section; was the file edited?")
    params["dp_config"] = {key: dp_config[key] for key in PUBLIC_DP_KEYS if key in dp_config}
    sampling = SamplingSection.read(to_plain(config.get("sampling")))
    return {"model": section} if sampling == SamplingSection() else {"model": section, "sampling": asdict(sampling)}
