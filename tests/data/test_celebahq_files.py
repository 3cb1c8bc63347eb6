"""Extraction of CelebA-HQ; the Parquet reader is replaced by rows in memory except where pyarrow is installed."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from ldm.data import celebahq_files
from ldm.data.celebahq import CelebAHQ
from ldm.data.celebahq_files import extract, parquet_files
from ldm.data.formats import parquet_rows
from ldm.errors import UserError
from tests.data.faces import image

FILES = ["test-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
LABELS = {FILES[0]: [1, 0], FILES[1]: [0, 0, 1], FILES[2]: [1, 0, 1]}


def encoded(number: int, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image(number, 8, 8)).save(stream, format=form)
    return stream.getvalue()


def table(form: str = "PNG") -> dict[str, list[dict]]:
    """Rows by file: images numbered through in the files' order, with their labels."""
    content, number = {}, 0
    for name in FILES:
        content[name] = []
        for label in LABELS[name]:
            content[name].append({"image": {"bytes": encoded(number, form), "path": None}, "label": label})
            number += 1
    return content


class Source:
    """Stands in for `ldm.data.formats.parquet_rows`: rows in memory, one file of any bytes for each."""

    def __init__(self, folder, content, names=None):
        self.content, self.names, self.read = content, names, []
        folder.mkdir(parents=True, exist_ok=True)
        for name in content:
            (folder / name).write_bytes(b"x" * 10)

    def row_count(self, path):
        return len(self.content[path.name])

    def column_names(self, path):
        return list(self.content[path.name][0])

    def class_names(self, path, column):
        return self.names

    def rows(self, paths, columns):
        for path in paths:
            for row in self.content[path.name]:
                self.read.append(path.name)
                yield {column: row[column] for column in columns}


@pytest.fixture
def source(tmp_path, monkeypatch):
    def put(content=None, names=None):
        stand_in = Source(tmp_path / "parquet", table() if content is None else content, names)
        monkeypatch.setattr(celebahq_files, "parquet_rows", stand_in)
        return stand_in

    put()
    return put


def files(tmp_path):
    return parquet_files(tmp_path / "parquet")


def test_the_folder_is_what_the_data_set_reads(tmp_path, source):
    assert extract(files(tmp_path), tmp_path / "out") == {"train": 6, "test": 2}
    for split, numbers in (("train", [2, 3, 4, 5, 6, 7]), ("test", [0, 1]), ("all", list(range(8)))):
        data = CelebAHQ(root=tmp_path / "out", split=split, size=8, target_type="class", class_attrs=["Male"])
        flat = [label for name in FILES for label in LABELS[name]]
        assert [int(data.pixels(i)[0, 0, 0]) for i in range(len(data))] == numbers
        assert data.labels.tolist() == [flat[n] for n in numbers]
    assert pickle.loads((tmp_path / "out" / "train_filenames.pickle").read_bytes()) == [2, 3, 4, 5, 6, 7]
    lines = (tmp_path / "out" / "image_list.txt").read_text().splitlines()
    assert lines[0] == "idx celebA_idx split" and lines[3] == "2 img00000002.png 2" and len(lines) == 9


def test_celebas_own_labels_cannot_slip_in(tmp_path, source):
    extract(files(tmp_path), tmp_path)
    (tmp_path / "list_attr_celeba.txt").write_text("1\nMale\n000001.jpg 1\n")
    with pytest.raises(UserError, match="does not say which of them"):
        CelebAHQ(root=tmp_path, target_type="class", class_attrs=["Male"])


@pytest.mark.parametrize(
    "names, male, flipped",
    [(None, None, False), (["female", "male"], None, False), (["Male", "Female"], None, True), (None, 0, True)],
)
def test_which_label_is_a_man(tmp_path, source, names, male, flipped):
    source(names=names)
    extract(files(tmp_path), tmp_path / "out", male=male)
    data = CelebAHQ(root=tmp_path / "out", split="test", target_type="class", class_attrs=["Male"])
    assert data.labels.tolist() == ([0, 1] if flipped else [1, 0])


def test_labels_that_are_not_understood(tmp_path, source):
    source(names=["cat", "dog"])
    with pytest.raises(UserError, match="--male LABEL"):
        extract(files(tmp_path), tmp_path / "out")
    content = table()
    content[FILES[1]][1]["label"] = 2
    source(content)
    with pytest.raises(UserError, match="label 2"):
        extract(files(tmp_path), tmp_path / "out")


