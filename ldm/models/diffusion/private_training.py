"""`PrivateTraining`: one DP-SGD step on a latent diffusion model, from a Poisson batch to noised gradients."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import state_digest
from ldm.errors import UserError
from ldm.models.diffusion.finetuning import Selection
from ldm.models.diffusion.protocols import PrivateModel
from ldm.privacy.clipping import Clipping, PerRecordClipper
from ldm.privacy.distributed import check_agreement, reduce_sums
from ldm.privacy.ledger import Ledger
from ldm.privacy.noise import GaussianNoise
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.randomness import LossDraws
from ldm.privacy.ranks import Ranks
from ldm.privacy.sums import FlatSums

logger = logging.getLogger(__name__)


class PrivateTraining:
    """Binds a plan, a ledger, a clipper and a noise source to a model, and takes logical steps (Abadi et al. 2016).

    A logical batch is one draw of the plan's sampler and is never merged with another. The step splits it into
    microbatches of at most ``max_batch_size`` records. The ledger records the step before the parameters change.

    ``module`` contains the layers of the parameters in ``selection``. Several processes may share the steps
    (``ranks``). Each process gets its part of every draw and keeps its own copy of the same ledger; the first process
    adds the noise and is the only one that writes files.
    """

    def __init__(
        self,
        module: nn.Module,
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
        self.clipper = PerRecordClipper(module, selection.parameters, clipping, engine=engine)
        self.on_release: Callable[[str | None], None] | None = None
        self.noise = GaussianNoise(plan.noise_std, insecure_seed=plan.insecure_seed, start=self.taken)
        self.draws = LossDraws(insecure_seed=plan.insecure_seed, start=self.taken)

    def begin(self) -> None:
        """Check that all connected processes follow the same plan, and seed the random draws of the loss."""
        self.ranks.check()
        check_agreement(f"plan {self.plan.digest()} from step {self.taken}")
        # The generators used for data augmentation must be secret too. Seed them here, because initializing
        # torch.distributed has just reset every process to the public training seed.
        device = next(iter(self.selection.parameters.values())).device
        self.draws.key(device, self.ranks.rank)

    def verify(self, model: PrivateModel) -> None:
        """Check once, on synthetic records, that per-record gradients add up to the ordinary gradient.

        Finds errors that no layer rule can detect, such as a weight that is used outside its layer. Costs two backward
        passes of at most two records; data, ledger and generators do not change. Raises UserError naming the parameter.
        """
        multiplicity = min(self.plan.noise_multiplicity, 2)
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            batch = model.example_batch(min(self.max_batch_size or 2, 2))
            if batch is None:
                logger.info("per-record gradients are not verified: no record with such a condition can be made up")
                return
            self.clipper.verify(model.per_example_losses, model.expand_batch(batch, multiplicity, None), multiplicity)

    def release(self, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the release card; call this before writing anything computed from the trained weights.

        ``state`` is given when the weights themselves are released; the card then lists the digest of their content.
        """
        if self.on_release is not None:
            self.on_release(state_digest(state) if state else None)

    def describe(self) -> str:
        """The epsilon spent so far, in one line."""
        epsilon = self.ledger.epsilon(self.plan.delta)
        return f"epsilon {epsilon:.4g} at delta {self.plan.delta:.3g} after {self.taken} of {self.plan.steps} steps"

    @property
    def taken(self) -> int:
        """Number of training steps in the ledger, without its charges for statistics."""
        return self.ledger.count(self.plan.event())

    @property
    def spent(self) -> bool:
        """Whether the plan's steps are used up."""
        return self.taken >= self.plan.steps

    def step(self, model: PrivateModel, batch: Mapping[str, Any]) -> None:
        """Take one step on one draw of the sampler. On an empty draw the step consists of noise only.

        Raises UserError when all steps of the plan have been taken.
        """
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

    def noised_gradients(self, model: PrivateModel, batch: Mapping[str, Any]) -> None:
        """Set ``.grad`` of every trained parameter to (clipped sum + noise) / expected batch size.

        The gradients are views of the one flat tensor of the sums.
        """
        for parameter in self.selection.parameters.values():
            parameter.grad = None  # its memory is free during the forward and backward passes
        with self.draws.step(model.device, self.ranks.rank):
            sums = self.clipped_sums(model, batch)
        self.ranks.check()
        if self.ranks.first:  # all processes share one noise draw, see ldm.privacy.distributed
            self.noise.add_(sums)
        reduce_sums(sums)
        sums.flat.div_(self.plan.expected_batch_size)
        for name, parameter in self.selection.parameters.items():
            parameter.grad = sums[name].to(parameter.dtype)

    def clipped_sums(self, model: PrivateModel, batch: Mapping[str, Any]) -> FlatSums:
        """Sum of the clipped per-record gradients of the batch, float32."""
        multiplicity = self.plan.noise_multiplicity
        examples = model.expand_batch(batch, multiplicity, self.max_batch_size)
        records = len(examples["t"]) // multiplicity
        microbatch = self.max_batch_size or max(records, 1)
        for start in range(0, records, microbatch):
            part = slice(start * multiplicity, min(start + microbatch, records) * multiplicity)
            self.clipper.accumulate(
                model.per_example_losses, {key: value[part] for key, value in examples.items()}, multiplicity
            )
        return self.clipper.pop_sums()

    def state_dict(self) -> dict[str, Any]:
        """The plan and the ledger as plain containers, for a checkpoint."""
        return {"plan": self.plan.to_dict(), "ledger": self.ledger.to_dict()}
