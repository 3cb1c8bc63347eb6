"""Jobs with DRY_RUN=1: the commands they would run, and what the commands' own parsers make of them."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import main
from ldm.cli import ArgumentParser

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "jobs"


def bash(*words: object, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run bash in the root of the repository, without the variables that jobs read but for those given."""
    read = (
        "CKPT",
        "PRETRAINED",
        "AUTOENCODER",
        "YAML",
        "LOGS",
        "OUTPUT",
        "SAMPLES",
        "PYTHON",
        "REPOSITORY",
        "PARTITION",
    )
    environment = {key: value for key, value in os.environ.items() if key not in read and not key.startswith("SLURM")}
    environment |= {"REPOSITORY": str(ROOT), **{key: str(value) for key, value in variables.items()}}
    line = ["bash", *map(str, words)]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def dry_run(job: str | Path, *words: object, **variables: object) -> list[list[str]]:
    """The commands of a job, each without the interpreter."""
    done = bash(JOBS / job, *words, DRY_RUN=1, **variables)
    assert done.returncode == 0, (job, done.stderr)
    return [shlex.split(line)[1:] for line in done.stdout.splitlines()]


def dry_run_all(jobs: Sequence[str]) -> dict[str, list[list[str]]]:
    """`dry_run` of many jobs in one shell."""
    loop = 'for job in "$@"; do echo "== $job"; bash "jobs/$job" || echo "FAILED"; done'
    done = bash("-c", loop, "all", *jobs, DRY_RUN=1)
    found: dict[str, list[list[str]]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("== "):
            commands = found[line[3:]] = []
        else:
            assert line != "FAILED", (list(found)[-1], done.stderr[-500:])
            commands.append(shlex.split(line)[1:])
    return found


class Parsed(Exception):
    """Carries what a command's parser made of its command line."""


@cache
def verb(script: str) -> Any:
    """The module of a command such as sampling/conditional_sampling.py."""
    spec = importlib.util.spec_from_file_location("job_" + script.replace("/", "_")[:-3], ROOT / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def parse(command: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """The values that a command line gives its script; exits with 2, as the script does, for an unknown flag."""
    script, *words = command
    read = ArgumentParser.parse_args

    def stop(self: ArgumentParser, *given: Any, **named: Any) -> Any:
        raise Parsed(vars(read(self, *given, **named)))

    def options(given: Any) -> Any:
        raise Parsed(vars(given))

    monkeypatch.setattr(sys, "argv", [script, *words])
    with monkeypatch.context() as patched:
        if script == "main.py":
            patched.setattr(main, "train", options)
            call = main.main
        else:
            patched.setattr(ArgumentParser, "parse_args", stop)
            call = verb(script).main
        with pytest.raises(Parsed) as parsed:
            call()
    return parsed.value.args[0]
