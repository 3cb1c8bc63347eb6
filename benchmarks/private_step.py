"""Time and memory of one private training step, by engine, next to the same step without privacy.

python benchmarks/private_step.py --sizes mnist cifar --batch 64 256
python benchmarks/private_step.py --sizes mnist --selection lora
python benchmarks/private_step.py --device cuda --output results/private_step_gpu.md
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file, from any folder

from benchmarks.engines import ENGINES, Engine, record_gradients
from benchmarks.workloads import SELECTIONS, SIZES, build, make_rows
from ldm.cli import ArgumentParser, pick_device, run
from ldm.errors import UserError
from ldm.files import write_text
from ldm.privacy.noise import GaussianNoise

logger = logging.getLogger(__name__)

PROBES = 8  # records whose clipped sum is also computed one by one
TOLERANCE = 1e-4  # relative, in float32
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    size: str
    batch: int
    engine: str
    copies: int = 1
    selection: str = "attention"
    chunk: int | None = None  # records at a time; None: all at once

    @property
    def title(self) -> str:
        return self.engine if self.copies == 1 else f"{self.engine}, {self.copies} noise draws a record"


@dataclass
class Result:
    """Seconds a step and GiB above the loaded model; None for what did not fit into the memory."""

    case: Case
    seconds: float | None = None
    memory: float | None = None


def cases(
    size: str,
    batch: int,
    engines: Sequence[str],
    selection: str = "attention",
    copies: Sequence[int] = (4,),
    chunk: int | None = None,
) -> list[Case]:
    """The rows of the table for one network, batch size and choice of what is trained.

    ``copies``: how many noise draws a record, besides one, the default engine is measured with. ``chunk``: how many
    records at most are computed on at a time.
    """
    found = [(engine, 1) for engine in engines]
    if "bookkeeping" in engines:
        found += [("bookkeeping", count) for count in copies]
    return [Case(size, batch, engine, count, selection, chunk) for engine, count in found]


class Step:
    """A whole training step of one case: gradients (clipped or not) and AdamW; noise is timed apart."""

    def __init__(self, case: Case, device: torch.device, bound: float) -> None:
        size = SIZES[case.size]
        self.case = case
        self.device = device
        self.rows = make_rows(size, case.batch, case.copies, device)
        self.engine: Engine = ENGINES[case.engine](build(size, device, case.selection), bound, case.copies)
        self.optimizer = torch.optim.AdamW(self.engine.trained.values(), lr=1e-5)

    def sums(self) -> dict[str, Tensor]:
        """The engine's sums over the batch, a chunk at a time."""
        size = (self.case.chunk or self.case.batch) * self.case.copies
        total: dict[str, Tensor] = {}
        for start in range(0, self.case.batch * self.case.copies, size):
            part = self.engine.sums({key: value[start : start + size] for key, value in self.rows.items()})
            total = {name: total[name].add_(value) if total else value for name, value in part.items()}
        return total

    def take(self) -> None:
        sums = self.sums()
        for name, parameter in self.engine.trained.items():
            parameter.grad = sums[name] / self.case.batch
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def timed(self) -> float:
        """Seconds of one step, everything that the device still has to do included."""
        finish(self.device)
        start = time.perf_counter()
        self.take()
        finish(self.device)
        return time.perf_counter() - start


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---------------------------------------------------------------------- do they compute the same?


