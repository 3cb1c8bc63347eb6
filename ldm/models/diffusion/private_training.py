"""`PrivateTraining`: one DP-SGD step on a latent diffusion model, from a Poisson batch to noised gradients."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.models.diffusion.finetuning import Selection
from ldm.privacy.clipping import Clipping, PerRecordClipper
from ldm.privacy.distributed import Ranks, check_agreement, reduce_sums
from ldm.privacy.ledger import Ledger
from ldm.privacy.noise import GaussianNoise
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.randomness import LossDraws

logger = logging.getLogger(__name__)


class PrivateTraining:
    """Binds a plan, a ledger, a clipper and a noise source to a model, and takes logical steps (Abadi et al. 2016).

    A batch is one draw of the plan's sampler and is never merged with another: it is cut into chunks of at most
    ``max_batch_size`` records here, inside the step. The step is in the ledger before the parameters move.

    Several processes may take the steps together (``ranks``): each is given its own part of every draw and keeps its
    own ledger, which is the same everywhere; the first adds the noise and alone writes files.
    """

    def __init__(
        self,
        model: Any,
        selection: Selection,
        plan: PrivacyPlan,
        ledger: Ledger,
        *,
        max_batch_size: int | None = None,
        engine: str = "bookkeeping",
    ):
        self.plan = plan
        self.ledger = ledger
        self.selection = selection
        self.max_batch_size = max_batch_size
        self.ranks = Ranks()
        clipping = Clipping(plan.max_grad_norm, style=plan.clipping)
        self.clipper = PerRecordClipper(model, selection.parameters, clipping, engine=engine)
        self.on_release: Callable[[], None] | None = None
        self.noise = GaussianNoise(plan.noise_std, insecure_seed=plan.insecure_seed, start=self.taken)
        self.draws = LossDraws(insecure_seed=plan.insecure_seed, start=self.taken)

    def begin(self) -> None:
        """Make sure, once all processes of the run are connected, that they are about to do the same."""
        self.ranks.check()
        check_agreement(f"plan {self.plan.digest()} from step {self.taken}")
        # What data sets draw (mirrorings) is nobody's business either. Not earlier: connecting the processes seeds the
        # generators of all of them with the public training seed.
        device = next(iter(self.selection.parameters.values())).device
        self.draws.key(device, self.ranks.rank)

    def verify(self, model: Any) -> None:
        """Check once, on made-up records, that per-record gradients add up to the ordinary ones.

        Finds what no layer rule can see, such as a weight that is used outside its layer. Costs two backward passes of
        at most two records; data, ledger and generators are left alone. Raises UserError naming the parameter.
        """
        copies = min(self.plan.noise_multiplicity, 2)
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            batch = made_up_batch(model, min(self.max_batch_size or 2, 2))
            if batch is None:
                logger.info("no record of kind %s can be made up to verify its gradients with", model.cond_stage_key)
                return
            self.clipper.verify(model.row_losses, model.private_rows(batch, copies, None), copies)

    def release(self) -> None:
        """Say that something computed from the trained weights is about to be written: the record of it comes first."""
        if self.on_release is not None:
            self.on_release()

    def describe(self) -> str:
        """What has been spent, in one line."""
        epsilon = self.ledger.epsilon(self.plan.delta)
        return f"epsilon {epsilon:.4g} at delta {self.plan.delta:.3g} after {self.taken} of {self.plan.steps} steps"

    @property
    def taken(self) -> int:
        """Steps of the plan in the ledger, which may charge statistics besides."""
        return self.ledger.count(self.plan.event())

    @property
    def spent(self) -> bool:
        """Whether the plan's steps are used up."""
        return self.taken >= self.plan.steps

    def step(self, model: Any, batch: Mapping[str, Any]) -> None:
        """Take one step on one Poisson draw, which may be empty: then noise alone moves the parameters."""
        if self.spent:
            raise UserError(f"the privacy budget is spent: {self.taken} of {self.plan.steps} steps are in the ledger")
        self.noised_gradients(model, batch)
        self.ledger.record(self.plan.event())
        optimizer = model.optimizers()
        optimizer.step()
        scheduler = model.lr_schedulers()
        if scheduler is not None:
            scheduler.step()
        model.average_weights()

    def noised_gradients(self, model: Any, batch: Mapping[str, Any]) -> None:
        """Set ``.grad`` of every trained parameter to (clipped sum + noise) / expected batch size."""
        with self.draws.step(model.device, self.ranks.rank):
            sums = self.clipped_sums(model, batch)
        self.ranks.check()
        if self.ranks.first:  # once for all processes, see ldm.privacy.distributed
            self.noise.add_(sums)
        reduce_sums(sums)
        for name, parameter in self.selection.parameters.items():
            parameter.grad = (sums[name] / self.plan.expected_batch_size).to(parameter.dtype)

    def clipped_sums(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Sum over the records of the batch of their clipped gradients, float32."""
        copies = self.plan.noise_multiplicity
        rows = model.private_rows(batch, copies, self.max_batch_size)
        records = len(rows["t"]) // copies
        chunk = self.max_batch_size or max(records, 1)
        for start in range(0, records, chunk):
            piece = slice(start * copies, min(start + chunk, records) * copies)
            self.clipper.accumulate(model.row_losses, {key: value[piece] for key, value in rows.items()}, copies)
        return self.clipper.take()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint carries: the plan and the ledger, as plain containers."""
        return {"plan": self.plan.to_dict(), "ledger": self.ledger.to_dict()}


def made_up_batch(model: Any, records: int) -> dict[str, Any] | None:
    """A collated batch of random latents with class 0 or a caption of one word; None for another kind of condition."""
    shape = (records, model.channels, model.image_size, model.image_size)
    batch: dict[str, Any] = {"moments": torch.randn(shape).to(model.device)}
    if model.cond_stage_model is None:
        return batch
    if model.cond_stage_key == "class_label":
        return {**batch, "class_label": torch.zeros(records, dtype=torch.long, device=model.device)}
    if model.cond_stage_key == "caption":
        return {**batch, "caption": ["image"] * records}
    return None
