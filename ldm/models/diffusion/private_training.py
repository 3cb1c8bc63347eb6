"""`PrivateTraining`: one DP-SGD step on a latent diffusion model, from a Poisson batch to noised gradients."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import state_digest
from ldm.errors import UserError
from ldm.models.diffusion.finetuning import Selection
from ldm.models.diffusion.microbatch import filled, fitting_size, largest_that_runs, out_of_memory, size_by_estimate
from ldm.models.diffusion.protocols import PrivateModel
from ldm.numbers import rounded_up
from ldm.privacy.clipping import Clipping, PerRecordClipper
from ldm.privacy.config import AUTO
from ldm.privacy.distributed import check_agreement, reduce_sums
from ldm.privacy.ledger import Ledger
from ldm.privacy.noise import GaussianNoise
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.randomness import LossDraws
from ldm.privacy.ranks import Ranks
from ldm.privacy.sums import FlatSums

logger = logging.getLogger(__name__)

#: Records whose step is timed for the estimate of the time that is left.
LARGEST_MADE_UP = 64
#: Records of the pass before it, whose time does not count.
UNTIMED = 4


class PrivateTraining:
    """Binds a plan, a ledger, a clipper and a noise source to a model, and takes logical steps (Abadi et al. 2016).

    A logical batch is one draw of the plan's sampler and is never merged with another. The step splits it into
    microbatches of at most ``max_batch_size`` records: a number, all (None), or as many as the memory holds (``auto``).
    The sums do not depend on it. On a GPU the last microbatch is filled with records without weight, so that all have
    one shape. The ledger records the step before the parameters change.

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
        max_batch_size: int | str | None = None,
        engine: str = "bookkeeping",
    ):
        self.plan = plan
        self.ledger = ledger
        self.selection = selection
        self.adapts = max_batch_size == AUTO
        self.max_batch_size = None if isinstance(max_batch_size, str) else max_batch_size
        #: Whether the last microbatch is filled up; None: on a GPU, where one shape is worth more than its rows cost.
        self.fills: bool | None = None
        #: Called with a new microbatch size, which a resumed run may start from.
        self.on_microbatch: Callable[[int], None] | None = None
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

    def seconds_a_step(self, model: PrivateModel) -> float | None:
        """Seconds of the plan's expected batch, measured on one microbatch of made-up records; None without any.

        The real duration of a step follows the size of its draw, so an estimate that is shown must not use it. Data,
        ledger and generators do not change.
        """
        records = min(self.max_batch_size or LARGEST_MADE_UP, LARGEST_MADE_UP, int(self.plan.expected_batch_size) or 1)
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            batch = model.example_batch(records)
            if batch is None:
                return None
            multiplicity = self.plan.noise_multiplicity
            rows = model.expand_batch(batch, multiplicity, self.max_batch_size)
            few = {name: row[: UNTIMED * multiplicity] for name, row in rows.items()}
            self._seconds_of(model, few)  # starts libraries, which can take ten times as long as the computation
            seconds = self._seconds_of(model, rows)
        return seconds * self.plan.expected_batch_size / records

    def _seconds_of(self, model: PrivateModel, rows: Mapping[str, Tensor]) -> float:
        started = time.perf_counter()
        self.clipper.accumulate(model.per_example_losses, rows, self.plan.noise_multiplicity)
        sums = self.clipper.pop_sums()
        float(next(iter(sums.values())).sum())  # waits for the device
        return time.perf_counter() - started

    def release(self, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the release card; call this before writing anything computed from the trained weights.

        ``state`` is given when the weights themselves are released; the card then lists the digest of their content.
        """
        if self.on_release is not None:
            self.on_release(state_digest(state) if state else None)

    def describe(self) -> str:
        """The epsilon spent so far, in one line."""
        epsilon, delta = rounded_up(self.ledger.epsilon(self.plan.delta)), rounded_up(self.plan.delta, 3)
        return f"epsilon {epsilon} at delta {delta} after {self.taken} of {self.plan.steps} steps"

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
        examples = model.expand_batch(batch, self.plan.noise_multiplicity, self.max_batch_size)
        while True:
            try:
                self._accumulate(model, examples)
                return self.clipper.pop_sums()
            except (RuntimeError, MemoryError) as error:
                if not (self.adapts and out_of_memory(error) and self.max_batch_size != 1):
                    raise
            # the same examples once more in smaller parts: nothing of the first attempt is kept
            self.clipper.drop_sums()
            torch.cuda.empty_cache()
            # a function of public numbers, not of the records that were drawn
            size = self.max_batch_size or fitting_size(self.plan.expected_batch_size, 0)
            self._set_microbatch(-(-size // 2))

    def _accumulate(self, model: PrivateModel, examples: Mapping[str, Tensor]) -> None:
        multiplicity = self.plan.noise_multiplicity
        records = len(examples["t"]) // multiplicity
        microbatch = self.max_batch_size or max(records, 1)
        fills = model.device.type == "cuda" if self.fills is None else self.fills
        for start in range(0, records, microbatch):
            part = slice(start * multiplicity, min(start + microbatch, records) * multiplicity)
            weighted = min(microbatch, records - start)
            rows = {key: value[part] for key, value in examples.items()}
            if fills and weighted < microbatch:
                rows = filled(rows, microbatch * multiplicity)
            self.clipper.accumulate(model.per_example_losses, rows, multiplicity, weighted)

    def choose_microbatch(self, model: PrivateModel) -> None:
        """With ``max_batch_size: auto``, find the microbatch size, on made-up records: nothing private is looked at.

        A GPU tries sizes until one fits; on a CPU the size follows from what autograd saves for one record. A size that
        is known (from the run directory) is kept.
        """
        if not self.adapts or self.max_batch_size is not None:
            return
        expected, multiplicity = self.plan.expected_batch_size / self.ranks.size, self.plan.noise_multiplicity
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            batch = model.example_batch(1)
            if batch is None:  # nothing to try it on; it is halved when it does not fit
                self._set_microbatch(fitting_size(expected, 0))
                return
            rows = model.expand_batch(batch, multiplicity, None)
            if model.device.type != "cuda":
                self._set_microbatch(size_by_estimate(expected, model.per_example_losses, rows))
                return

            def attempt(size: int) -> None:
                later = torch.empty(3 * self.selection.count, device=model.device)  # the optimizer's state, and sums
                try:
                    self.clipper.accumulate(model.per_example_losses, filled(rows, size * multiplicity), multiplicity)
                finally:
                    self.clipper.drop_sums()
                    del later

            self._set_microbatch(largest_that_runs(expected, attempt))

    def _set_microbatch(self, size: int) -> None:
        self.max_batch_size = size
        logger.info("max_batch_size auto: gradients of %d records at once", size)
        if self.on_microbatch is not None:
            self.on_microbatch(size)

    def state_dict(self) -> dict[str, Any]:
        """The plan and the ledger as plain containers, for a checkpoint."""
        return {"plan": self.plan.to_dict(), "ledger": self.ledger.to_dict()}
