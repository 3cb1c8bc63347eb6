"""dp_lora/: the paths and commands of the study's instructions, and the script that makes the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "dp_lora"


def setup(tmp_path: Path, **tools: str) -> subprocess.CompletedProcess[str]:
    """Run the script in another folder, with stand-ins for conda and make."""
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    return subprocess.run([STUDY / "setup_env.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_conda_makes_the_environment_from_the_repositorys_file(tmp_path: Path) -> None:
    done = setup(tmp_path, conda='[ "$1 $2" = "env list" ] && echo "base * /b" || echo "conda $* in $PWD"')
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"conda env create --file environment.yaml in {ROOT}\ndone; type: conda activate ldm\n"


def test_an_environment_that_is_there_is_brought_up_to_date(tmp_path: Path) -> None:
    done = setup(tmp_path, conda='[ "$1 $2" = "env list" ] && echo "ldm  /b/envs/ldm" || echo "conda $*"')
    assert done.stdout.startswith("conda env update --name ldm --file environment.yaml\n")


def test_without_conda_make_does_it(tmp_path: Path) -> None:
    done = setup(tmp_path, make='echo "make $* in $PWD"')
    assert done.returncode == 0 and f"make venv in {ROOT}" in done.stdout


def test_a_failure_is_the_scripts_own(tmp_path: Path) -> None:
    assert setup(tmp_path, conda='[ "$1 $2" = "env list" ] || exit 3').returncode == 3


def test_the_paths_of_the_instructions_are_there() -> None:
    scripts = ("sampling/conditional_sampling.py", "sampling/unconditional_sampling.py", "fid/compute_fid.py",
               "scripts/mnist_sampling_and_acc.py", "scripts/cifar_downstream.py", "main.py")  # fmt: skip
    configs = ("configs/finetuning/celebahq_class_eps10.yaml", "reproducibility_experiments/backup/celebahq-eps1.yaml")
    for path in (*scripts, *configs, "models/ldm/cin256"):
        assert (STUDY / path).exists(), path
    assert os.access(STUDY / "setup_env.sh", os.X_OK)


def test_a_downloaded_model_stays_out_of_git(tmp_path: Path) -> None:
    ignored = ["dp_lora/models/ldm/cin256/cin.zip", "dp_lora/models/ldm/cin256/model.ckpt"]
    done = subprocess.run(["git", "check-ignore", *ignored], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.stdout.splitlines() == ignored


@pytest.mark.slow
def test_commands_run_inside_the_studys_folder() -> None:
    words = ["main.py", "--base", "./configs/backup/celebahq-eps1.yaml", "-t", "--accelerator", "cpu"]
    done = subprocess.run(
        [sys.executable, *words, "model.params.ckpt_path=none.ckpt", "-l", "no/where"], cwd=STUDY,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "none.ckpt" in done.stderr, done.stderr[-500:]
