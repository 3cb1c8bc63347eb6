"""Depth, range, orientation and transparency of image files: scaled by a fixed white, or refused with the name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from ldm.cli import out_of_memory_line
from ldm.data.folder import ImageFolder
from ldm.errors import UserError
from ldm.evaluation.inputs.image_source import open_images
from ldm.samples.folder_survey import survey
from ldm.samples.image_files import decode_bytes, read_header, read_image, unreadable

RAMP = np.linspace(0, 1, 256).reshape(16, 16)
BYTES = np.rint(RAMP * 255).astype(np.uint8)


def saved(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_is_scaled_by_its_white(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, np.rint(RAMP * 65535).astype(np.uint16))
    assert np.array_equal(read_image(path), BYTES)
    half = saved(tmp_path / f"half-{name}", np.rint(RAMP * 32767).astype(np.uint16))
    assert read_image(half).max() == 127, "an image is never stretched to its own brightest pixel"


def test_floats_are_0_to_1_or_refused(tmp_path: Path) -> None:
    assert np.array_equal(read_image(saved(tmp_path / "a.tif", RAMP.astype(np.float32))), BYTES)
    for number, values in enumerate((RAMP * 255, RAMP * 2 - 1, RAMP * np.nan)):
        with pytest.raises(UserError, match=rf"{number}.tif: .*float pixels from .* expected 0 .black. to 1"):
            read_image(saved(tmp_path / f"{number}.tif", values.astype(np.float32)))
    with pytest.raises(UserError, match="whole.tif: .*32-bit whole numbers"):
        read_image(saved(tmp_path / "whole.tif", np.rint(RAMP * 65535).astype(np.int32)))


@pytest.mark.parametrize("depth", [8, 16])
def test_exif_turns_an_image_upright(tmp_path: Path, depth: int) -> None:
    array = np.zeros((4, 6), np.uint8 if depth == 8 else np.uint16)
    array[0] = np.iinfo(array.dtype).max
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: the first row is seen as the last column
    path = saved(tmp_path / "a.png", array, exif=exif)
    image, header = read_image(path), read_header(path)
    assert image.shape == (6, 4) == (header.height, header.width) and header.is_grey
    assert (image[:, -1] == 255).all() and (image[:, :-1] == 0).all()


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    colours = np.zeros((2, 2, 4), np.uint8)
    colours[..., 3] = [[0, 255], [128, 255]]
    assert read_image(saved(tmp_path / "a.png", colours))[..., 0].tolist() == [[255, 0], [127, 0]]
    grey = np.zeros((2, 2, 2), np.uint8)
    grey[..., 1] = [[0, 255], [128, 255]]
    Image.fromarray(grey, "LA").save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png").tolist() == [[255, 0], [127, 0]]
    palette = Image.fromarray(BYTES).convert("P")
    palette.save(tmp_path / "c.png", transparency=0)
    assert read_image(tmp_path / "c.png")[0, 0].tolist() == [255, 255, 255]


def test_palettes_show_their_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[255, 0, 0], [0, 255, 0]]]


def test_what_is_not_one_image_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(BYTES), Image.fromarray(255 - BYTES)]
    for name in ("a.tif", "a.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(UserError, match=f"{name}: .*2 images; write each into a file of its own"):
            read_image(tmp_path / name)
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(UserError, match=r"a\.dcm: "):
        read_image(tmp_path / "a.dcm")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(UserError, match=f"{name}': it is a pipe or a device"):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match="row 3: cannot be read"):
        decode_bytes(b"no image", "row 3")


def test_training_and_evaluation_decode_alike(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", np.rint(RAMP * 65535).astype(np.uint16))
    saved(tmp_path / "b.tif", RAMP.astype(np.float32))
    saved(tmp_path / "c.png", np.dstack([BYTES, BYTES.T, BYTES, BYTES]))
    data = ImageFolder(tmp_path, size=12)
    images, labels = next(open_images(str(tmp_path), ["size:12"]).batches(3))
    assert labels is None
    for index in range(3):
        assert np.array_equal(data[index]["image"].transpose(2, 0, 1), images[index].numpy())


def test_all_unreadable_files_are_in_one_list(tmp_path: Path) -> None:
    for number in range(4):
        saved(tmp_path / f"{number}.png", BYTES)
    for number in (1, 3):  # whole headers, broken pixels
        content = (tmp_path / f"{number}.png").read_bytes()
        (tmp_path / f"{number}.png").write_bytes(content[: len(content) // 2])
    assert len(unreadable(sorted(tmp_path.iterdir()))) == 2
    with pytest.raises(UserError, match=r"2 files cannot be read: .*1\.png.*3\.png"):
        ImageFolder(tmp_path)[1]
    with pytest.raises(UserError, match=r"2 files cannot be read: .*1\.png.*3\.png"):
        list(open_images(str(tmp_path)).batches(2))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 2.68 GiB"),
        OSError("out of memory error when reading image file"),  # a decoder of Pillow
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_too_little_memory_is_not_the_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    for number in range(2):
        saved(tmp_path / f"{number}.png", BYTES)
    content = (tmp_path / "0.png").read_bytes()
    folder = ImageFolder(tmp_path)

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(PngImageFile, "load", refuse)
    for read in (
        lambda: read_image(tmp_path / "0.png"),
        lambda: folder[0],
        lambda: decode_bytes(content, f"{tmp_path / '0.png'}"),
        lambda: list(open_images(str(tmp_path)).batches(2)),
        lambda: survey(tmp_path),
    ):
        with pytest.raises(MemoryError, match=r"^reading the image .*0\.png") as found:
            read()
        line = out_of_memory_line(found.value)
        assert "not enough memory" in line and "remove" not in line
    assert unreadable(sorted(tmp_path.iterdir())) == []


def test_a_header_that_says_no_size_is_a_line_about_the_file(tmp_path: Path) -> None:
    image = Image.fromarray(BYTES)
    image.save(tmp_path / "a.tif", save_all=True, append_images=[image])
    content = bytearray((tmp_path / "a.tif").read_bytes())
    place = content.rindex(b"\x00\x01\x04\x00")  # the width of the second frame, without which Pillow has a TypeError
    content[place : place + 2] = b"\0\0"
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tif: cannot be read as an image \(Missing dimensions\)"):
        read_image(tmp_path / "a.tif")
