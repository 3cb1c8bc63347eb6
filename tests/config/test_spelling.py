"""Names that YAML would read as numbers keep their spelling, or are refused with the way to write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.config import instantiate_from_config, load_config
from ldm.errors import UserError

SPELLINGS = ["007", "010", "1_000", "1e3", "1.50", "0x10", "12:30", "+5", "-0", ".5", "2024", "2024-01-01", "1.10.2"]


@pytest.mark.parametrize("word", SPELLINGS)
@pytest.mark.parametrize("key", ["root", "path", "ckpt_path", "save_dir", "name"])
def test_a_name_keeps_its_spelling(tmp_path: Path, key: str, word: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"data:\n  {key}: {word} # a folder\n  more: {{{key}: {word}}}\n  size: 32\n")
    found = load_config([file]).data
    assert found[key] == word and found.more[key] == word and found.size == 32
    assert load_config([], [f"data.{key}={word}"]).data[key] == word


def test_lists_and_aliases_keep_it_too(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("root: &a 007\npath: [007, 1_0, b]\ndatadir: *a\nbase: []\n")
    found = load_config([tmp_path / "a.yaml"])
    assert found.root == found.datadir == "007" and found.path == ["007", "1_0", "b"]


@pytest.mark.parametrize(("word", "number"), [("007", 7), ("010", 8), ("12:30", 750), ("0x10", 16), ("-010", -8)])
def test_another_number_than_the_written_one_is_refused(tmp_path: Path, word: str, number: int) -> None:
    (tmp_path / "a.yaml").write_text(f"data:\n  params:\n    batch_size: {word}\n")
    line = f"line 3: {word} would be read as the number {number}; quote it ('{word}'), or write {number}"
    with pytest.raises(UserError) as caught:
        load_config([tmp_path / "a.yaml"])
    assert line in str(caught.value)
    with pytest.raises(UserError, match=f"would be read as the number {number}"):
        load_config([], [f"data.params.batch_size={word}"])


NUMBERS = [("0", 0), ("10", 10), ("0.5", 0.5), ("1e-3", 1e-3), ("1_000", 1000), ("'007'", "007"), ("08", "08")]


@pytest.mark.parametrize(("word", "value"), NUMBERS)
def test_numbers_stay_numbers(tmp_path: Path, word: str, value: object) -> None:
    (tmp_path / "a.yaml").write_text(f"rate: {word}\n")
    for found in (load_config([tmp_path / "a.yaml"]).rate, load_config([], [f"rate={word}"]).rate):
        assert found == value and type(found) is type(value)


def test_a_folder_of_that_name_is_the_one_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("7", "007"):
        Path(name).mkdir()
    Path("a.yaml").write_text("target: ldm.data.mnist.MNISTTrain\nparams: {root: 007}\n")
    with pytest.raises(UserError, match="in 007 or"):
        instantiate_from_config(load_config(["a.yaml"]))