def test_files_without_labels_give_images_alone(tmp_path, source, caplog):
    source({name: [{"image": row["image"]} for row in rows] for name, rows in table().items()})
    assert extract(files(tmp_path), tmp_path / "out") == {"train": 6, "test": 2}
    assert "no classes" in caplog.text and len(CelebAHQ(root=tmp_path / "out")) == 6
    with pytest.raises(UserError, match="no list_attr_celeba.txt"):
        CelebAHQ(root=tmp_path / "out", target_type="attr")


def test_it_goes_on_where_it_stopped(tmp_path, source, monkeypatch):
    content = table()
    content[FILES[2]][1]["image"] = {"bytes": b"no image"}
    source(content)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="img00000006.png"):
        extract(files(tmp_path), out)
    assert len(list((out / "images").iterdir())) == 6 and not (out / "train_filenames.pickle").exists()
    (out / "images" / "img00000001.png").write_bytes(b"half")  # as a broken disk would leave it
    before = (out / "images" / "img00000003.png").stat().st_mtime_ns
    source()
    assert extract(files(tmp_path), out) == {"train": 6, "test": 2}
    assert (out / "images" / "img00000003.png").stat().st_mtime_ns == before
    assert int(CelebAHQ(root=out, split="test", size=8).pixels(1)[0, 0, 0]) == 1


def test_images_from_other_files_are_not_mixed(tmp_path, source):
    out = tmp_path / "out"
    extract(files(tmp_path), out)
    (tmp_path / "parquet" / FILES[2]).unlink()
    with pytest.raises(UserError, match="8 images that come from other files"):
        extract(files(tmp_path), out)
    assert extract(files(tmp_path), out, overwrite=True) == {"train": 3, "test": 2}
    assert len(CelebAHQ(root=out, split="all")) == 5


def test_jpeg_and_grey_images_become_png(tmp_path, source):
    content = table("JPEG")
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(stream, format="PNG")
    content[FILES[0]][0]["image"] = stream.getvalue()
    source(content)
    extract(files(tmp_path), tmp_path / "out")
    with Image.open(tmp_path / "out" / "images" / "img00000000.png") as grey:
        assert grey.mode == "RGB" and grey.getpixel((3, 3)) == (77, 77, 77)
    with Image.open(tmp_path / "out" / "images" / "img00000005.png") as colour:
        assert colour.format == "PNG" and colour.size == (8, 8)


def test_other_numbers_than_expected_are_said(tmp_path, source, caplog, monkeypatch):
    extract(files(tmp_path), tmp_path / "out")
    assert "'train': 28000" in caplog.text and "images are 8x8" in caplog.text
    caplog.clear()
    monkeypatch.setattr(celebahq_files, "EXPECTED", {"train": 6, "test": 2})
    extract(files(tmp_path), tmp_path / "out")
    assert "28000" not in caplog.text


def test_a_image_too_many_is_noticed(tmp_path, source):
    extract(files(tmp_path), tmp_path / "out")
    (tmp_path / "out" / "images" / "img00000099.png").write_bytes(encoded(99))
    with pytest.raises(UserError, match="9 images and the files 8 rows"):
        extract(files(tmp_path), tmp_path / "out")


def test_the_files_are_found_in_the_data_folder_too(tmp_path, source):
    (tmp_path / "other" / "data").mkdir(parents=True)
    with pytest.raises(UserError, match="no .*parquet files"):
        parquet_files(tmp_path / "other")
    (tmp_path / "other" / "data" / "a.parquet").touch()
    assert [path.name for path in parquet_files(tmp_path / "other")] == ["a.parquet"]


def test_real_parquet_files(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed; type: pip install pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "parquet").mkdir()
    for name, rows in table().items():
        columns = {"image": [row["image"] for row in rows], "label": [row["label"] for row in rows]}
        parquet.write_table(arrow.table(columns), tmp_path / "parquet" / name)
    assert parquet_rows.row_count(tmp_path / "parquet" / FILES[1]) == 3
    assert extract(files(tmp_path), tmp_path / "out") == {"train": 6, "test": 2}
    data = CelebAHQ(root=tmp_path / "out", size=8, target_type="class", class_attrs=["Male"])
    assert [int(data.pixels(i)[0, 0, 0]) for i in range(6)] == [2, 3, 4, 5, 6, 7]
    assert data.labels.tolist() == LABELS[FILES[1]] + LABELS[FILES[2]]
