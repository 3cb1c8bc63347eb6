"""An audit of the user's own model and plan: what is measured, where the claim comes from, and the file of the result.

Records are made up (random latents, the first class), so no private image is read. A canary's signal does not depend
on the records beside it, and clipping holds for all records or for none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.inference import load_model
from ldm.models.diffusion.latent_denoiser import LatentDenoiser
from ldm.privacy.audit import (
    AuditResult,
    DrawsResult,
    Mechanism,
    SensitivityResult,
    audit_draws,
    audit_pairs,
    audit_sensitivity,
    judge,
    observe,
)
from ldm.privacy.audit.mechanism import PerExampleLoss
from ldm.privacy.card import ReleaseCard
from ldm.privacy.clipping import Clipping, PerRecordClipper
from ldm.privacy.event import POISSON
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.validate import number, whole
from ldm.reports.audit_file import AUDIT, AuditFile
from ldm.reports.budget import PlannedRun
from ldm.reports.model_files import ModelFiles
from ldm.reports.release_folder import ReleaseFolder
from ldm.training.driver import build_model

logger = logging.getLogger(__name__)

MICROBATCH = 16
#: The method that measures small data sets, whose number is then that of ``canaries``.
PAIRS = "pairs"


@dataclass(frozen=True)
class Subject:
    """What is audited: a model whose trained parameters are selected, its plan, and the epsilon that its card states.

    ``stated_epsilon`` is None for a plan that was not trained yet; ``run`` the directory that the
    result belongs to, if it is a run's.
    """

    model: LatentDenoiser
    plan: PrivacyPlan
    engine: str
    stated_epsilon: float | None = None
    run: Path | None = None

    @classmethod
    def find(cls, place: Path, settings: Sequence[str], device: torch.device) -> Subject:
        """The subject of a run directory, with its trained weights, or of a YAML file with ``key.path=value`` settings.

        Of a run the steps that its card states are audited. Raises UserError for a run that is not private, settings
        of a run, and a configuration without a complete plan.
        """
        if not place.is_dir():
            return cls._of_config(place, settings, device)
        if settings:
            raise UserError(f"{settings[0]}: a finished run is audited as it was trained; settings change a YAML file")
        return cls._of_run(place, device)

    @classmethod
    def _of_run(cls, run: Path, device: torch.device) -> Subject:
        files = ModelFiles.find(run)
        card = ReleaseCard.read(run)
        taken = card.ledger.count(card.plan.event())
        if taken == 0:
            raise UserError(f"{run}: has made no private step yet; train first, or audit its YAML file")
        model = load_model(files.config, files.weights, device, ema=False)
        stated = next(iter(card.epsilons().values()))
        own = None if ReleaseFolder(run).facts.is_file() else run  # one more file would break a release's checksums
        return cls(_selected(model, run), replace(card.plan, steps=taken), model.dp_config.engine, stated, own)

    @classmethod
    def _of_config(cls, path: Path, settings: Sequence[str], device: torch.device) -> Subject:
        run = PlannedRun.read(path, settings)
        model = build_model(run.config).to(device)
        return cls(_selected(model, path), run.plan(), model.dp_config.engine)


@dataclass(frozen=True)
class AuditRequest:
    """What to measure: ``canaries`` (small data sets for ``pairs``) beside ``records`` made-up records.

    ``method`` is "" for the tightest one that covers the plan. ``sensitivity``: measure neighbouring data sets, and
    nothing else. ``progress`` is told the number of steps taken. Raises UserError for a number out of range.
    """

    canaries: int = 2000
    records: int = 16
    method: str = ""
    confidence: float = 0.95
    sensitivity: bool = False
    progress: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        whole("canaries", self.canaries, at_least=2)
        whole("records", self.records)
        number("confidence", self.confidence, above=0, at_most=1)


@dataclass(frozen=True)
class Audit:
    """The results of one call; what was not measured is None."""

    bound: AuditResult | None = None
    draws: DrawsResult | None = None
    sensitivity: SensitivityResult | None = None

    @property
    def parts(self) -> tuple[AuditResult | DrawsResult | SensitivityResult, ...]:
        """The measured parts."""
        return tuple(part for part in (self.bound, self.draws, self.sensitivity) if part is not None)

    @property
    def exceeded(self) -> bool:
        """Whether a part found more than the claim allows."""
        return any(part.exceeded for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """The measured parts by name, as plain JSON values."""
        return {name: part.to_dict() for name, part in vars(self).items() if part is not None}


def training_mechanism(engine: str) -> Mechanism:
    """Sampler, clipper, noise and ledger as training uses them, with the configured engine of the clipper."""

    def clipper(module: nn.Module, parameters: Mapping[str, nn.Parameter], plan: PrivacyPlan) -> PerRecordClipper:
        return PerRecordClipper(module, parameters, Clipping(plan.max_grad_norm, plan.clipping), engine=engine)

    return Mechanism(clipper=clipper)


def run_audit(subject: Subject, request: AuditRequest) -> Audit:
    """Measure what ``request`` asks for. Raises UserError for requests that do not fit the plan."""
    plan, mechanism = subject.plan, training_mechanism(subject.engine)
    rows, loss = made_up_records(subject.model, request.records)
    if request.sensitivity:
        if not rows:
            raise UserError("--sensitivity needs records, and none with this model's condition can be made up")
        batch = subject.model.example_batch(request.records)
        assert batch is not None  # the records above were made from it
        fixed = subject.model.expand_batch(batch, plan.noise_multiplicity, MICROBATCH)
        loss = subject.model.per_example_losses
        return Audit(sensitivity=audit_sensitivity(subject.model, plan, loss, fixed, mechanism=mechanism))
    if request.method == PAIRS:
        return Audit(
            audit_pairs(plan, pairs=request.canaries, confidence=request.confidence, mechanism=mechanism),
        )
    signals = observe(
        plan,
        model=subject.model if rows else None,
        loss=loss if rows else None,
        records=rows or None,
        canaries=request.canaries,
        mechanism=mechanism,
        microbatch=MICROBATCH,
        progress=request.progress,
    )
    method = request.method or ("gaussian" if plan.sampling == POISSON else "one_run")
    return Audit(judge(signals, method, request.confidence), audit_draws(signals))


def made_up_records(model: LatentDenoiser, count: int) -> tuple[dict[str, Tensor], PerExampleLoss]:
    """``count`` made-up records of a model, and its loss with fresh timesteps and noise for each row.

    No records, and a log line, for a condition that cannot be made up; the mechanism is then audited on canaries alone.
    """
    batch = model.example_batch(count)
    if batch is None:
        logger.warning("no record with this model's condition can be made up: canaries go through the mechanism alone")
        return {}, model.per_example_losses
    rows = {key: value for key, value in model.expand_batch(batch, 1, None).items() if key not in ("t", "noise")}

    def loss(drawn: Mapping[str, Tensor]) -> Tensor:
        latents = drawn["z"]
        draws = {"t": model.draw_timesteps(len(latents)), "noise": torch.randn_like(latents)}
        return model.per_example_losses({**drawn, **draws})

    return rows, loss


def save_audit(subject: Subject, audit: Audit) -> Path | None:
    """Write the result into the run directory, beside parts that an earlier audit of the same plan measured."""
    if subject.run is None:
        return None
    path = subject.run / AUDIT
    before = AuditFile.read(path) if path.is_file() else None
    AuditFile.make(subject.plan, audit.to_dict(), before).write(path)
    return path


def _selected(model: Any, place: Path) -> LatentDenoiser:
    """The model of ``place`` in training mode, with all but its trained parameters frozen."""
    if not hasattr(model, "select_trainable"):
        raise UserError(f"{place}: its model has no private training to audit; audit a latent diffusion model")
    model.select_trainable()
    return model.train()
