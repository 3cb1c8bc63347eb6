"""Which checkpoint of a run is gone on from."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ldm.checkpoint import save_checkpoint
from ldm.training.newest_checkpoint import newest_checkpoint, steps_of
from ldm.training.run_directory import RunDirectory, resumed_run


def save(path: Path, steps: int, **more: object) -> Path:
    content = {
        "state_dict": {"w": torch.ones(3)},
        "global_step": steps,
        "optimizer_states": [{"a": torch.ones(2)}],
        **more,
    }
    save_checkpoint(content, path)
    return path


def test_the_one_that_has_come_furthest_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    save(folder / "last.ckpt", 4)
    assert newest_checkpoint(folder) == folder / "last.ckpt"
    far = save(folder / "on_signal.ckpt", 6)
    os.utime(far, (1, 1))  # as copying does
    save_checkpoint({"state_dict": {}, "global_step": 9}, folder / "weights.ckpt")
    save(folder / "cut.ckpt", 8)
    (folder / "cut.ckpt").write_bytes((folder / "cut.ckpt").read_bytes()[:-300])
    (folder / "text.ckpt").write_text("no")
    assert newest_checkpoint(folder) == resumed_run(str(folder.parent)).resume_from == far
    assert steps_of(folder / "cut.ckpt") is steps_of(folder / "weights.ckpt") is steps_of(folder / "text.ckpt") is None
    os.link(far, folder / "epoch=000001.ckpt")
    (folder / "last.ckpt").unlink()
    os.link(far, folder / "last.ckpt")
    assert newest_checkpoint(folder) == folder / "last.ckpt"


class Harmful:
    def __reduce__(self) -> object:
        return os.system, ("touch harmed",)


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: object) -> None:
    os.chdir(tmp_path)
    path = tmp_path / "a.ckpt"
    torch.save({"global_step": 3, "optimizer_states": [], "x": Harmful()}, path)
    assert steps_of(path) == 3
    assert not Path("harmed").exists()


def test_leftovers_of_a_killed_run_go(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "now")
    (tmp_path / "checkpoints").mkdir()
    for name in ("checkpoints/.last.0123.tmp.ckpt", ".privacy.json.x1", "checkpoints/last.ckpt", "privacy.json"):
        (tmp_path / name).touch()
    run.remove_leftovers()
    assert {path.name for path in tmp_path.rglob("*")} == {"checkpoints", "last.ckpt", "privacy.json"}
