"""CPU time of sampling: samplers, decoding, precision, compiled networks, and two processes against one.

python benchmarks/sampling_time.py --rounds 5

All cases take turns in one process that has one thread; the table has medians of CPU time, relative to the first case
of their group. Two processes are forked after the model is loaded; the CPU time of the longer one counts, which is the
wall time on two idle cores.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.cli import ArgumentParser, run
from ldm.inference import SamplingOptions

CONFIG, CKPT = "configs/quickstart/finetune-dp-eps10.yaml", "checkpoints/glyphs32-ldm.safetensors"
Case = Callable[[], float]


def cpu(work: Callable[[], Any]) -> float:
    """CPU seconds of ``work``."""
    start = time.process_time()
    work()
    return time.process_time() - start


def in_processes(work: Sequence[Callable[[], Any]]) -> float:
    """The largest CPU time of the parts, each in a forked process, all at the same time."""
    reads = []
    for part in work:
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, f"{cpu(part)}".encode())
            os._exit(0)
        os.close(write)
        reads.append(read)
    times = [float(os.read(read, 100)) for read in reads]
    for _ in reads:
        os.wait()
    return max(times)


def groups(images: int, compiled: bool) -> dict[str, dict[str, Case]]:
    """The cases by group; the first of a group is what the others are compared with."""
    import torch

    from ldm.inference import draw_samples, load_model
    from ldm.inference.decode import Decoder
    from ldm.inference.generate import sample_batches
    from ldm.samples.shards import Shard

    model = load_model(CONFIG, CKPT, torch.device("cpu"))

    def sampler(name: str, steps: int, guidance: float = 1.0, of: Any = model, **more: Any) -> Case:
        options = SamplingOptions(sampler=name, steps=steps, guidance=guidance, seed=0, batch_size=images, **more)
        return lambda: cpu(lambda: draw_samples(of, images, options, range(10)))

    latents = torch.randn(images, *model.latent_shape)
    plain = copy.deepcopy(model)
    decoder = Decoder(model)

    def decode_plainly() -> None:
        with torch.no_grad():
            plain.decode_first_stage(latents).float().clamp(-1, 1).cpu()

    halves = SamplingOptions(steps=20, seed=0, batch_size=images)
    labels = torch.arange(4 * images) % 10

    def part(shard: Shard) -> Callable[[], Any]:
        return lambda: list(sample_batches(model, 4 * images, halves, labels, shard.part(4), progress=False))

    found: dict[str, dict[str, Case]] = {
        f"{images} images": {
            "ddim 200": sampler("ddim", 200),
            "ddim 20": sampler("ddim", 20),
            "ddim 15": sampler("ddim", 15),
            "ddim 10": sampler("ddim", 10),
            "dpm-solver++ 10": sampler("dpm-solver++", 10),
            "unipc 10": sampler("unipc", 10),
            "ddim 10, guidance 2": sampler("ddim", 10, 2.0),
            "dpm-solver++ 10, guidance 2": sampler("dpm-solver++", 10, 2.0),
            "unipc 8, guidance 2": sampler("unipc", 8, 2.0),
        },
        f"decoding {images} images": {
            "plain": lambda: cpu(decode_plainly),
            "channels last": lambda: cpu(lambda: decoder(latents)),
        },
        f"{4 * images} images, ddim 20": {
            "one process": lambda: in_processes([part(Shard(0, 1))]),
            "two processes": lambda: in_processes([part(Shard(0, 2)), part(Shard(1, 2))]),
        },
    }
    if compiled:
        other = load_model(CONFIG, CKPT, torch.device("cpu"))
        first = cpu(lambda: draw_samples(other, images, SamplingOptions(steps=2, batch_size=images, compile=True), [0]))
        found[f"compiled, ddim 20 (compiling: {first:.0f} s)"] = {
            "eager": sampler("ddim", 20),
            "compiled": sampler("ddim", 20, of=other),
        }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure in rounds, print the table."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=int, default=5)
    add("--images", type=int, default=50, help="images a case")
    add("--compile", action="store_true", help="measure a compiled network too")
    args = parser.parse_args(argv)

    import torch

    torch.set_num_threads(1)
    cases = groups(args.images, args.compile)
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.rounds):
        for group, some in cases.items():
            for name, case in some.items():
                taken.setdefault((group, name), []).append(case())
    print(f"load {os.getloadavg()[0]:.1f}, {args.rounds} rounds, medians of CPU time")
    print("| | | CPU s | ratio | range of ratios |\n|--|--|--|--|--|")
    for group, some in cases.items():
        first = taken[group, next(iter(some))]
        for name in some:
            values = taken[group, name]
            ratios = sorted(value / one for value, one in zip(values, first, strict=True))
            print(
                f"| {group} | {name} | {statistics.median(values):.3f} | {statistics.median(ratios):.3f} | "
                f"{ratios[0]:.3f}..{ratios[-1]:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    run(main)
