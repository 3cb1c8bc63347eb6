"""Names of run directories, and how runs are found again."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.files import check_writable
from ldm.training.run_directory import RunDirectory, new_run, resumed_run

NOW = datetime.datetime(2026, 3, 4, 5, 6, 7)
STAMP = "2026-03-04T05-06-07"


def made(folder: Path, name: str, last: bool = True) -> Path:
    """A run directory with a checkpoint and two pairs of configurations."""
    run = folder / name
    for part in ("checkpoints", "configs"):
        (run / part).mkdir(parents=True)
    for stamp in ("2026-01-02T00-00-00", "2026-01-01T00-00-00"):
        for kind in ("project", "lightning"):
            (run / "configs" / f"{stamp}-{kind}.yaml").write_text("{}")
    (run / "checkpoints" / "epoch=000003.ckpt").touch()
    if last:
        (run / "checkpoints" / "last.ckpt").touch()
    return run


@pytest.mark.parametrize(
    ("name", "base", "postfix", "wanted"),
    [
        ("", ["configs/mnist.yaml", "other.yaml"], "", f"{STAMP}_mnist"),
        ("digits", ["configs/mnist.yaml"], "", f"{STAMP}_digits"),
        ("", ["configs/mnist.yaml"], "-second", f"{STAMP}_mnist-second"),
        ("a[1]*?", ["mnist.yaml"], "", f"{STAMP}_a[1]*?"),
    ],
)
def test_names(tmp_path: Path, name: str, base: list[str], postfix: str, wanted: str) -> None:
    run = new_run(str(tmp_path / "logs"), name, base, postfix, NOW)
    assert run.path == tmp_path / "logs" / wanted
    assert run.stamp == STAMP and run.resume_from is None
    assert run.checkpoints == run.path / "checkpoints" and run.configs == run.path / "configs"
    assert list(tmp_path.iterdir()) == [], "naming a run creates nothing"


def test_two_runs_in_one_second(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        run = new_run(str(tmp_path), "", ["a.yaml"], "x", NOW)
        run.path.mkdir()
        names.append(run.path.name)
    assert names == [f"{STAMP}_ax", f"{STAMP}_ax-2", f"{STAMP}_ax-3"]


@pytest.mark.parametrize(("name", "postfix", "flag"), [("a/b", "", "--name"), ("", "/b", "--postfix")])
def test_a_name_is_no_path(tmp_path: Path, name: str, postfix: str, flag: str) -> None:
    with pytest.raises(UserError, match=f"{flag} .*slash; type --logdir"):
        new_run(str(tmp_path), name, ["a.yaml"], postfix, NOW)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        with pytest.raises(UserError, match="--logdir .* cannot be written to"):
            new_run(str(folder), "", ["a.yaml"], "", NOW)
    check_writable(tmp_path / "not" / "yet", "--logdir")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_resume_by_directory_and_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path, "run")
    for word in (str(run), f"{run}/"):
        assert resumed_run(word, NOW) == RunDirectory(run, STAMP, run / "checkpoints" / "last.ckpt")
    other = run / "checkpoints" / "epoch=000003.ckpt"
    assert resumed_run(str(other), NOW) == RunDirectory(run, STAMP, other)
    monkeypatch.chdir(other.parent)
    assert resumed_run(other.name, NOW).path == run, "a bare file name belongs to the run two folders up, too"
    monkeypatch.chdir(run)
    assert resumed_run(".", NOW).resume_from == run / "checkpoints" / "last.ckpt"


def test_earlier_configurations_come_oldest_first_whatever_the_name(tmp_path: Path) -> None:
    run = made(tmp_path, "run[1]*?")
    made(tmp_path, "run1xx")
    found = resumed_run(str(run), NOW).earlier_configs()
    assert [path.name for path in found] == [
        "2026-01-01T00-00-00-lightning.yaml",
        "2026-01-01T00-00-00-project.yaml",
        "2026-01-02T00-00-00-lightning.yaml",
        "2026-01-02T00-00-00-project.yaml",
    ]
    assert {path.parent.parent for path in found} == {run}


def test_runs_that_cannot_be_resumed(tmp_path: Path) -> None:
    run = made(tmp_path, "some_run", last=False)
    with pytest.raises(UserError, match="holds no whole checkpoint of a training run; name a checkpoint file"):
        resumed_run(str(run), NOW)
    with pytest.raises(UserError, match="there is no such run directory or checkpoint; did you mean 'some_run'"):
        resumed_run(str(tmp_path / "some_rum"), NOW)
    with pytest.raises(UserError, match="there is no such run"):
        resumed_run(str(tmp_path / "none" / "none"), NOW)
