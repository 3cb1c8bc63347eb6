"""What is found in files, flags and settings before torch, Lightning, data or a model are touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from callbacks.slurm_requeue import forget_run, note_path, note_run, noted_run, requeue
from ldm.errors import UserError
from ldm.training.options import RunOptions
from ldm.training.request import checkpoint_paths, read_request
from tests.tiny_runs import ROOT, write_yaml

SECTION = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "base_learning_rate": 1e-3}
DATA = {"target": "main.DataModuleFromConfig", "params": {"batch_size": 4}}
DP = {"enabled": True, "noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 0.1}


def config(folder: Path, **params: Any) -> str:
    content = {"model": {**SECTION, "params": params}, "data": DATA, "lightning": {"trainer": {"accelerator": "cpu"}}}
    return write_yaml(folder / "a.yaml", content)


def options(folder: Path, *dotlist: str, params: dict[str, Any] | None = None, **changes: Any) -> RunOptions:
    given = {"base": [config(folder, **(params or {}))], "logdir": str(folder / "logs"), "dotlist": list(dotlist)}
    return RunOptions(**{**given, **changes})


REFUSALS = [
    ["--help"],
    ["--gpu", "0"],
    ["--base", "none.yaml", "-t"],
    ["--base", "a.yaml", "--seed", "-1"],
    ["--base", "a.yaml", "modle.x=1"],
    ["--base", "a.yaml", "--gpus", "0,"],
    ["--base", "a.yaml", "model.params.ckpt_path=none.ckpt"],
    ["--base", "a.yaml", "lightning.trainer.max_epoch=3"],
    ["--base", "a.yaml", "model.params.dp_config.enabled=yes please"],
]


@pytest.mark.skipif(
    any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/kfd")), reason="--gpus asks torch here"
)
def test_refusals_that_need_no_model_import_neither_torch_nor_lightning(tmp_path: Path) -> None:
    """All in one process: what one of them imports would show at the end."""
    config(tmp_path)
    code = f"""
import runpy, sys
from contextlib import suppress
for words in {REFUSALS!r}:
    sys.argv = ["main.py", *words]
    try:
        runpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")
    except SystemExit as stop:
        print(stop.code or 0)
print([name for name in ("torch", "pytorch_lightning", "numpy") if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    *_, imported = done.stdout.splitlines()
    codes = [text for text in done.stdout.splitlines() if text in ("0", "2")]
    assert codes == ["0"] + ["2"] * (len(REFUSALS) - 1), done.stderr
    assert imported == "[]"


def test_checkpoints_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "first.ckpt").touch()
    for params, line in (
        ({"ckpt_path": str(tmp_path / "fist.ckpt")}, "model.params.ckpt_path: .*did you mean 'first.ckpt'"),
        (
            {"first_stage_config": {"params": {"ckpt_path": "no/a.ckpt"}}},
            "first_stage_config.params.ckpt_path: .*no such",
        ),
    ):
        with pytest.raises(UserError, match=line):
            read_request(options(tmp_path, params=params))
    with pytest.raises(UserError, match="lightning.trainer.ckpt_path: checkpoint 'none.ckpt' does not exist"):
        read_request(options(tmp_path, "lightning.trainer.ckpt_path=none.ckpt"))
    assert read_request(options(tmp_path, params={"ckpt_path": str(tmp_path / "first.ckpt")})).resume is None
    assert not (tmp_path / "logs").exists()


def test_every_checkpoint_of_a_section_is_found() -> None:
    params = {"ckpt_path": None, "a": {"ckpt_path": "x"}, "b": [{"c": {"ckpt_path": 7}}], "d": "ckpt_path"}
    assert list(checkpoint_paths(params)) == [("model.params.a.ckpt_path", "x"), ("model.params.b.0.c.ckpt_path", "7")]


@pytest.mark.parametrize("value", ["1", "'false'", "maybe"])
def test_enabled_is_true_or_false(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match="dp_config.enabled: .*neither true nor false"):
        read_request(options(tmp_path, f"model.params.dp_config.enabled={value}"))


# ---------------------------------------------------------------------- SLURM


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr(sys, "argv", ["main.py", "--base", "a.yaml"])
    return monkeypatch


def test_a_requeued_job_finds_its_run(tmp_path: Path, job: pytest.MonkeyPatch) -> None:
    run = tmp_path / "logs" / "run"
    run.mkdir(parents=True)
    note_run(run.parent, run)
    assert noted_run(run.parent) is None, "the first attempt starts anew"
    job.setenv("SLURM_RESTART_COUNT", "1")
    assert noted_run(run.parent) == run
    assert read_request(options(tmp_path)).run_dir.path != run, "it holds no checkpoint to go on from"
    assert note_path(run.parent, ["other"]) != note_path(run.parent), "another command of the job has its own run"
    forget_run(run.parent)
    assert noted_run(run.parent) is None and list(run.parent.iterdir()) == [run]


def test_requeueing_says_what_slurm_says(tmp_path: Path, job: pytest.MonkeyPatch) -> None:
    job.setenv("PATH", str(tmp_path))
    assert requeue() is False
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    (tmp_path / "scontrol").chmod(0o755)
    assert requeue() is True
    assert (tmp_path / "said").read_text() == "requeue 77\n"


# ---------------------------------------------------------------------- private runs


def test_a_run_with_a_card_goes_on_privately_or_not_at_all(tmp_path: Path) -> None:
    run = tmp_path / "logs" / "run"
    for folder in ("checkpoints", "configs"):
        (run / folder).mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "privacy.json").write_text(json.dumps({}))
    (run / "configs" / "2026-project.yaml").write_text(Path(config(tmp_path, dp_config=DP)).read_text())
    off = write_yaml(tmp_path / "off.yaml", {"model": {"params": {"dp_config": {"enabled": False}}}})
    for changes in (
        {"dotlist": ["model.params.dp_config.enabled=false"]},
        {"dotlist": ["model.params.dp_config=null"]},
        {"base": [off]},
        {
            "base": [
                write_yaml(
                    tmp_path / "other.yaml",
                    {"model": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": None}},
                )
            ]
        },
    ):
        with pytest.raises(UserError, match="goes on privately or not at all"):
            read_request(RunOptions(**{"base": [], "resume": str(run), **changes}))
    assert read_request(RunOptions(base=[], resume=str(run))).private
    left = run / "configs" / "2027-project.yaml"  # of an attempt by an older version
    left.write_text(Path(off).read_text())
    with pytest.raises(UserError, match="goes on privately or not at all"):
        read_request(RunOptions(base=[], resume=str(run)))
