"""The command line of main.py: every flag of the lineage, settings wherever they stand, and unknown words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import main
from ldm.training import RunOptions
from tests import tiny_runs


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What main.py makes of words, without training."""

    def read(*words: str) -> RunOptions:
        found: list[RunOptions] = []
        monkeypatch.setattr(main, "train", found.append)
        monkeypatch.setattr(main.command, "print_trained", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["main.py", *words])
        main.main()
        return found[0]

    return read


def test_defaults(typed: Any) -> None:
    assert typed() == RunOptions(base=[])
    assert typed() == RunOptions(
        base=[],
        name="",
        resume="",
        train=False,
        no_test=False,
        debug=False,
        seed=23,
        postfix="",
        logdir="logs",
        scale_lr=True,
        allow_target=[],
        dotlist=[],
        trainer={},
    )


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("-n digits", "name", "digits"),
        ("--name digits", "name", "digits"),
        ("-n", "name", True),
        ("-r logs/a", "resume", "logs/a"),
        ("--resume logs/a", "resume", "logs/a"),
        ("-b a.yaml b.yaml", "base", ["a.yaml", "b.yaml"]),
        ("--base a.yaml", "base", ["a.yaml"]),
        ("-t", "train", True),
        ("--train", "train", True),
        ("--no-test", "no_test", True),
        ("-d", "debug", True),
        ("--debug yes", "debug", True),
        ("-s 7", "seed", 7),
        ("--seed 7", "seed", 7),
        ("-f x", "postfix", "x"),
        ("--postfix=-x", "postfix", "-x"),
        ("-l runs", "logdir", "runs"),
        ("--logdir runs", "logdir", "runs"),
        ("--scale_lr", "scale_lr", True),
        ("--scale_lr False", "scale_lr", False),
        ("--allow-target mine --allow-target yours", "allow_target", ["mine", "yours"]),
    ],
)
def test_every_flag(typed: Any, words: str, field: str, value: Any) -> None:
    assert getattr(typed(*words.split()), field) == value


@pytest.mark.parametrize("flag", ["-t", "--no-test", "-d", "--scale_lr"])
def test_words_for_yes_and_no(typed: Any, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    field = {"-t": "train", "--no-test": "no_test", "-d": "debug", "--scale_lr": "scale_lr"}[flag]
    for words, value in (("yes true t y 1 True", True), ("no false f n 0 False", False)):
        for word in words.split():
            assert getattr(typed(flag, word), field) is value
    with pytest.raises(SystemExit) as stop:
        typed(flag, "perhaps")
    assert stop.value.code == 2
    assert "expected yes or no, got 'perhaps'" in capsys.readouterr().err


def test_project_is_accepted_and_unused(typed: Any) -> None:
    assert typed("-p", "x") == typed("--project", "x") == RunOptions(base=[])


def test_readme_commands(typed: Any) -> None:
    assert typed("--base", "f.yaml", "-t", "--gpus", "0,").trainer == {"gpus": "0,"}
    options = typed("--base", "f.yaml", "-t", "--gpus", "0,", "--accelerator", "gpu")
    assert (options.base, options.train) == (["f.yaml"], True)
    assert options.trainer == {"gpus": "0,", "accelerator": "gpu"}
    assert typed("--gpus", "-1", "--max_steps", "5", "--precision", "bf16-mixed").trainer == {
        "gpus": -1,
        "max_steps": 5,
        "precision": "bf16-mixed",
    }


@pytest.mark.parametrize(
    "words",
    [
        "--base a.yaml model.params.x=1 data.params.y=2 -t",
        "--base a.yaml -t model.params.x=1 data.params.y=2",
        "model.params.x=1 -t data.params.y=2 --base a.yaml",
        "--base a.yaml -n model.params.x=1 -t data.params.y=2",
        "-t model.params.x=1 --base data.params.y=2 a.yaml",
    ],
)
def test_settings_stand_anywhere(typed: Any, words: str) -> None:
    options = typed(*words.split())
    assert options.dotlist == ["model.params.x=1", "data.params.y=2"]
    assert options.base == ["a.yaml"] and options.train


def test_other_settings_and_files_with_an_equals_sign(
    typed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lr=3.yaml", "a.b=3.yaml"):
        (tmp_path / name).touch()
    options = typed("--base", "lr=3.yaml", "a.b=3.yaml", "-t", "modle.x=1", "-n", "x=1", "-f", "y=2")
    assert options.base == ["lr=3.yaml", "a.b=3.yaml"]
    assert (options.name, options.postfix) == ("x=1", "y=2")
    assert options.dotlist == ["modle.x=1"], "left for the configuration to refuse by name"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--gpu 0", "unknown flag '--gpu'; did you mean '--gpus'?"),
        ("--scale-l no", "unknown flag '--scale-l'; did you mean '--scale_lr'?"),
        ("model.params.x=1 -t yes stray", "unexpected argument 'stray'; --help lists what main.py takes"),
        ("--max_epoch=3", "unknown flag '--max_epoch'; did you mean '--max_epochs'?"),
        ("--seed x", "argument -s/--seed: invalid int value: 'x'"),
    ],
)
def test_unknown_words(typed: Any, capsys: pytest.CaptureFixture[str], words: str, line: str) -> None:
    with pytest.raises(SystemExit) as stop:
        typed(*words.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_help_lists_the_flags(typed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        typed("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for flag in ("--base", "--resume", "--scale_lr", "--gpus", "--max_epochs", "--weights_summary"):
        assert flag in text


def test_names_that_old_yaml_files_look_for() -> None:
    from ldm.config import MAIN_ALIASES, get_obj_from_str

    for name in ("CUDACallback", "ImageLogger", "SetupCallback", "DataModuleFromConfig"):
        assert getattr(main, name) is get_obj_from_str(f"main.{name}")
    assert "main.WrappedDataset" in MAIN_ALIASES


@pytest.mark.slow
def test_the_command_itself(tmp_path: Path) -> None:
    """In a process and a folder of its own: the documents' spelling, on a CPU and refused for want of a GPU."""
    config = tiny_runs.write_yaml(tmp_path / "tiny.yaml", tiny_runs.public_config(tmp_path))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, str(tiny_runs.ROOT / "main.py"), "--base", config, "-t", "--gpus", "0,", *words]
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    refused = command()
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: --gpus: no GPU is visible on this machine; type --acc")
    assert "Traceback" not in refused.stderr and not (tmp_path / "logs").exists()
    trained = command("--accelerator", "cpu")
    assert trained.returncode == 0, trained.stderr
    (run,) = (tmp_path / "logs").iterdir()
    assert (run / "checkpoints" / "last.ckpt").is_file()
