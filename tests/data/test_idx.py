from __future__ import annotations

import gzip
import os

import numpy as np
import pytest

from ldm.data.idx import read_idx, read_pair
from ldm.errors import UserError
from tests.data.files import write_digits, write_idx


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_array_survives_the_way_to_disk_and_back(tmp_path, suffix):
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    write_idx(tmp_path / f"a{suffix}", array)
    assert np.array_equal(read_idx(tmp_path / f"a{suffix}"), array)


def test_wide_integers_are_big_endian(tmp_path):
    (tmp_path / "a").write_bytes(bytes([0, 0, 0x0C, 1, 0, 0, 0, 2, 0, 0, 1, 0, 255, 255, 255, 255]))
    assert read_idx(tmp_path / "a").tolist() == [256, -1]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not an IDX file"),
        (b"\x89PNG....", "not an IDX file"),
        (b"\0\0\x07\x01\0\0\0\x01\0", "not an IDX file"),
        (b"\0\0\x08\x03\0\0", "ends inside its header"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "12 bytes|11 bytes"),
        (b"\0\0\x08\x01\0\0\0\x02abc", "asks for 10"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abcde", mtime=0)[:-6], "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_idx(tmp_path / "broken")
    assert "broken" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_idx(tmp_path / "nowhere")


def test_a_pair_is_found_in_the_first_folder_that_has_both(tmp_path):
    write_idx(tmp_path / "a" / "train-images-idx3-ubyte", np.zeros((2, 3, 3)))
    write_digits(tmp_path / "b", suffix=".gz")
    images, labels = read_pair("train", [tmp_path / "a", tmp_path / "b"])
    assert images.shape == (40, 28, 28) and labels.shape == (40,)
    assert read_pair("other", [tmp_path / "b"]) is None


def test_images_and_labels_must_be_as_many(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 3, 3)))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3))
    with pytest.raises(UserError, match="labels"):
        read_pair("train", [tmp_path])


@pytest.mark.parametrize("packed", [True, False])
def test_what_a_header_claims_is_bounded(tmp_path, packed):
    """A few kilobytes that unpack to gigabytes, and a rank without end, are refused before memory is taken."""
    header = bytes([0, 0, 8, 3]) + (60_000).to_bytes(4, "big") + (256).to_bytes(4, "big") * 2
    content = header + bytes(10**6)
    (tmp_path / "a").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match="would unpack .* it is refused"):
        read_idx(tmp_path / "a")
    (tmp_path / "a").write_bytes(bytes([0, 0, 8, 255]) + bytes(2000))
    with pytest.raises(UserError, match="not an IDX file"):
        read_idx(tmp_path / "a")


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(UserError, match="it is a pipe or a device"):
            read_idx(tmp_path / name)
