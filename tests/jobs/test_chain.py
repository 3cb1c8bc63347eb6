"""CelebA-HQ from its files to a score: the commands of one experiment's jobs, in turn, on stand-in faces.

Only sizes are changed, by settings behind the jobs' own; commands are taken from dry runs and run in this process.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from ldm.checkpoint import read_checkpoint, save_checkpoint
from ldm.config import load_config, to_plain
from ldm.data import celebahq_files
from ldm.data.celebahq import CelebAHQ
from ldm.samples import SampleSet
from tests import tiny
from tests.data.test_celebahq_files import LABELS, Source, table
from tests.jobs.dry import ROOT, dry_run, verb
from tests.tiny_runs import Commands, commands

__all__ = ["commands"]

EXPERIMENT = "celebahq_eps1"
NETWORK = {  # a smaller network of the same make, and 32x32 images
    "image_size": 4,
    "unet_config.params.image_size": 4,
    "unet_config.params.model_channels": 32,
    "unet_config.params.channel_mult": "[1,2]",
    "unet_config.params.attention_resolutions": "[2,1]",
    "unet_config.params.num_res_blocks": 1,
    "unet_config.params.context_dim": 8,
    "cond_stage_config.params.embed_dim": 8,
    "first_stage_config.params.n_embed": 16,
    "first_stage_config.params.ddconfig.ch": 16,
    "first_stage_config.params.ddconfig.num_res_blocks": 1,
    "first_stage_config.params.ddconfig.resolution": 32,
    "first_stage_config.params.ddconfig.attn_resolutions": "[4]",
}
SMALL = [f"model.params.{key}={value}" for key, value in NETWORK.items()]
RUN = [
    "model.params.dp_config.dataset_size=6",
    "model.params.dp_config.max_batch_size=2",
    "data.params.batch_size=3",
    "data.params.num_workers=0",
    "data.params.train.params.size=32",
    "--accelerator", "cpu", "--max_epochs", "1", "--enable_progress_bar", "False",
]  # fmt: skip


def public_model(path: Path) -> Path:
    """A released checkpoint's stand-in: the public model of the experiment, made small."""
    config = load_config([ROOT / "configs" / "latent-diffusion" / "cin-ldm-vq-f8.yaml"], SMALL)
    section = to_plain(config.model)
    section.pop("base_learning_rate")
    torch.manual_seed(0)
    model = tiny.build(section)
    tiny.scatter(model)
    model.model_ema.reset(model.model)
    save_checkpoint({"state_dict": model.state_dict()}, path)
    return path


def in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files whose rows are in memory: the reader of Parquet files is replaced."""
    monkeypatch.setattr(celebahq_files, "parquet_rows", Source(folder, table()))


def on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet files as the hub has them."""
    arrow = pytest.importorskip("pyarrow", reason="writing Parquet files needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder.mkdir()
    for name, rows in table().items():
        parquet.write_table(arrow.Table.from_pylist(rows), folder / name)


def run_job(commands: Commands, job: str, *words: object, **variables: object) -> str:
    """Run the commands of a job as a dry run prints them; returns what they print."""
    printed = ""
    for script, *arguments in dry_run(job, *words, **variables):
        call: Any = main.main if script == "main.py" else verb(script).main
        assert commands.type(call, *arguments) == 0, (script, commands.err)
        printed += commands.out
    return printed


@pytest.mark.parametrize("faces", [in_memory, on_disk])
def test_extract_fine_tune_sample_and_score(faces: Any, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = commands.folder
    monkeypatch.setenv("LDM_DATA_ROOT", str(folder / "data"))
    monkeypatch.chdir(ROOT)  # where jobs run
    faces(folder / "parquet", monkeypatch)
    where = {"LOGS": folder / "logs", "OUTPUT": folder / "output"}

    assert "6 train and 2 test" in run_job(commands, "extract_celeba_hq.job", "--from", folder / "parquet")
    data = CelebAHQ(split="train", size=32, target_type="class", class_attrs=["Male"])
    assert data.labels.tolist() == [label for name in sorted(LABELS) if "train" in name for label in LABELS[name]]

    public = public_model(folder / "cin256.ckpt")
    run_job(commands, f"backup/finetuning/ft_{EXPERIMENT}.job", *SMALL, *RUN, PRETRAINED=public, **where)
    (run,) = (folder / "logs" / "backup" / "celebahq").iterdir()
    card = json.loads((run / "privacy.json").read_text())
    assert run.name.endswith("_celebahq-eps1") and card["plan"]["noise_multiplicity"] == 2
    assert card["plan"]["target_epsilon"] == 1
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert state["global_step"] == 2 and any(".lora_A" in key for key in state["state_dict"])

    # neither a checkpoint nor the settings typed for the run are repeated
    run_job(commands, f"backup/sampling/{EXPERIMENT}.job", "--ddim_steps", "2", SAMPLES=5, **where)
    samples = SampleSet.load(folder / "output" / "backup" / f"{EXPERIMENT}.pt")
    assert samples.images.shape == (5, 3, 32, 32) and samples.labels.tolist() == [0, 0, 0, 1, 1]

    pixels = ("--extractor", "pixels")
    small = ("--args", "split:train", "size:32", "--num_workers", "0")
    run_job(commands, "backup/fid/compute_celebahq_stats.job", *pixels, *small, **where)
    printed = run_job(commands, f"backup/fid/{EXPERIMENT}.job", *pixels, **where)
    distance = re.search(r": ([\d.]+)\n$", printed)
    assert distance is not None and float(distance[1]) > 0

    # both names of a step are one job, and what is there is not made again
    assert dry_run("backup/fid/compute_celebahq_stats.job", **where) == []
    assert dry_run(f"backup/sampling/ft_{EXPERIMENT}.job", **where) == dry_run(
        f"backup/sampling/{EXPERIMENT}.job", **where
    )