def flat(sums: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([sums[name].double().flatten() for name in sorted(sums)])


def median_norm(size: str, device: torch.device, selection: str = "attention") -> float:
    """A clipping bound that half of the probe records exceed."""
    gradients = record_gradients(build(SIZES[size], device, selection), make_rows(SIZES[size], PROBES, 1, device), 1)
    return float(norms_of(gradients).median())


def norms_of(gradients: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([value.flatten(1).norm(dim=1) for value in gradients.values()]).norm(dim=0)


def check_agreement(steps: Sequence[Step], bound: float) -> None:
    """Raise UserError unless every private engine gives the clipped sum, of a few records and of the whole batch.

    For a few records the truth is a loop over them; for the batch, engines that agreed on those must agree again.
    """
    truths: dict[int, Tensor] = {}
    wholes: dict[int, tuple[str, Tensor]] = {}
    for step in steps:
        if step.case.engine == "non-private":
            continue
        copies = step.case.copies
        rows = {key: value[: PROBES * copies] for key, value in step.rows.items()}
        if copies not in truths:
            gradients = record_gradients(step.engine.model, rows, copies)
            factors = (bound / norms_of(gradients)).clamp(max=1.0)
            truths[copies] = flat({k: torch.einsum("b,b...->...", factors, v) for k, v in gradients.items()})
        compare(step.case, step.engine.sums(rows), "a loop over records", truths[copies])
        sums = step.sums()
        if copies in wholes:
            compare(step.case, sums, *wholes[copies])
        else:
            wholes[copies] = (step.case.title, flat(sums))


def compare(case: Case, sums: Mapping[str, Tensor], other: str, expected: Tensor) -> None:
    difference = float((flat(sums) - expected).norm() / expected.norm())
    logger.info("%s: differs from %s by %.1e", case.title, other, difference)
    if not difference < TOLERANCE:
        raise UserError(f"{case.title} and {other} disagree by {difference:.2g} ({case.size}): no table is written")


# ---------------------------------------------------------------------- memory, in a process of its own


def measure_memory(case: Case, device: torch.device) -> float:
    """GiB that steps of a case take at their peak above the loaded model and batch; run it in a fresh process."""
    step = Step(case, device, bound=1.0)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        before = peak_resident()
    for _ in range(2):  # the optimizer makes its state in the first one
        step.take()
    finish(device)
    after = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()
    return (after - before) / GIB


def peak_resident() -> int:
    """Largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would answer with the starting process's peak when that was larger
        return int(re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_of(case: Case, args: argparse.Namespace) -> float | None:
    """`measure_memory` in a fresh process; None when it was too much."""
    words = ["--only-memory", json.dumps(vars(case)), "--device", str(args.device), "--threads", str(args.threads)]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
    if done.returncode == 0:
        return float(done.stdout.splitlines()[-1])
    if done.returncode == -9 or "OutOfMemoryError" in done.stderr or "can't allocate memory" in done.stderr:
        logger.warning("%s does not fit into the memory (%s, batch %d)", case.title, case.size, case.batch)
        return None
    raise RuntimeError(f"{case.title}: the process that measures memory failed\n{done.stderr}")


# ---------------------------------------------------------------------- time


def measure(
    size: str, batch: int, selection: str, args: argparse.Namespace, tick: Callable[[], Any]
) -> tuple[list[Result], float]:
    """Results of all cases of a network, batch size and selection, and the seconds that noise takes a step."""
    device = args.device
    results = []
    for case in cases(size, batch, args.engines, selection, args.copies, args.chunk):
        results.append(Result(case, memory=memory_of(case, args)))
        tick()
    bound = median_norm(size, device, selection)
    fitting = [result for result in results if result.memory is not None]
    if not fitting:
        raise UserError(f"nothing fits into the memory ({size}, {selection}, batch {batch}); give a smaller --batch")
    steps = {result.case: Step(result.case, device, bound) for result in fitting}
    check_agreement(list(steps.values()), bound)  # also the warm-up
    times: dict[Case, list[float]] = {case: [] for case in steps}
    for _ in range(args.rounds):
        for case, step in steps.items():  # in turn, so that a busy minute of the machine hits all of them
            times[case].append(step.timed())
            gc.collect()
        tick()
    for result in fitting:
        result.seconds = statistics.median(times[result.case])
    some = next(iter(steps.values())).engine.trained
    return results, noise_seconds(some, device, args.rounds)


def noise_seconds(trained: Mapping[str, Tensor], device: torch.device, rounds: int) -> float:
    """Median seconds of drawing a step's noise, which every private engine needs besides."""
    noise = GaussianNoise(1.0)
    sums = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in trained.items()}
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        noise.add_(sums)
        finish(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


# ---------------------------------------------------------------------- the table


def table(results: Sequence[Result], noise: float) -> str:
    """Markdown rows of one network and batch size."""
    case = results[0].case
    plain = next((r.seconds for r in results if r.case.engine == "non-private"), None)
    model = build(SIZES[case.size], torch.device("cpu"), case.selection)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    chunks = f" in chunks of {case.chunk}" if case.chunk else ""
    lines = [
        f"## {case.size}, {case.selection}, batch {case.batch}{chunks}, {trained:,} trained values",
        "",
        "| step | seconds | images/s | times non-private | peak GiB above the model |",
        "|--|--|--|--|--|",
    ]
    for result in results:
        if result.seconds is None or result.memory is None:
            lines.append(f"| {result.case.title} | does not fit | | | |")
            continue
        ratio = f"{result.seconds / plain:.2f}" if plain else ""
        rate = case.batch / result.seconds
        lines.append(f"| {result.case.title} | {result.seconds:.4g} | {rate:.4g} | {ratio} | {result.memory:.2f} |")
    return "\n".join(
        [*lines, "", f"Noise: {noise:.4g} seconds a step, the same for every private engine, not included."]
    )


def facts(args: argparse.Namespace) -> str:
    """What was measured on what."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "opacus"))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    place = f"{processor()}, {os.cpu_count()} cores, {args.threads} threads"
    if args.device.type == "cuda":
        place = f"{torch.cuda.get_device_name(args.device)} (host: {place})"
    return "\n".join(
        [
            f"- `{shlex.join(['python', *sys.argv])}`",
            f"- {place}; load average before: {load}",
            f"- Python {platform.python_version()}, {versions}, float32 throughout",
            f"- seconds: median of {args.rounds} rounds in which the engines take turns, latents given, AdamW included",
            "- memory: highest point of two steps in a process of its own",
            f"- all private engines agreed on the clipped sum to a relative {TOLERANCE:g}",
        ]
    )


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="private_step.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:1")
    add("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="networks")
    add("--selection", nargs="+", choices=list(SELECTIONS), default=list(SELECTIONS), help="what is trained")
    add("--batch", nargs="+", type=int, default=[64, 256], metavar="B", help="records a step")
    add("--chunk", type=int, default=None, metavar="N", help="records at a time (default: the whole batch)")
    add("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), help="what to compare")
    add("--copies", nargs="*", type=int, default=[4], metavar="K", help="noise draws a record, for bookkeeping")
    add("--rounds", type=int, default=7, help="timed steps of each engine")
    add("--threads", type=int, default=os.cpu_count() or 1, help="computing threads")
    add("--output", type=Path, default=Path("results/private_step.md"), help="where the tables are written")
    add("--only-memory", default=None, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    for flag in ("rounds", "threads", "chunk"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            parser.error(f"--{flag} {getattr(args, flag)}: give 1 or more")
    if min(args.batch) < PROBES:
        parser.error(f"--batch {min(args.batch)}: give {PROBES} or more")
    if any(count < 2 for count in args.copies):
        parser.error(f"--copies {min(args.copies)}: give 2 or more, or nothing after --copies for one draw only")
    args.device = pick_device(args.device)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # engines are compared to single precision
    if args.only_memory is not None:
        print(measure_memory(Case(**json.loads(args.only_memory)), args.device))
        return
    parts = ["# Time and memory of a private step", facts(args)]
    jobs = [(size, batch, selection) for size in args.sizes for selection in args.selection for batch in args.batch]
    total = sum(len(cases(size, batch, args.engines, copies=args.copies)) + args.rounds for size, batch, _ in jobs)
    with tqdm(total=total, unit="measurement", disable=None) as bar:
        for size, batch, selection in jobs:
            bar.set_description(f"{size}, {selection}, batch {batch}")
            parts.append(table(*measure(size, batch, selection, args, bar.update)))
            gc.collect()
            if args.device.type == "cuda":
                torch.cuda.empty_cache()  # the next measurements of memory are other processes
    text = "\n\n".join(parts) + "\n"
    write_text(args.output, text)
    print(text)
    logger.info("written to %s", args.output)


if __name__ == "__main__":
    run(main)
