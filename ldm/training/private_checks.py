"""Refusals of a private run: unsafe settings, unsafe networks, and deviations from the plan of a resumed run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ldm.errors import UserError
from ldm.models.diffusion.finetuning import Selection
from ldm.models.diffusion.latent_denoiser import LatentDenoiser
from ldm.privacy.card import ReleaseCard
from ldm.privacy.config import DPConfig
from ldm.privacy.plan import PrivacyPlan, planned_steps
from ldm.training.private_ddp import private_strategy
from ldm.training.run_directory import RunDirectory


def required_length(settings: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """As `requested_length`; raises UserError when neither epochs nor steps are given."""
    epochs, steps = requested_length(settings)
    if epochs is None and steps is None:
        raise UserError(
            "a private run needs its length, for which the noise is calibrated: type --max_epochs N or --max_steps N, "
            "or set lightning.trainer.max_epochs"
        )
    return epochs, steps


def requested_length(settings: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Epochs or steps as the Trainer's settings give them, the other None; a number of steps takes precedence."""
    epochs, steps = settings.get("max_epochs"), settings.get("max_steps")
    steps = None if steps in (None, -1) else steps
    return (None if epochs in (None, -1) or steps is not None else epochs), steps


def require_same_mechanism(plan: PrivacyPlan, config: DPConfig) -> None:
    """Refuse settings of a resumed run that differ from its plan; settings that the config omits come from the plan."""
    if config.sampling != plan.sampling:
        raise UserError(
            f"dp_config.poisson_sampling: the resumed run draws {plan.sampling} batches; a run keeps its plan, "
            "start a new run from the checkpoint instead"
        )
    planned = {
        "epsilon": plan.target_epsilon,
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "sample_rate": plan.sample_rate,
        "max_grad_norm": plan.max_grad_norm,
        "noise_multiplicity": plan.noise_multiplicity,
        "clipping": plan.clipping,
        "selection": plan.selection.to_dict() if plan.selection is not None else None,
    }
    for key, value in planned.items():
        asked = getattr(config, key)
        if asked is not None and asked != value:
            raise UserError(
                f"dp_config.{key}: the resumed run has {value}, the config says {asked}; a run keeps its plan, "
                "start a new run from the checkpoint instead"
            )


def require_same_length(plan: PrivacyPlan, batch_size: int, settings: Mapping[str, Any]) -> None:
    """Refuse a batch size or a length of a resumed run that differs from its plan."""
    if batch_size != plan.expected_batch_size:
        raise UserError(
            f"data.params.batch_size: the resumed run has {plan.expected_batch_size:g}, the config says {batch_size}; "
            "a run keeps its plan"
        )
    epochs, steps = requested_length(settings)
    if epochs is not None or steps is not None:
        asked = planned_steps(plan.sample_rate, epochs=epochs, steps=steps)
        if asked != plan.steps:
            raise UserError(
                f"the resumed run was calibrated for {plan.steps} steps, max_epochs or max_steps now ask for {asked}; "
                "a run keeps its plan, start a new run from the checkpoint instead"
            )


def require_same_selection(run_dir: RunDirectory, selection: Selection) -> None:
    """Refuse trained parameters of a resumed run that differ from those listed as noised on its card."""
    if run_dir.resume_from is None or not run_dir.privacy_card.exists():
        return
    before, now = set(ReleaseCard.read(run_dir.privacy_card).trained), set(selection.parameters)
    if before != now:
        odd = sorted(before ^ now)[0]
        raise UserError(
            f"the resumed run trains {len(before)} tensors, the config now selects {len(now)} ({odd} is in one only); "
            "a run keeps what it trains, start a new run from the checkpoint instead"
        )


def refuse_other_checkpoint(settings: Mapping[str, Any]) -> None:
    """Refuse to start a new private run from a training state; only a resumed run may use one."""
    if settings.get("ckpt_path"):
        raise UserError(
            f"ckpt_path (resume_from_checkpoint): a private run goes on in its own directory, where its ledger is; "
            f"type --resume {settings['ckpt_path']}"
        )


def refuse_unknown_scale(model: LatentDenoiser) -> None:
    """Refuse a new private run without a latent scale."""
    if not model.scale_is_known:
        raise UserError(
            "scale_by_std: the checkpoint holds no scale_factor, and taking it from private images is not covered by "
            "the guarantee; set scale_by_std: false and a scale_factor from public images"
        )


def refuse_unsafe_settings(settings: Mapping[str, Any]) -> None:
    """Refuse Trainer settings under which the stated guarantee would not hold."""
    private_strategy(settings)
    if int(settings.get("accumulate_grad_batches") or 1) > 1:
        raise UserError(
            "accumulate_grad_batches: a private step never merges two draws; raise data.params.batch_size and set "
            "dp_config.max_batch_size to what fits in memory"
        )
    if settings.get("gradient_clip_val"):
        raise UserError("gradient_clip_val: a private step clips every record; set dp_config.max_grad_norm")
    if str(settings.get("precision") or "32") not in ("32", "32-true", "bf16", "bf16-mixed"):
        raise UserError(f"precision {settings['precision']}: private training runs in 32-true or bf16-mixed")
    limit = settings.get("limit_train_batches")
    whole = limit is None or (isinstance(limit, float) and limit == 1.0)  # int 1 means one batch, though 1 == 1.0
    if settings.get("overfit_batches") or not whole:
        raise UserError(
            "overfit_batches and limit_train_batches change the sampling that the ledger accounts for; remove them"
        )
    for name, what in (("profiler", "writes"), ("max_time", "ends the run by")):
        if settings.get(name):
            raise UserError(
                f"{name}: it {what} the time that steps take, which reveals how many records were drawn; remove it"
            )


def refuse_unsafe_model(model: nn.Module) -> None:
    """Refuse a network that mixes records."""
    batch_norm = [name for name, module in model.named_modules() if "BatchNorm" in type(module).__name__]
    trained = [name for name in batch_norm if not name.startswith("first_stage_model")]
    if trained:
        raise UserError(
            f"{trained[0]}: batch normalisation mixes records; a private model needs group or layer normalisation"
        )
