"""scripts/evaluate.py and scripts/compare.py from the command line to the printed table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm.samples import SampleSet
from scripts import compare, evaluate


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
