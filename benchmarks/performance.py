"""Speed, memory and start-up of training, in one page that is written after every case.

python benchmarks/performance.py
python benchmarks/performance.py --sections step --batch 64 --rounds 11
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file, from any folder

from benchmarks.operations import microbatch_operations
from benchmarks.private_step import GIB, finish, peak_resident, processor
from benchmarks.whole_step import PARTS, PlainStep, PrivateStep, Workload, compare
from benchmarks.workloads import SELECTIONS
from ldm.cli import ArgumentParser, pick_device, run
from ldm.files import write_text
from ldm.training.allocator import keep_freed_memory

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Page:
    """The page of results; it is on disk after every line."""

    file: Path
    lines: list[str] = field(default_factory=list)

    def add(self, *lines: str) -> None:
        """Append lines and write the whole page."""
        self.lines += lines
        text = "\n".join(self.lines) + "\n"
        write_text(self.file, text)

    def table(self, title: str, *columns: str) -> None:
        """Begin a section with a table."""
        self.add("", f"## {title}", "", f"| {' | '.join(columns)} |", "|--" * len(columns) + "|")

    def row(self, *cells: str) -> None:
        """Append a row to the latest table."""
        self.add(f"| {' | '.join(cells)} |")


Section = Callable[[argparse.Namespace, Page], None]


def step(args: argparse.Namespace, page: Page) -> None:
    """Whole steps, private to plain."""
    page.table(
        "A private step against the same step without privacy",
        "network, trained, batch",
        "private / plain (rounds)",
        "gradients (plain)",
        "noise",
        "AdamW",
        "average",
        "memory above the model, private / plain",
    )
    loads = [Workload(args.size, selection, batch) for batch in args.batch for selection in args.selection]
    if not args.no_copies:
        loads.append(Workload(args.size, "attention", max(1, args.batch[0] // 4), copies=4))
    for load in tqdm(loads, unit="case", disable=None):
        timing = compare(load, args.device, args.rounds)
        low, high = timing.spread
        shares = [f"{timing.share(timing.private, part):.3f}" for part in PARTS]
        shares[0] += f" ({timing.share(timing.plain, PARTS[0]):.3f})"
        plain, private = (memory_of(load, kind, args) for kind in ("plain", "private"))
        memory = f"{private:.3f} / {plain:.3f} GiB = {private / plain:.2f}" if plain > 0 else "too small to tell"
        page.row(load.title, f"**{timing.ratio:.2f}** ({low:.2f} to {high:.2f})", *shares, memory)


def operations(args: argparse.Namespace, page: Page) -> None:
    """Operations of a microbatch."""
    page.table("Operations that one microbatch launches", "network, trained", "plain", "private", "ratio")
    for selection in args.selection:
        plain, private = microbatch_operations(args.size, selection, records=16)
        page.row(f"{args.size}, {selection}", str(plain), str(private), f"{private / plain:.2f}")


def start_up(args: argparse.Namespace, page: Page) -> None:
    """CPU time until a command answers."""
    page.table("Start-up, CPU time", "command", "seconds", "times `import torch`")
    commands = {
        "import torch": ["-c", "import torch"],
        "main.py --help": ["main.py", "--help"],
        "scripts/privacy_budget.py --help": ["scripts/privacy_budget.py", "--help"],
    }
    unit = 0.0
    for name, words in commands.items():
        found = sorted(child_seconds([sys.executable, *words]) for _ in range(3))[1]
        unit = unit or found
        page.row(f"`{name}`", f"{found:.2f}", f"{found / unit:.2f}")


def epoch(args: argparse.Namespace, page: Page) -> None:
    """A private run through main.py: where its CPU time goes."""
    page.table("A private run through `main.py` (quickstart, 4,000 digits)", "part of the CPU time of fitting", "share")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.epoch", "--steps", "4"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        page.row("not measured", (done.stderr.strip().splitlines() or ["no reason given"])[-1][:120])
        return
    for name, share in json.loads(done.stdout.splitlines()[-1]).items():
        page.row(name, f"{100 * share:.1f} %")


#: The sections of the page by name; what samples adds its own.
SECTIONS: dict[str, Section] = {"step": step, "operations": operations, "start-up": start_up, "epoch": epoch}


def child_seconds(command: list[str]) -> float:
    """CPU seconds, user and system, of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def memory_of(load: Workload, kind: str, args: argparse.Namespace) -> float:
    """GiB above the model at the highest point of two steps, in a process of its own."""
    words = ["--only-memory", json.dumps({**vars(load), "kind": kind}), "--device", str(args.device)]
    words += ["--threads", str(args.threads)]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure_memory(text: str, device: torch.device) -> float:
    """The same in this process, which must be fresh."""
    given = json.loads(text)
    kind = {"plain": PlainStep, "private": PrivateStep}[given.pop("kind")]
    taken = kind(Workload(**given), device)
    cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if cuda else peak_resident()
    for _ in range(2):  # the optimizer makes its state in the first one
        taken.take()
    finish(device)
    return ((torch.cuda.max_memory_allocated(device) if cuda else peak_resident()) - before) / GIB


def facts(args: argparse.Namespace) -> list[str]:
    """What was measured on what."""
    place = f"{processor()}, {os.cpu_count()} cores, {args.threads} threads"
    clock = "CPU time of the process, noise and optimizer included"
    if args.device.type == "cuda":
        place, clock = f"{torch.cuda.get_device_name(args.device)} (host: {place})", "wall time"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        "# Performance",
        "",
        f"- `{shlex.join(['python', *sys.argv])}`, {time.strftime('%B %Y')}",
        f"- {place}; load average at the start: {load}",
        f"- Python {platform.python_version()}, torch {torch.__version__}, float32",
        f"- ratios: {clock}, plain and private steps in turn, median of {args.rounds} rounds (smallest to largest)",
        "- the plain step has its best: fused AdamW, one `_foreach_lerp_` for the average; parts are shares of it",
    ]


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="performance.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:1")
    add("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="what to measure")
    add("--size", default="mnist", choices=["mnist", "cifar"], help="network")
    add("--selection", nargs="+", choices=list(SELECTIONS), default=list(SELECTIONS), help="what is trained")
    add("--batch", nargs="+", type=int, default=[64, 256], metavar="B", help="records a step")
    add("--no-copies", action="store_true", help="leave out the case with several noise draws a record")
    add("--rounds", type=int, default=9, help="timed steps of each kind")
    add("--threads", type=int, default=1, help="computing threads")
    add("--output", type=Path, default=Path("results/performance.md"), help="the page")
    add("--only-memory", default=None, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    for name in ("rounds", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: give 1 or more")
    if min(args.batch) < 1:
        parser.error(f"--batch {min(args.batch)}: give 1 or more")
    args.device = pick_device(args.device)
    torch.set_num_threads(args.threads)
    if args.device.type == "cpu":
        keep_freed_memory()  # as the trainer does
    if args.only_memory is not None:
        print(measure_memory(args.only_memory, args.device))
        return
    page = Page(args.output)
    page.add(*facts(args))
    for name in args.sections:
        SECTIONS[name](args, page)
    print("\n".join(page.lines))
    logger.info("written to %s", args.output)


if __name__ == "__main__":
    run(main)
