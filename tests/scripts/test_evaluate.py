"""scripts/evaluate.py and scripts/compare.py from the command line to the printed table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.samples import SampleSet
from scripts import compare, evaluate

ROOT = Path(__file__).parents[2]


def squares(path: Path, seed: int) -> Path:
    images = torch.rand(70, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    SampleSet(images, torch.arange(70) % 2).save(path)
    return path


def test_evaluate_twice_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = squares(tmp_path / "real.pt", 0)
    for seed in (1, 2):
        samples = squares(tmp_path / f"s{seed}.pt", seed)
        words = f"--samples {samples} --real {real} --suite cifar10 --extractor pixels --subset 50 --device cpu"
        evaluate.main([*words.split(), "--output", str(tmp_path / f"run{seed}")])
        printed = capsys.readouterr().out
        assert "Frechet distance (pixels)" in printed and "class automobile" in printed
        assert f"written to {tmp_path / f'run{seed}'}" in printed
    compare.main([str(tmp_path / "run1"), str(tmp_path / "run2"), "--output", str(tmp_path / "both")])
    printed = capsys.readouterr().out
    assert (
        printed.split()[:2] == ["run1", "run2"] and "*" in printed and (tmp_path / "both" / "comparison.html").exists()
    )
    assert printed.splitlines()[-1] == f"next: open {tmp_path / 'both' / 'comparison.html'} in a browser"


def test_rounding_can_be_switched_off(tmp_path: Path) -> None:
    samples = squares(tmp_path / "s.pt", 1)
    words = (
        f"--samples {samples} --real {samples} --extractor pixels --no-quantize --device cpu --output {tmp_path / 'r'}"
    )
    evaluate.main(words.split())
    assert '"quantize": false' in (tmp_path / "r" / "evaluation.json").read_text()


def test_misspelt_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate.main(["--samples", "a", "--real", "b", "--extracter", "pixels"])
    assert caught.value.code == 2 and "did you mean '--extractor'" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_of_torchrun_measure_the_same_and_write_once(tmp_path: Path) -> None:
    real, samples = squares(tmp_path / "real.pt", 0), squares(tmp_path / "s.pt", 1)
    words = f"--samples {samples} --real {real} --suite cifar10 --extractor pixels --subset 50 --device cpu "
    words += f"--test {real} --classifiers logreg mlp --epochs 2 --seeds 2 --batch_size 20"
    evaluate.main([*words.split(), "--output", str(tmp_path / "one")])
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*start, str(ROOT / "scripts/evaluate.py"), *words.split(), "--output", str(tmp_path / "two")]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert done.stdout.count("written to") == 1

    def content(name: str) -> Any:
        return json.loads((tmp_path / name / "evaluation.json").read_text())

    one, two = content("one"), content("two")
    assert two["scores"].keys() == one["scores"].keys() and len(one["scores"]) > 3
    for name, row in one["scores"].items():
        assert two["scores"][name]["value"] == pytest.approx(row["value"], rel=1e-4, abs=1e-6), name
    assert two["downstream"]["results"] == one["downstream"]["results"] and len(one["downstream"]["results"]) == 2
