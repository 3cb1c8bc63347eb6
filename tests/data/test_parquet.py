from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ldm.data import parquet
from ldm.data.parquet import ParquetImages
from ldm.errors import UserError
from tests.data.numbered_images import image, red


def png(number: int, height: int = 12, width: int = 10) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image(number, height, width)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Files whose rows are these dicts, without the pyarrow package: two of three images, one between without."""
    content = {
        "a.parquet": [{"image": {"bytes": png(i), "path": f"{i}.png"}, "label": i % 2, "id": i} for i in range(3)],
        "b.parquet": [],
        "c.parquet": [{"image": png(i), "label": i % 2, "id": i} for i in range(3, 6)],
    }
    for name in content:
        (tmp_path / name).touch()

    def rows(paths, columns=None, batch_size=64):
        for path in paths:
            for row in content[path.name]:
                yield {column: row[column] for column in columns}

    monkeypatch.setattr(parquet, "rows", rows)
    monkeypatch.setattr(parquet, "class_names", lambda path, column: None)
    monkeypatch.setattr(parquet, "column_names", lambda path: list(next(iter(content["a.parquet"]))))
    return tmp_path, content


def test_images_in_order_with_their_labels(tables):
    folder, _ = tables
    data = ParquetImages(folder)
    assert [red(data[i]) for i in range(len(data))] == list(range(6)) and data.num_classes == 2
    assert [data[i]["class_label"] for i in range(6)] == data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data[1]["image"].shape == (12, 10, 3)
    assert red(ParquetImages([folder / "c.parquet", folder / "a.parquet"])[0]) == 3
    assert ParquetImages(path=folder, size=8)[0]["image"].shape == (8, 8, 3)
    assert ParquetImages(path=folder, config={"size": 8}, channels=1)[0]["image"].shape == (8, 8, 1)


def test_columns(tables):
    folder, _ = tables
    assert set(ParquetImages(folder, label_column="")[0]) == {"image"}
    assert ParquetImages(folder, label_column="id")[5]["class_label"] == 5
    assert ParquetImages(folder, label_column="").labels is None


def test_fingerprints(tables):
    folder, _ = tables
    marks = [ParquetImages(folder, **options).fingerprint() for options in ({}, {"size": 8}, {"label_column": "id"})]
    assert len(set(marks)) == 3 and ParquetImages(folder).fingerprint() == marks[0]


@pytest.mark.parametrize(
    ("column", "value", "line"),
    [
        ("image", None, "row 1: column 'image' holds NoneType and no encoded image"),
        ("image", {"bytes": None, "path": "a.png"}, "no encoded image"),
        ("label", None, "row 1: column 'label' holds None and no class number"),
        ("label", -1, "holds -1"),
        ("label", "cat", "holds 'cat'"),
    ],
)
def test_rows_that_do_not_fit(tables, column, value, line):
    folder, content = tables
    content["a.parquet"][1][column] = value
    with pytest.raises(UserError) as caught:
        ParquetImages(folder)
    assert line in str(caught.value) and "a.parquet" in str(caught.value)


def test_mistakes_are_named(tables, tmp_path):
    folder, content = tables
    with pytest.raises(UserError, match="no column 'imag'; did you mean 'image'.*its columns are image, label, id"):
        ParquetImages(folder, image_column="imag")
    for path in (folder / "none.parquet", folder / "none"):
        with pytest.raises(UserError, match="no Parquet file at"):
            ParquetImages(path)
    with pytest.raises(UserError, match="names no file"):
        ParquetImages([])
    with pytest.raises(UserError, match="no rows in"):
        ParquetImages(folder / "b.parquet")
    content["c.parquet"][1]["image"] = b"no image"
    with pytest.raises(UserError, match="c.parquet, row 1: cannot be read as an image"):
        ParquetImages(folder)[4]


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="needs the pyarrow package; type: pip install pyarrow"):
        ParquetImages(tmp_path)


def test_files_that_pyarrow_writes(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    for part in range(2):
        cells = [{"bytes": png(3 * part + i), "path": None} for i in range(3)]
        write_table(pa.table({"image": cells, "label": [0, 1, 2]}), tmp_path / f"train-{part}.parquet")
    data = ParquetImages(tmp_path, size=10)
    assert [red(data[i]) for i in range(6)] == list(range(6)) and np.array_equal(data.labels, [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("label", [2**62, 2**21, 3])
def test_labels_stay_in_range(tables, monkeypatch, label):
    """Up to the classes that the file names, or else up to a million; `num_classes` never follows a damaged label."""
    folder, content = tables
    content["a.parquet"][1]["label"] = label
    if label == 3:
        monkeypatch.setattr(parquet, "class_names", lambda path, column: ["cat", "dog"])
    with pytest.raises(UserError, match=f"row 1 has the label {label}; expected 0 to"):
        ParquetImages(folder)


def test_named_classes_count_even_when_one_is_absent(tables, monkeypatch):
    monkeypatch.setattr(parquet, "class_names", lambda path, column: ["cat", "dog", "eel"])
    data = ParquetImages(tables[0])
    assert data.num_classes == 3 and data.class_names == ["cat", "dog", "eel"]
