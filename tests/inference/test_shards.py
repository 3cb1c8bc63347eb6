"""Several processes write the file of one: the same images, whoever comes last, stopped or not."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm.errors import UserError
from ldm.inference import ModelSource, SamplePlan, SamplingOptions, sample_set, write_samples
from ldm.samples import SampleSet, SampleWriter
from ldm.samples.shards import Shard
from tests.tiny_runs import ROOT, small_checkpoint, small_ldm, write_yaml

CPU = torch.device("cpu")
OPTIONS = SamplingOptions(steps=2, batch_size=4, seed=3)
COUNT = 18
PLAN = SamplePlan(COUNT, OPTIONS, classes=[1, 5, 7])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("model")
    checkpoint = small_checkpoint(folder / "model.ckpt", small_ldm())
    return write_yaml(folder / "model.yaml", {"model": small_ldm()}), checkpoint


@pytest.fixture(scope="module")
def whole(files: tuple[str, Path]) -> SampleSet:
    return sample_set(ModelSource(*files), PLAN, CPU)


def same(path: Path, whole: SampleSet) -> bool:
    made = SampleSet.load(path)
    return torch.equal(made.images, whole.images) and torch.equal(made.labels, whole.labels) and made.meta == whole.meta


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_become_the_file_of_one_process(
    files: tuple[str, Path], whole: SampleSet, tmp_path: Path, order: tuple[int, ...]
) -> None:
    output = tmp_path / "a.pt"
    done = [write_samples(output, ModelSource(*files), PLAN, CPU, Shard(index, 3)) for index in order]
    assert done == [False, False, True], "the last one merges"
    assert list(tmp_path.iterdir()) == [output] and same(output, whole)


def test_more_processes_than_batches(files: tuple[str, Path], whole: SampleSet, tmp_path: Path) -> None:
    for index in range(8):
        write_samples(tmp_path / "a.pt", ModelSource(*files), PLAN, CPU, Shard(index, 8))
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"] and same(tmp_path / "a.pt", whole)


def test_a_part_that_was_stopped_goes_on_and_a_finished_one_is_kept(
    files: tuple[str, Path], whole: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, write, drawn = tmp_path / "a.pt", SampleWriter.write, []

    def write_and_stop(writer: SampleWriter, images: torch.Tensor) -> None:
        write(writer, images)
        drawn.append(len(images))
        if len(drawn) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(SampleWriter, "write", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        write_samples(output, ModelSource(*files), PLAN, CPU, Shard(1, 2))
    for index in (1, 0):
        write_samples(output, ModelSource(*files), PLAN, CPU, Shard(index, 2))
    assert drawn[:5] == [4, 4, 2, 4, 4], "nothing is drawn twice"
    assert same(output, whole)


def test_parts_of_other_settings_and_missing_seeds_are_refused(files: tuple[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "a.pt"
    write_samples(output, ModelSource(*files), PLAN, CPU, Shard(0, 2))
    with pytest.raises(UserError, match="a.part-1-of-2.pt: is of a run with other settings \\(seed\\); remove it"):
        write_samples(output, ModelSource(*files), replace(PLAN, options=replace(OPTIONS, seed=4)), CPU, Shard(0, 2))
    with pytest.raises(UserError, match="several processes need one seed"):
        write_samples(output, ModelSource(*files), replace(PLAN, options=replace(OPTIONS, seed=None)), CPU, Shard(0, 2))


@pytest.mark.slow
def test_torchrun(files: tuple[str, Path], whole: SampleSet, tmp_path: Path) -> None:
    config, checkpoint = files
    words = ["--yaml", config, "--ckpt", str(checkpoint), "--classes", "1", "5", "7", "--num_samples", str(COUNT)]
    words += ["--output", str(tmp_path / "a.pt"), "--steps", "2", "--batch_size", "4", "--seed", "3", "--device", "cpu"]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*start, str(ROOT / "sampling/conditional_sampling.py"), *words], check=True, env=environment)
    assert same(tmp_path / "a.pt", whole)
