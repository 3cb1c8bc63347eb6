"""The command that makes the CelebA-HQ folder; what it does is tested in tests/data/test_celebahq_files.py."""

from __future__ import annotations

import pytest

from ldm.cli import run
from ldm.data import celebahq_files
from ldm.data.formats import hub_download
from scripts import extract_celeba_hq


@pytest.fixture
def calls(monkeypatch):
    seen = []

    def extract(files, root, *, male, overwrite):
        seen.append(([path.name for path in files], root, male, overwrite))
        return {"train": 28000, "test": 2000}

    def fetch(repository, folder):
        seen.append((repository, folder))
        return [folder / "data" / "a.parquet"]

    monkeypatch.setattr(celebahq_files, "extract", extract)
    monkeypatch.setattr(hub_download, "fetch_parquet", fetch)
    return seen


def test_it_downloads_into_the_folder_that_the_data_set_reads(calls, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LDM_DATA_ROOT", raising=False)
    extract_celeba_hq.main([])
    root = tmp_path / "CelebAHQ"
    assert calls == [
        ("korexyz/celeba-hq-256x256", root / "dataset"),
        (["a.parquet"], root, None, False),
    ]
    assert "28,000 train and 2,000 test images" in capsys.readouterr().out


def test_nothing_is_downloaded_with_a_folder_of_ones_own(calls, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train-0.parquet").touch()
    extract_celeba_hq.main(
        ["--from", str(tmp_path / "in"), "--root", str(tmp_path / "out"), "--male", "0", "--overwrite"]
    )
    assert calls == [(["train-0.parquet"], tmp_path / "out", 0, True)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--from", "/nowhere/at/all"], "no *.parquet files in /nowhere/at/all"),
        (["--rot", "x"], "did you mean '--root'"),
        (["--male", "2"], "--male"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run(lambda: extract_celeba_hq.main(arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
