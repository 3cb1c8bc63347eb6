"""The page of results is on disk after every row, and its cases are whole steps."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_variants, performance
from benchmarks.performance import Page
from benchmarks.whole_step import PARTS, Workload, compare
from benchmarks.workloads import SIZES, Size

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = {"model_channels": 32, "channel_mult": [1], "attention_resolutions": [1], "num_heads": 2}
    monkeypatch.setitem(SIZES, "tiny", Size(side=4, classes=10, context=5, unet=unet))


@pytest.mark.slow
def test_every_row_is_on_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(performance, "memory_of", lambda load, kind, args: 0.25 if kind == "private" else 0.2)
    page = Page(tmp_path / "page.md")
    row = page.row
    monkeypatch.setattr(page, "row", lambda *cells: (row(*cells), seen.append(page.file.read_text())))
    args = argparse.Namespace(
        size="tiny", selection=["attention", "lora"], batch=[6], rounds=1, device=CPU, no_copies=False
    )
    performance.step(args, page)
    performance.operations(args, page)
    assert len(seen) == 5 and all(text.endswith("|\n") for text in seen)
    assert "tiny, attention, B 1, K = 4" in seen[2] and "0.250 / 0.200 GiB = 1.25" in seen[0]


def test_a_private_step_has_noise_and_moves_what_is_trained() -> None:
    timing = compare(Workload("tiny", "attention", 4), CPU, rounds=2)
    assert len(timing.plain) == len(timing.private) == 2 and timing.ratio > 0
    assert all(set(one) == set(PARTS) for one in timing.plain + timing.private)
    low, high = timing.spread
    assert low <= timing.ratio <= high


@pytest.mark.parametrize("variant", ["sizes", "precision", "sampling"])
def test_variants_of_a_step_fill_their_tables(variant: str, tmp_path: Path) -> None:
    page = Page(tmp_path / "page.md")
    gpu_variants.VARIANTS[variant](argparse.Namespace(network="tiny", device=CPU, batch=8, rounds=1), page)
    assert len(page.lines) >= 8 and "not" not in page.file.read_text()


def test_the_script_for_gpus_names_its_parts_and_refuses_others() -> None:
    def answer(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "benchmarks/gpu.sh", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **variables})

    parts = ["step", "opacus", "sizes", "precision", "compile", "sampling", "benchmark"]
    assert answer(LIST="1").stdout.split() == parts
    wrong = answer("magic", DEVICE="cpu", PYTHON="python3")
    assert wrong.returncode == 2 and "part magic is unknown; parts: step" in wrong.stderr
    assert "type make venv" in answer(PYTHON="/nowhere/python").stderr
