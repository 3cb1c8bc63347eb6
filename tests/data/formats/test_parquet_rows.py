from __future__ import annotations

import json
import sys

import pytest

from ldm.data.formats.parquet_rows import class_names, column_names, row_count, rows
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
