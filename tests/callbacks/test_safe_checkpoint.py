"""Checkpoints of the Trainer: whole or not there, and read without running anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.safe_checkpoint import SafeCheckpointIO
from ldm.checkpoint import io as files
from ldm.errors import UserError

CONTENT = {"state_dict": {"w": torch.arange(3.0)}, "epoch": 2, "optimizer_states": [{"state": {}}]}


def test_there_and_back_with_new_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "last.ckpt"
    SafeCheckpointIO().save_checkpoint(CONTENT, str(path))
    found = SafeCheckpointIO().load_checkpoint(str(path))
    assert torch.equal(found["state_dict"]["w"], CONTENT["state_dict"]["w"])
    assert found["epoch"] == 2 and found["optimizer_states"] == [{"state": {}}]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint(CONTENT, path)
    old = path.read_bytes()

    def fail(content: Any, target: Any) -> None:
        Path(target).write_bytes(b"half")
        raise error

    monkeypatch.setattr(files.torch, "save", fail)
    with pytest.raises(type(error)):
        SafeCheckpointIO().save_checkpoint({**CONTENT, "epoch": 3}, path)
    assert path.read_bytes() == old
    assert [item.name for item in tmp_path.iterdir()] == ["last.ckpt"], "no temporary file either"


def test_the_file_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    seen: list[bool] = []
    save = torch.save
    monkeypatch.setattr(files.torch, "save", lambda c, t: (save(c, t), seen.append(path.exists())))
    SafeCheckpointIO().save_checkpoint(CONTENT, path)
    assert seen == [False] and path.exists()


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**CONTENT, "callbacks": Harmful()}, "bad.ckpt")
    with pytest.raises(UserError, match="bad.ckpt' is refused.*nothing in it was run"):
        SafeCheckpointIO().load_checkpoint("bad.ckpt")
    assert not Path("harmed").exists()


def test_remove(tmp_path: Path) -> None:
    SafeCheckpointIO().save_checkpoint(CONTENT, tmp_path / "a.ckpt")
    SafeCheckpointIO().remove_checkpoint(tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []
