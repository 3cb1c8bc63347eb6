"""Whole commands on tiny models: `main.py` and the sampling commands, in this process, as a person types them."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import main
from ldm import cli
from ldm.checkpoint import save_checkpoint
from ldm.config.aliases import NETWORKS
from tests import tiny

ROOT = Path(__file__).parents[1]

#: Classes that no configuration names: those that stand for others in sampling, and the wrapper of the network.
INTERNAL = {
    *({path.rpartition(".")[2] for path in NETWORKS.values()} - {path.rpartition(".")[2] for path in NETWORKS}),
    "DiffusionWrapper",
}


def write_yaml(path: Path, content: Mapping[str, Any]) -> str:
    """Write a configuration; returns its path as text, as a command line takes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content)))
    return str(path)


def small_ldm(kind: str = "spatial", **params: Any) -> dict[str, Any]:
    """Model section of the smallest model that has attention of its kind: half the time of `tiny.ldm`."""
    return tiny.ldm(kind, {"channel_mult": [1], "attention_resolutions": [1]}, **params)


def small_checkpoint(path: Path, section: Mapping[str, Any]) -> Path:
    """A checkpoint of ``section`` whose averaged weights differ from its trained ones, and both from the start."""
    torch.manual_seed(1)
    model = tiny.build(section)
    tiny.scatter(model, seed=1)
    model.model_ema.reset(model.model)
    tiny.scatter(model.model, seed=2)
    save_checkpoint({"state_dict": model.state_dict(), "model_config": section}, path)
    return path


def public_config(folder: Path, kind: str = "spatial", *, batch_size: int = 12, **trainer: Any) -> dict[str, Any]:
    """Configuration of a run without privacy: 24 images, two steps an epoch, one epoch unless ``trainer`` differs."""
    digits = tiny.write_digits(folder / "digits")
    given = {"max_epochs": 1, **trainer}
    return tiny.run_config(small_ldm(kind), digits, batch_size, **given)


class Commands:
    """Types commands in a folder of its own, with a cache of its own; what they print is in ``err`` and ``out``."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str] | None = None
    ) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        self.out = self.err = ""
        monkeypatch.chdir(folder)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))

    def type(self, verb: Any, *words: object) -> int:
        """Run a command (its main function, or the path of its script) and return the exit code.

        A command that wrote a file must have said so, and what to type next.
        """
        before = self.files()
        self.monkeypatch.setattr(sys, "argv", ["verb", *map(str, words)])
        if self.capsys is not None:
            self.capsys.readouterr()
        code = 0
        try:
            if isinstance(verb, Path):
                runpy.run_path(str(verb), run_name="__main__")
            else:
                cli.run(verb)
        except SystemExit as stop:
            code = int(stop.code or 0)
        if self.capsys is not None:
            self.out, self.err = self.capsys.readouterr()
            silent = "written to " not in self.out or "next: " not in self.out
            assert code or not silent or self.files() <= before, "something was written, and not a word about it"
        return code

    def train(self, *words: object) -> int:
        """``main.py`` with these words."""
        return self.type(main.main, *words)

    def refused(self, verb: Any, *words: object) -> str:
        """The one line on stderr with which a command refuses these words, exit code 2.

        It must leave no new file, and name no class that the user cannot know.
        """
        before = self.files()
        code = self.type(verb, *words)
        assert code == 2, (code, self.err)
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in self.err
        assert not INTERNAL & set(re.findall(r"\w+", self.err)), "a class that no configuration names"
        assert self.files() == before, "something was left behind"
        return line.removeprefix("error: ")

    def files(self) -> set[Path]:
        """Everything in the folder but the cache."""
        return {path for path in self.folder.rglob("*") if "cache" not in path.relative_to(self.folder).parts[:1]}

    def runs(self, logdir: str = "logs") -> list[Path]:
        """The run directories below ``logdir``, oldest first."""
        return sorted((self.folder / logdir).glob("*"))


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    """Commands in a temporary folder."""
    return Commands(tmp_path, monkeypatch, capsys)
