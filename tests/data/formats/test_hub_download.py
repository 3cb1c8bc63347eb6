"""The hub's own client does the work; here is what is asked of it, and what a person reads when it fails."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from ldm.data.formats.hub_download import fetch_parquet
from ldm.errors import UserError

LISTED = ["README.md", "data/test-0.parquet", "data/train-0.parquet", "data/notes.txt", "old/data/x.parquet"]


@pytest.fixture
def hub(monkeypatch):
    """A hub that keeps what it was asked; ``sends`` are the files that it really sends."""
    seen = {"sends": ["data/train-0.parquet", "data/test-0.parquet"], "listed": LISTED}

    def download(repository, *, repo_type, allow_patterns, local_dir):
        seen["asked"] = (repository, repo_type, allow_patterns)
        for name in seen["sends"]:
            (Path(local_dir) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(local_dir) / name).touch()
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository, repo_type: seen["listed"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return seen


def test_the_parquet_files_of_the_data_folder_arrive(hub, tmp_path):
    paths = fetch_parquet("someone/faces", tmp_path)
    assert paths == [tmp_path / "data" / "test-0.parquet", tmp_path / "data" / "train-0.parquet"]
    assert hub["asked"] == ("someone/faces", "dataset", "data/*.parquet")


def test_a_file_that_was_not_sent_is_missed(hub, tmp_path):
    hub["sends"] = ["data/train-0.parquet"]
    with pytest.raises(UserError, match="has no data/test-0.parquet; .*--from FOLDER"):
        fetch_parquet("someone/faces", tmp_path)
    hub["listed"] = ["README.md"]
    with pytest.raises(UserError, match=r"has no data/\*.parquet"):
        fetch_parquet("someone/faces", tmp_path)


def test_without_a_network_one_line_says_what_to_do(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise ConnectionError("no route to host\nmore lines")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", refuse)
    with pytest.raises(UserError, match="cannot be downloaded .no route to host.*--from FOLDER") as caught:
        fetch_parquet("someone/faces", tmp_path)
    assert "\n" not in str(caught.value)
