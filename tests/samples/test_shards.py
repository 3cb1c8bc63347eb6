"""Parts of a job: they cover it once, are named apart, and are merged once, by the last process."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import UserError
from ldm.samples.shards import Shard, merge_when_complete


@given(count=st.integers(1, 20), total=st.integers(0, 200))
def test_parts_cover_every_item_once_and_evenly(count: int, total: int) -> None:
    parts = [Shard(index, count).part(total) for index in range(count)]
    assert [item for part in parts for item in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_where_the_part_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Shard.here() == Shard() and Shard.here().whole
    assert Shard.here("2/8") == Shard(1, 8)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Shard.here() == Shard(3, 4) and Shard.here("1/2") == Shard(0, 2)
    no_number, outside = "--shard {}: is no part of a job; type 1/4", "part {} does not exist; parts are 1/4"
    for text in ("2", "a/b"):
        with pytest.raises(UserError, match=no_number.format(text)):
            Shard.here(text)
    for text in ("0/2", "3/2", "1/0"):
        with pytest.raises(UserError, match=outside.format(text.replace("/", " of "))):
            Shard.here(text)


def test_the_last_process_merges_once(tmp_path: Path) -> None:
    output = tmp_path / "a.txt"
    parts = Shard(0, 2).files(output)
    assert [part.name for part in parts] == ["a.part-1-of-2.txt", "a.part-2-of-2.txt"]
    merges = []

    def merge(files: object) -> None:
        merges.append(files)
        output.write_text("".join(part.read_text() for part in parts))

    parts[1].write_text("2")
    assert not merge_when_complete(output, parts, merge) and not output.exists()
    parts[0].write_text("1")
    assert merge_when_complete(output, parts, merge) and output.read_text() == "12"
    assert not merge_when_complete(output, parts, merge), "there is nothing left to merge"
    assert len(merges) == 1 and list(tmp_path.iterdir()) == [output]


def test_a_merge_that_fails_leaves_the_parts(tmp_path: Path) -> None:
    parts = Shard(0, 2).files(tmp_path / "a.txt")
    for part in parts:
        part.touch()

    def fail(files: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_when_complete(tmp_path / "a.txt", parts, fail)
    assert sorted(tmp_path.iterdir()) == sorted(parts)
