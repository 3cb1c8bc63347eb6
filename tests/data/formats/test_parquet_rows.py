from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

from ldm.data.formats.parquet_rows import bounded_batch, class_names, column_names, open_parquet, row_count, rows
from ldm.errors import UserError


@pytest.fixture
def files(tmp_path):
    """Two files with 5 and 3 rows, numbered through; the image column is a struct as on the hub."""
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed; type: pip install pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = []
    for start, count in ((0, 5), (5, 3)):
        numbers = range(start, start + count)
        images = [{"bytes": bytes([n]), "path": f"{n}.png"} for n in numbers]
        paths.append(tmp_path / f"part-{start}.parquet")
        parquet.write_table(arrow.table({"image": images, "label": [n % 2 for n in numbers]}), paths[-1])
    return paths


def test_rows_come_in_order_across_files_and_batches(files):
    found = list(rows(files, ["image", "label"], batch_size=2))
    assert [row["image"]["bytes"][0] for row in found] == list(range(8))
    assert [row["label"] for row in found] == [n % 2 for n in range(8)]
    assert list(rows(files, ["label"]))[3] == {"label": 1}
    assert list(rows(files)) == found


def test_rows_are_read_as_they_are_asked_for(files):
    files[1].unlink()
    stream = rows(files, ["label"])
    assert [next(stream)["label"] for _ in range(5)] == [0, 1, 0, 1, 0]
    with pytest.raises(UserError, match="there is no file"):
        next(stream)


def test_names_and_numbers_without_reading_images(files):
    assert column_names(files[0]) == ["image", "label"]
    assert [row_count(path) for path in files] == [5, 3]


def test_class_names_are_those_of_the_hubs_description(tmp_path, files):
    import pyarrow
    import pyarrow.parquet

    features = {"label": {"names": ["female", "male"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pyarrow.table({"label": [0, 1]})
    described = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(described, tmp_path / "described.parquet")
    assert class_names(tmp_path / "described.parquet", "label") == ["female", "male"]
    assert class_names(tmp_path / "described.parquet", "image") is None
    assert class_names(files[0], "label") is None


def test_an_unknown_column_is_named(files):
    with pytest.raises(UserError, match="did you mean 'label'"):
        next(rows(files, ["lable"]))


def test_a_file_that_is_not_parquet(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed; type: pip install pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"not it")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        next(rows([tmp_path / "a.parquet"]))


def test_without_pyarrow_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        next(rows([tmp_path / "a.parquet"]))


def test_a_damaged_file_is_one_line(files):
    content = bytearray(files[0].read_bytes())
    for place in (310, 526, *range(4, len(content) - 8, 41)):  # 310 and 526 ended the process
        broken = bytearray(content)
        broken[place] ^= 0x55
        files[0].write_bytes(broken)
        try:
            list(rows([files[0]]))
        except UserError as error:
            assert "\n" not in str(error) and str(files[0]) in str(error)


def test_what_a_file_unpacks_to_is_bounded(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"image": [bytes(2**20)] * 200})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "a.parquet").stat().st_size < 2**20
    with pytest.raises(UserError, match="would unpack .* it is refused"):
        list(rows([tmp_path / "a.parquet"]))
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(UserError, match="a pipe or a device"):
        row_count(tmp_path / "pipe.parquet")


def test_large_values_that_a_dictionary_repeats_are_decoded_few_at_a_time(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    content = np.random.default_rng(0).bytes(2**24)
    parquet.write_table(arrow.table({"image": [content] * 40}), tmp_path / "a.parquet", dictionary_pagesize_limit=2**26)
    with open_parquet(tmp_path / "a.parquet") as file:
        assert bounded_batch(file, 10**6) <= 64
    assert sum(1 for _ in rows([tmp_path / "a.parquet"])) == 40
