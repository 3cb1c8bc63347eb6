"""The fid commands from the command line to the printed number, in the spelling of the documents."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fid import compute_dataset_stats, compute_fid, compute_samples_stats, train_digits_cnn
from ldm.errors import UserError
from ldm.evaluation.metrics import statistics
from ldm.evaluation.metrics.statistics import FeatureStatistics
from ldm.samples import SampleSet

ROOT = Path(__file__).parents[2]
DATASET = f"{__name__}.Toy"


class Toy:
    """Labelled bars: class 0 is upright, class 1 lies."""

    def __init__(self, size: int = 16, count: int = 80) -> None:
        generator = np.random.default_rng(0)
        self.labels = np.arange(count) % 2
        self.images = -np.ones((count, size, size, 3), np.float32)
        for image, label, at in zip(self.images, self.labels, generator.integers(0, size - 2, count), strict=True):
            (image if label else image.transpose(1, 0, 2))[at : at + 2] = 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index], "class_label": int(self.labels[index])}


def toy_samples() -> SampleSet:
    toy = Toy()
    return SampleSet(torch.from_numpy(toy.images).permute(0, 3, 1, 2), torch.from_numpy(toy.labels))


def call(verb, **flags: object) -> None:
    words = [(f"--{name}", *map(str, value if isinstance(value, list) else [value])) for name, value in flags.items()]
    verb.main([word for group in words for word in group])


@pytest.mark.parametrize("size", ["size:16", "config.size:16"])
def test_a_set_against_its_own_file_is_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    toy_samples().save(tmp_path / "a.pt")
    real, made = tmp_path / "real.npz", tmp_path / "made.npz"
    call(compute_dataset_stats, dataset=DATASET, args=[size], output=real, extractor="pixels", batch_size=30)
    call(compute_samples_stats, samples=tmp_path / "a.pt", output=made, extractor="pixels", batch_size=7)
    call(compute_fid, path1=real, path2=made)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"written to {real}: 80 images, 64 pixels features",
        f"next: python fid/compute_fid.py --path1 {real} --path2 SAMPLES",
        f"written to {made}: 80 images, 64 pixels features",
        f"next: python fid/compute_fid.py --path1 REAL.npz --path2 {made}",
        "Frechet distance (pixels): 0.0000",
    ]
    assert FeatureStatistics.load(real).source == f"{DATASET} {size}"


def test_images_of_any_kind_stand_on_either_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = toy_samples()
    samples.save(tmp_path / "a.pt")
    (tmp_path / "folder").mkdir()
    for index, image in enumerate(samples.images):
        pixels = ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / "folder" / f"{index:03}.png")
    statistics = tmp_path / "folder.npz"
    call(compute_samples_stats, samples=tmp_path / "folder", output=statistics, extractor="pixels")
    call(compute_dataset_stats, dataset=tmp_path / "folder", output=statistics, extractor="pixels")
    sides = (statistics, tmp_path / "a.pt", tmp_path / "folder", DATASET)
    for side in sides:
        compute_fid.main(["--path1", str(side), "--path2", str(tmp_path / "a.pt"), "--extractor", "pixels"])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Frechet")]
    assert printed == ["Frechet distance (pixels): 0.0000"] * len(sides)


def test_unlike_sides_are_refused_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_samples().save(tmp_path / "a.pt")
    call(compute_samples_stats, samples=tmp_path / "a.pt", output=tmp_path / "a.npz", extractor="pixels")
    sides = ["--path1", str(tmp_path / "a.npz"), "--path2", str(tmp_path / "a.pt"), "--extractor", "pixels"]
    with pytest.raises(UserError, match="rounded to 8 bits.*--force"):
        compute_fid.main([*sides, "--quantize"])
    compute_fid.main([*sides, "--quantize", "--force"])
    assert capsys.readouterr().out.splitlines()[-1] == "Frechet distance (pixels): 0.0000"
    with pytest.raises(UserError, match="different sizes"):
        call(compute_fid, path1=DATASET, path2=tmp_path / "a.pt", args=["size:20"], extractor="pixels")


def test_stand_in_is_trained_used_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_samples().save(tmp_path / "a.pt")
    weights = tmp_path / "w.safetensors"
    call(train_digits_cnn, dataset=DATASET, output=weights, epochs=1)
    flags = {"extractor": "digits-cnn", "weights": weights}
    call(compute_dataset_stats, dataset=DATASET, output=tmp_path / "real.npz", **flags)
    call(compute_samples_stats, samples=tmp_path / "a.pt", output=tmp_path / "made.npz", **flags)
    call(compute_fid, path1=tmp_path / "real.npz", path2=tmp_path / "made.npz")
    assert capsys.readouterr().out.splitlines()[-1] == "Frechet distance (digits-cnn): 0.0000"


def test_inception_statistics_print_fid_with_four_decimals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "INCEPTION_DIM", 8)  # the real 2048 take seconds
    for name, shift in (("a", 0.0), ("b", 0.1)):
        made = FeatureStatistics(np.full(8, shift), np.eye(8), extractor="inception")
        made.save(tmp_path / f"{name}.npz")
    call(compute_fid, path1=tmp_path / "a.npz", path2=tmp_path / "b.npz")
    assert capsys.readouterr().out == "FID: 0.0800\n"


def test_quantize_is_recorded(tmp_path: Path) -> None:
    toy_samples().save(tmp_path / "a.pt")
    words = ["--samples", str(tmp_path / "a.pt"), "--output", str(tmp_path / "a.npz"), "--extractor", "pixels"]
    compute_samples_stats.main([*words, "--quantize"])
    assert FeatureStatistics.load(tmp_path / "a.npz").quantize


def test_unwritable_output_fails_before_the_samples_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        call(compute_samples_stats, samples=tmp_path / "none.pt", output=tmp_path)


def run_script(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "fid" / words[0]), *words[1:]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_help_answers_from_any_folder(tmp_path: Path) -> None:
    found = run_script(tmp_path, "compute_samples_stats.py", "--help")
    assert found.returncode == 0 and "--samples" in found.stdout


def test_user_mistake_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    found = run_script(tmp_path, "compute_fid.py", "--path1", "a.npz", "--path2", "b.npz")
    assert found.returncode == 2
    assert found.stderr.startswith("error: a.npz: no such file") and found.stderr.count("\n") == 1
