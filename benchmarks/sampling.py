"""Cost and quality of samplers by number of steps: distance, label agreement, downstream accuracy, CPU time.

python benchmarks/sampling.py --private logs/RUN --output results/sampling.json

Two models of digits: the shipped public one, measured against the public pictures it was trained on, and a private
fine-tuning of it (`make quickstart`), measured against the real digits. Rows of the output file are not made again.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.cli import ArgumentParser, run
from ldm.inference import SamplingOptions

CONFIG = "configs/quickstart/finetune-dp-eps10.yaml"
PUBLIC = "checkpoints/glyphs32-ldm.safetensors"

#: guidance, sampler, steps, eta; the last is that of the published commands, and the dearest.
ROWS = (
    (1.0, "ddim", 20, 1.0),
    (1.0, "ddim", 15, 1.0),
    (1.0, "ddim", 10, 1.0),
    (1.0, "unipc", 10, 0.0),
    (2.0, "ddim", 20, 1.0),
    (2.0, "ddim", 10, 1.0),
    (2.0, "dpm-solver++", 10, 0.0),
    (2.0, "unipc", 8, 0.0),
    (1.0, "ddim", 200, 1.0),
)


#: Rows of autoguidance by the public model.
GUIDED = ((1.5, "ddim", 15, 1.0), (2.0, "ddim", 15, 1.0), (1.5, "unipc", 10, 0.0))


@dataclass(frozen=True)
class Row:
    """One sampler at one guidance: its scores by seed, and the CPU time of sampling an image, in seconds."""

    model: str
    sampler: str
    steps: int
    eta: float
    guidance: float
    seed: int
    distance: float
    agreement: float
    accuracy: float
    seconds: float
    guided: bool = False  # by the public model, not by the empty condition

    @property
    def key(self) -> str:
        return f"{self.model} {self.sampler} {self.steps} {self.eta} {self.guidance} {self.seed} {self.guided}"


def measure(
    name: str, checkpoint: str, scorer: Any, cases: Sequence[SamplingOptions], done: dict[str, Any], guide: bool
) -> Any:
    """Rows of one model that are not ``done``, one by one."""
    import torch

    from ldm.inference import draw_samples, load_model

    model = load_model(CONFIG, checkpoint, scorer.device)
    weaker = load_model(CONFIG, PUBLIC, scorer.device) if guide else None
    for options in cases:
        assert options.seed is not None
        row = Row(
            name, options.sampler, options.steps, options.eta, options.guidance, options.seed, 0.0, 0.0, 0.0, 0.0, guide
        )
        if row.key in done:
            continue
        start = time.process_time()
        samples = draw_samples(model, scorer.options.samples, options, range(10), guide=weaker)
        seconds = (time.process_time() - start) / len(samples)
        with torch.inference_mode():
            said = scorer.features.logits(scorer.features(samples.images)).argmax(1).cpu()
        yield replace(
            row,
            distance=scorer.distance(samples),
            agreement=float((said == samples.labels).float().mean()),
            accuracy=scorer.accuracy(samples, options.seed),
            seconds=seconds,
        )


def table(rows: Sequence[Row]) -> str:
    """Mean and spread over the seeds, and the cost relative to the first row of a model at guidance 1."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault((row.model, row.guided, row.guidance, row.sampler, row.steps, row.eta), []).append(row)
    lines = ["| model | guidance | sampler | distance | agreement | accuracy | CPU |", "|--|--|--|--|--|--|--|"]
    base = {key[0]: statistics.median(r.seconds for r in some) for key, some in found.items() if key[4] == 200}
    for (model, guided, guidance, sampler, steps, eta), some in sorted(found.items(), key=str):

        def show(name: str, factor: float, some: Sequence[Row] = some) -> str:
            values = [factor * getattr(row, name) for row in some]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            return f"{statistics.fmean(values):.1f}{spread}"

        cost = statistics.median(row.seconds for row in some) / base.get(model, 1.0)
        by = " by the public model" if guided else ""
        name = f"{sampler} {steps}{f' eta {eta:g}' if sampler == 'ddim' else ''}"
        scores = " | ".join([show("distance", 1), show("agreement", 100), show("accuracy", 100)])
        lines.append(f"| {model} | {guidance:g}{by} | {name} | {scores} | {cost:.3f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write after every row, and print the table."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--private", metavar="CKPT", help="checkpoint of a private fine-tuning of the public model")
    add("--output", default="results/sampling.json", help="all rows; those that are there are not made again")
    add("--num_samples", type=int, default=600, help="images a row and seed")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of sampling and classifier; one process may do each")
    add("--models", nargs="+", choices=("private", "public"), default=["private", "public"])
    add("--guide", action="store_true", help="guidance by the public model, in place of the other rows")
    add("--table", nargs="+", metavar="JSON", help="measure nothing; print the table of these files")
    add("--epochs", type=int, default=8, help="of every classifier")
    args = parser.parse_args(argv)
    if args.table:
        print(table([Row(**row) for file in args.table for row in json.loads(Path(file).read_text())["rows"]]))
        return
    if not args.private:
        parser.error("the following arguments are required: --private")

    import torch

    from ldm.data.glyphs import GlyphsTrain, GlyphsVal
    from ldm.data.mnist import MNIST5kTrain, MNIST5kVal
    from ldm.evaluation.inputs.sources import collect
    from ldm.evaluation.metrics.statistics import compare
    from ldm.files import write_text
    from ldm.reports.quickstart import ReportOptions, Scorer

    class Scores(Scorer):
        def distance(self, samples: Any) -> float:
            return compare(self.statistics(samples, "samples"), self.reference)

    output = Path(args.output)
    rows = [Row(**row) for row in json.loads(output.read_text())["rows"]] if output.exists() else []
    options = ReportOptions(samples=args.num_samples, epochs=args.epochs)
    device = torch.device("cpu")
    public = collect(GlyphsTrain(count=6000, classes="digits"), progress=False)
    held_out = collect(GlyphsVal(classes="digits"), progress=False)
    real, real_held_out = (collect(part(), progress=False) for part in (MNIST5kTrain, MNIST5kVal))
    private = Scores(options, public, real, real_held_out, device)
    other = copy.copy(private)  # the same features
    other.held_out, other.reference = held_out, private.statistics(public, "public")
    models = {"private": (args.private, private), "public": (PUBLIC, other)}
    for name in args.models:
        checkpoint, scorer = models[name]
        for seed in args.seeds:
            cases = [
                SamplingOptions(steps=steps, eta=eta, guidance=guidance, sampler=sampler, seed=seed, batch_size=300)
                for guidance, sampler, steps, eta in (GUIDED if args.guide else ROWS)
            ]
            for row in measure(name, checkpoint, scorer, cases, {row.key: row for row in rows}, args.guide):
                rows.append(row)
                content = {"command": vars(args), "rows": [asdict(row) for row in rows]}
                write_text(output, json.dumps(content, indent=1))
    print(table(rows))


if __name__ == "__main__":
    run(main)
