"""The output of ``main.py --dry-run``: the plan of a run and its cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ldm.config import to_plain
from ldm.data.module import DataModuleFromConfig
from ldm.models.diffusion.microbatch import fitting_size, free_memory
from ldm.numbers import duration, rounded_up
from ldm.privacy.accounting import Spending, joint_epsilon
from ldm.privacy.config import AUTO
from ldm.privacy.event import History
from ldm.privacy.plan import PrivacyPlan
from ldm.training.devices import device_count, own_device
from ldm.training.estimate import Needs, count_needs, measured_rate
from ldm.training.private_checks import requested_length
from ldm.training.request import RunRequest
from ldm.training.run_account import count_training_records
from ldm.training.statistics_plan import charges_before

#: Share of the free memory that a microbatch is expected to fill.
ROOM = 0.8


def plan_lines(
    request: RunRequest,
    data: DataModuleFromConfig,
    plan: PrivacyPlan | None,
    taken: int,
    rate: float,
    others: Sequence[Spending] = (),
) -> list[str]:
    """The plan of a run, a line each: data, privacy, learning rate, memory and time.

    ``taken`` is the number of steps already in the ledger of a resumed private run; ``rate`` is the learning rate.
    ``others`` is what other private runs on the same records have spent.
    """
    records = count_training_records(data) if "train" in data.datasets else 0
    lines = [f"run directory   {request.run_dir.path}"]
    if request.resume is not None:
        lines.append(f"goes on from    {request.resume}")
    warm_up = request.dp_config.get("warm_up") if plan is not None else None
    if plan is not None:
        before = charges_before(warm_up, plan.relation)
        lines += privacy_lines(plan, taken, records, before, others)
    else:
        lines += public_lines(request, data, records)
    lines.append(f"learning rate   {rate:.3g}")
    multiplicity = plan.noise_multiplicity if plan is not None else 1
    needs = count_needs(to_plain(request.config.model))
    device = own_device(request.settings)
    microbatch = data.batch_size
    if plan is not None:
        microbatch, described = microbatch_of(request.dp_config.get("max_batch_size"), plan, needs, device)
        lines.append(f"microbatch      {described}")
    steps = plan.steps - taken if plan is not None else planned_public_steps(request, data, records)
    rows = None if steps is None else steps * data.batch_size * multiplicity
    if warm_up and rows is not None and request.resume is None:
        draws = warm_up.get("training") or {}
        rows += draws.get("steps", 0) * draws.get("batch_size", 0)
    return lines + need_lines(needs, device, microbatch * multiplicity, rows)


def microbatch_of(chosen: Any, plan: PrivacyPlan, needs: Needs | None, device: str) -> tuple[int, str]:
    """Records of a private step that are computed on at once, and a description; ``chosen`` as in dp_config."""
    expected = plan.expected_batch_size
    if chosen is None:
        return round(expected), f"the whole batch ({expected:g} records)"
    if chosen != AUTO:
        return int(chosen), f"{chosen} records"
    size = fitting_size(expected, 0)
    if needs is None:
        return size, f"auto, at most {size} records"
    free = memory_of(device) / 2**30
    halvings = 0
    while size > 1 and needs.memory(size * plan.noise_multiplicity) > ROOM * free:
        halvings += 1
        size = fitting_size(expected, halvings)
    return size, f"auto, about {size} records in {free:.1f} GiB (measured when the run starts)"


def memory_of(device: str) -> int:
    """Free bytes of a device."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else free_memory()


def privacy_lines(
    plan: PrivacyPlan, taken: int, records: int, before: History = (), others: Sequence[Spending] = ()
) -> list[str]:
    """The privacy plan in numbers. Its epsilon charges the statistics ``before`` and ``others``, as the card does."""
    spent = joint_epsilon([*others, ([*before, (plan.event(), plan.steps)], plan.selection)], plan.delta)
    statistics = [
        f"statistics      noise multiplier {event.noise_multiplier:.4g}, released once" for event, _ in before
    ]
    return [
        f"records         {records} in the training set, {plan.num_records} stated",
        f"sampling        {plan.sampling}, rate q = {plan.sample_rate:.6g}, expected batch "
        f"{plan.expected_batch_size:g}, noise multiplicity {plan.noise_multiplicity}",
        *statistics,
        f"steps           {plan.steps}" + (f", of which {taken} are taken" if taken else ""),
        f"noise           sigma = {plan.noise_multiplier:.6g} times the sensitivity, clipping norm "
        f"{plan.max_grad_norm:g}",
        f"privacy         epsilon = {rounded_up(spent)} at delta = {rounded_up(plan.delta, 6)} ({plan.relation})"
        + (", with the statistics" if before else "")
        + (f", with {len(others)} other runs" if others else "")
        + ("" if plan.secure else "; insecure_seed is set: NOT private"),
    ]


def public_lines(request: RunRequest, data: DataModuleFromConfig, records: int) -> list[str]:
    """The plan of a run without privacy in numbers."""
    steps = planned_public_steps(request, data, records)
    return [
        f"records         {records} in the training set",
        f"batch           {data.batch_size}",
        f"steps           {'until it is stopped' if steps is None else steps}",
        "privacy         none: dp_config is off",
    ]


def planned_public_steps(request: RunRequest, data: DataModuleFromConfig, records: int) -> int | None:
    """Optimizer steps of a run without privacy; None when its configuration gives no length."""
    epochs, steps = requested_length(request.settings)
    if steps is not None or epochs is None:
        return steps
    rows = data.batch_size * device_count(request.settings) * int(request.settings.get("accumulate_grad_batches") or 1)
    return int(epochs) * -(-records // rows)


def need_lines(needs: Needs | None, device: str, rows: int, total: int | None) -> list[str]:
    """Memory and time, or a note that they were not estimated."""
    if needs is None:
        return ["memory, time    not estimated for this kind of model"]
    lines = [
        f"parameters      {needs.parameters:,}, of which {needs.trained:,} are trained",
        f"memory          about {needs.memory(rows):.2f} GiB on {device} ({rows} rows at a time)",
    ]
    if total is not None:
        least = needs.seconds(total, measured_rate(device))
        lines.append(f"time            at least {duration(least)} (at the speed of plain matrix products on {device})")
    return lines
