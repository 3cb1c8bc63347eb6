"""One small table a variant of a private or a sampling step: microbatch sizes, precisions, compile and graphs.

python benchmarks/gpu_variants.py sizes --device cuda
python benchmarks/gpu_variants.py compile --device cuda
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file, from any folder

from benchmarks.performance import Page
from benchmarks.private_step import finish
from benchmarks.workloads import SIZES, build, make_rows
from ldm.cli import ArgumentParser, pick_device, run
from ldm.privacy.clipping import Clipping, PerRecordClipper

logger = logging.getLogger(__name__)


def seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median wall seconds of ``work()`` after two calls that are not timed."""
    found = []
    for number in range(rounds + 2):
        finish(device)
        started = time.perf_counter()
        work()
        finish(device)
        if number >= 2:
            found.append(time.perf_counter() - started)
    return statistics.median(found)


def clipped(model: Any, rows: Any, microbatch: int) -> Callable[[], object]:
    """A private step's sums over ``rows``, ``microbatch`` records at a time."""
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    clipper = PerRecordClipper(model, trained, Clipping(1.0))
    count = len(rows["t"])

    def work() -> object:
        for start in range(0, count, microbatch):
            part = {key: value[start : start + microbatch] for key, value in rows.items()}
            clipper.accumulate(model.per_example_losses, part)
        return clipper.pop_sums()

    return work


def plain(model: Any, rows: Any) -> Callable[[], object]:
    """Forward and backward of the mean loss."""

    def work() -> None:
        model.per_example_losses(rows).mean().backward()
        model.zero_grad(set_to_none=True)

    return work


def sizes(args: argparse.Namespace, page: Page) -> None:
    """The same logical batch in microbatches of several sizes."""
    page.table(f"{args.network}, attention, B {args.batch}", "records at once", "seconds", "records/s", "to one piece")
    model = build(SIZES[args.network], args.device)
    rows = make_rows(SIZES[args.network], args.batch, 1, args.device)
    whole = None
    for microbatch in (args.batch, args.batch // 4, args.batch // 16, 40, 15):
        found = seconds(clipped(model, rows, max(1, microbatch)), args.device, args.rounds)
        whole = whole or found
        page.row(str(microbatch), f"{found:.4g}", f"{args.batch / found:.4g}", f"{found / whole:.2f}")


@contextlib.contextmanager
def matrix_precision(name: str) -> Iterator[None]:
    """``torch.set_float32_matmul_precision`` within the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def precision(args: argparse.Namespace, page: Page) -> None:
    """float32, TF32 and bf16 in the forward and backward pass; norms and sums are float32 in all of them."""
    page.table(f"{args.network}, attention, B {args.batch}", "products", "plain s", "private s", "private / plain")
    model = build(SIZES[args.network], args.device)
    rows = make_rows(SIZES[args.network], args.batch, 1, args.device)
    honest = model.per_example_losses

    def half(some: Any) -> Any:
        with torch.autocast(args.device.type, dtype=torch.bfloat16):
            return honest(some)

    for name, level, loss in (("float32", "highest", honest), ("TF32", "high", honest), ("bf16", "high", half)):
        model.per_example_losses = loss
        with matrix_precision(level):
            without = seconds(plain(model, rows), args.device, args.rounds)
            private = seconds(clipped(model, rows, args.batch), args.device, args.rounds)
        page.row(name, f"{without:.4g}", f"{private:.4g}", f"{private / without:.2f}")


def compiled(args: argparse.Namespace, page: Page) -> None:
    """The network eagerly, compiled, and as one CUDA graph of its forward pass."""
    page.table(f"{args.network}, forward pass of {args.batch} latents", "how", "seconds", "to eager")
    model = build(SIZES[args.network], args.device).eval()
    rows = make_rows(SIZES[args.network], args.batch, 1, args.device)
    network, context = (
        model.model.diffusion_model,
        model.get_learned_conditioning({"class_label": rows["cond:class_label"]}),
    )
    ways = {"eager": None, "compile": "default", "compile, CUDA graph": "reduce-overhead"}
    eager = None
    with torch.no_grad():
        for name, mode in ways.items():
            try:
                run_network = network if mode is None else torch.compile(network, mode=mode)
                found = seconds(lambda: run_network(rows["z"], rows["t"], context=context), args.device, args.rounds)  # noqa: B023
            except Exception as error:  # no compiler, or an operation it does not know: that is the result
                page.row(name, f"does not run: {str(error).splitlines()[0][:80]}", "")
                continue
            eager = eager or found
            page.row(name, f"{found:.4g}", f"{found / eager:.2f}")


def sampling(args: argparse.Namespace, page: Page) -> None:
    """One network call of a sampler, in float32 and bf16."""
    page.table(f"{args.network}, one network call of a sampler", "latents", "products", "seconds", "latents/s")
    model = build(SIZES[args.network], args.device).eval()
    for count in (64, 512):
        rows = make_rows(SIZES[args.network], count, 1, args.device)
        context = model.get_learned_conditioning({"class_label": rows["cond:class_label"]})
        for name, on in (("float32", False), ("bf16", True)):

            def call() -> object:
                with torch.inference_mode(), torch.autocast(args.device.type, dtype=torch.bfloat16, enabled=on):  # noqa: B023
                    return model.apply_model(rows["z"], rows["t"], context)  # noqa: B023

            found = seconds(call, args.device, args.rounds)
            page.row(str(count), name, f"{found:.4g}", f"{count / found:.4g}")


VARIANTS = {"sizes": sizes, "precision": precision, "compile": compiled, "sampling": sampling}


def main() -> None:
    parser = ArgumentParser(prog="gpu_variants.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("variant", choices=list(VARIANTS), help="which table")
    add("--device", default="cuda", help="cuda, cuda:1 or cpu")
    add("--network", choices=list(SIZES), default="mnist", help="network")
    add("--batch", type=int, default=2048, metavar="B", help="records or latents")
    add("--rounds", type=int, default=7, help="timed calls of each kind")
    add("--output", type=Path, default=Path("results/gpu/variant.md"), help="where the table is written")
    args = parser.parse_args()
    for name in ("batch", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: give 1 or more")
    args.device = pick_device(args.device)
    place = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "CPU"
    page = Page(args.output)
    page.add(f"# {args.variant}", "", f"- {place}, torch {torch.__version__}, median of {args.rounds}")
    VARIANTS[args.variant](args, page)
    print("\n".join(page.lines))
    logger.info("written to %s", args.output)


if __name__ == "__main__":
    run(main)
