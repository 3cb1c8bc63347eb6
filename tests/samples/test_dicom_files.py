"""DICOM files: windows, rescaling and kinds of pixels against values worked out by hand; refusals in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm.errors import UserError
from ldm.samples import dicom_files
from ldm.samples.folder_survey import survey
from ldm.samples.image_files import read_header, read_image
from ldm.samples.image_folder import list_images

pydicom = pytest.importorskip("pydicom", reason="the extra 'dicom' is not installed")


def write(path: Path, pixels: np.ndarray, **tags: Any) -> Path:
    """A plain DICOM file; 12 bits stored unless the tags say otherwise."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    wide = pixels.dtype.itemsize == 2
    values = {"BitsAllocated": 16 if wide else 8, "BitsStored": 12 if wide else 8, "PixelRepresentation": 0}
    values["PhotometricInterpretation"] = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    for name, value in {**values, **tags}.items():
        setattr(data, name, value)
    data.HighBit = data.BitsStored - 1
    data.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


RAMP = np.array([[0, 1000], [2000, 4095]], np.uint16)


def test_without_a_window_the_stored_bits_are_the_range(tmp_path: Path) -> None:
    assert read_image(write(tmp_path / "a.dcm", RAMP)).tolist() == [[0, 62], [125, 255]]
    inverted = write(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")
    assert read_image(inverted).tolist() == [[255, 193], [130, 0]]
    signed = write(tmp_path / "c.dcm", RAMP.astype(np.int16) - 2048, PixelRepresentation=1)
    assert read_image(signed).tolist() == [[0, 62], [125, 255]]


def test_too_little_memory_is_not_the_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise MemoryError("Unable to allocate 2.68 GiB")

    path = write(tmp_path / "a.dcm", RAMP)
    monkeypatch.setattr(pydicom.FileDataset, "pixel_array", property(refuse))
    with pytest.raises(MemoryError, match=r"^reading the image .*a\.dcm: Unable to allocate 2\.68 GiB$"):
        read_image(path)


def test_a_window_is_applied_after_rescaling(tmp_path: Path) -> None:
    """Values -1024, -24, 976, 3071; centre 40, width 400: tones of DICOM PS3.3 C.11.2.1.2 by hand."""
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    found = read_image(write(tmp_path / "a.dcm", RAMP, **tags))
    assert found.tolist() == [[0, round(255 * ((-24 - 39.5) / 399 + 0.5))], [255, 255]]
    several = write(tmp_path / "b.dcm", RAMP, **{**tags, "WindowCenter": [40, 500], "WindowWidth": [400, 1]})
    assert (read_image(several) == found).all()
    exact = write(tmp_path / "c.dcm", RAMP, **tags, VOILUTFunction="LINEAR_EXACT")
    assert read_image(exact)[0, 1] == round(255 * ((-24 - 40) / 400 + 0.5))


def test_colour_and_header(tmp_path: Path) -> None:
    colour = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert (read_image(write(tmp_path / "a.dcm", colour)) == colour).all()
    luma, chroma = np.full((4, 4), 90, np.uint8), np.full((4, 4), 128, np.uint8)
    ybr = write(tmp_path / "b.dcm", np.stack([luma, chroma, chroma], -1), PhotometricInterpretation="YBR_FULL")
    assert (read_image(ybr) == 90).all()
    header = read_header(write(tmp_path / "c.dcm", RAMP, PatientID="x"))
    assert (header.height, header.width, header.is_grey, header.is_deep) == (2, 2, True, True)
    assert len(header.person) == 64


def test_a_folder_of_dicom_files_counts_persons(tmp_path: Path) -> None:
    for number, name in enumerate(["sick/0.dcm", "sick/1.DCM", "well/2.dcm"]):
        write(tmp_path / name, RAMP, PatientID="A" if number < 2 else "B")
    assert list_images(tmp_path).class_names == ["sick", "well"]
    lines = "\n".join(survey(tmp_path).lines())
    assert "2 PatientIDs for 3 images, 2 of one at most: keep one image of each person" in lines
    assert "3 with more than 8 bits" in lines


@pytest.mark.parametrize(
    ("tags", "line"),
    [
        ({"NumberOfFrames": 2}, "holds 2 images"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "pixels of the kind PALETTE COLOR"),
        ({"WindowCenter": 1, "WindowWidth": 0.5}, "a window of width 0.5"),
    ],
)
def test_other_files_are_refused(tags: dict[str, Any], line: str, tmp_path: Path) -> None:
    frames = int(tags.get("NumberOfFrames", 1))
    path = write(tmp_path / "a.dcm", np.tile(RAMP, (frames, 1)), **tags, **({"Rows": 2} if frames > 1 else {}))
    with pytest.raises(UserError, match=line):
        read_header(path)
        read_image(path)


def test_damaged_files_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "b.dcm").write_text("no image")
    for name in ("a.dcm", "b.dcm", "none.dcm"):
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
    monkeypatch.setattr(dicom_files, "can_read", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'dp-ldm\[dicom\]'"):
        read_image(tmp_path / "a.dcm")
