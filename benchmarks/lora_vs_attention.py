"""Adapters beside whole attention modules under the same epsilon, on the quickstart's real digits.

python benchmarks/lora_vs_attention.py --output results/lora_vs_attention.md

Every cell is several private fine-tunings that differ in the seed of their noise, each scored as the quickstart scores
its models; medians are shown. A cell that is in the work folder already is not computed again.
"""

from __future__ import annotations

import json
import logging
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ldm.cli import ArgumentParser, pick_device, run
from ldm.data.glyphs import GlyphsTrain
from ldm.data.mnist import MNIST5kTrain, MNIST5kVal
from ldm.errors import UserError
from ldm.evaluation.inputs.sources import collect
from ldm.files import write_text
from ldm.numbers import rounded_up
from ldm.privacy.card import ReleaseCard
from ldm.reports.quickstart import ReportOptions, Scorer, last_checkpoint, model_samples

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "attention": "configs/quickstart/finetune-dp-eps10.yaml",
    "LoRA": "configs/quickstart/finetune-lora-dp-eps10.yaml",
}


@dataclass(frozen=True)
class Cell:
    """One private fine-tuning: what is trained, epsilon, noise draws a record, steps, and the seed of the noise."""

    kind: str
    epsilon: float
    copies: int
    steps: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}-eps{self.epsilon:g}-k{self.copies}-steps{self.steps}-seed{self.seed}"

    def train(self, folder: Path, device: torch.device) -> Path:
        """Fine-tune; returns the run directory."""
        where = ["--gpus", "0,"] if device.type == "cuda" else ["--accelerator", "cpu"]
        overrides = {"epsilon": self.epsilon, "noise_multiplicity": self.copies, "insecure_seed": self.seed}
        words = ["--max_steps", str(self.steps), f"model.params.scheduler_config.params.cycle_lengths=[{self.steps}]"]
        words += [f"model.params.dp_config.{key}={value}" for key, value in overrides.items()]
        command = [sys.executable, "main.py", "--base", CONFIGS[self.kind], "-t", *where, "-l", str(folder), *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{shlex.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
        return max(path for path in folder.iterdir() if (path / "privacy.json").is_file())


def measure(cell: Cell, work: Path, scorer: Scorer) -> dict[str, float]:
    """Accuracy, stand-in distance and spent epsilon of one cell, from the work folder if they are there."""
    file = work / f"{cell.name}.json"
    if file.is_file():
        found: dict[str, float] = json.loads(file.read_text())
        return found
    trained = cell.train(work / cell.name, scorer.device)
    card = ReleaseCard.read(trained)
    row, _ = scorer.row(
        cell.name, model_samples(CONFIGS[cell.kind], last_checkpoint(trained), scorer.options, scorer.device)
    )
    found = {
        "accuracy": row.mean,
        "distance": float(row.distance or 0.0),
        "epsilon": next(iter(card.epsilons().values())),
        "sigma": card.plan.noise_multiplier,
    }
    write_text(file, json.dumps(found))
    return found


def table(results: dict[Cell, dict[str, float]]) -> str:
    """Markdown: one line a combination, medians over the seeds with the range of the accuracies."""
    lines = [
        "| trained | epsilon | noise draws a record | sigma | accuracy, median (range) | digits-cnn distance, median |",
        "|--|--|--|--|--|--|",
    ]
    combinations: dict[tuple[str, float, int], list[dict[str, float]]] = {}
    for cell, result in results.items():
        combinations.setdefault((cell.kind, cell.epsilon, cell.copies), []).append(result)
    for (kind, _, copies), found in combinations.items():
        accuracy = [100 * one["accuracy"] for one in found]
        distance = statistics.median(one["distance"] for one in found)
        spent = rounded_up(max(one["epsilon"] for one in found), 3)
        middle = f"{statistics.median(accuracy):.1f} % ({min(accuracy):.1f} to {max(accuracy):.1f})"
        lines.append(f"| {kind} | {spent} | {copies} | {found[0]['sigma']:.3g} | {middle} | {distance:.1f} |")
    return "\n".join(lines)


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="lora_vs_attention.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--kinds", nargs="+", choices=list(CONFIGS), default=list(CONFIGS), help="what is trained")
    add("--epsilons", nargs="+", type=float, default=[1.0, 10.0], help="budgets")
    add("--copies", nargs="+", type=int, default=[1, 4], help="noise draws a record")
    add("--seeds", type=int, default=3, help="private fine-tunings of each combination")
    add("--steps", type=int, default=50, help="private steps of each")
    add("--work", type=Path, default=Path("logs/lora-vs-attention"), help="folder of the runs")
    add("--device", default=None, help="cpu, cuda, cuda:1; default: a GPU if there is one")
    add("--output", type=Path, default=Path("results/lora_vs_attention.md"), help="where the table is written")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    device = pick_device(args.device)
    public = collect(GlyphsTrain(count=6000, classes="digits"), progress=False)
    real, held_out = (collect(data, progress=False) for data in (MNIST5kTrain(), MNIST5kVal()))
    scorer = Scorer(ReportOptions(seeds=(0,)), public, real, held_out, device)
    cells = [
        Cell(kind, epsilon, copies, args.steps, seed)
        for seed in range(args.seeds)
        for copies in args.copies
        for epsilon in args.epsilons
        for kind in args.kinds
    ]
    results = {cell: measure(cell, args.work, scorer) for cell in tqdm(cells, unit="run")}
    text = table(results) + "\n"
    write_text(args.output, text)
    print(text)


if __name__ == "__main__":
    run(main)
