"""Decoding of DICOM files, with the pydicom package (the extra ``dicom``). Only pixels leave this module.

Stored values are rescaled (slope and intercept), then brought to uint8 by the window that the file states, or, without
one, by the range of its stored bits; MONOCHROME1 is inverted. A file's scale thus depends on that file alone, and not
on its brightest pixel. Source: DICOM PS3.3, sections C.7.6.3, C.11.1 and C.11.2.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ldm.errors import UserError, first_line

SUFFIX = ".dcm"
HOW_TO_INSTALL = "DICOM files need the pydicom package: pip install 'dp-ldm[dicom]'"
GREY = ("MONOCHROME1", "MONOCHROME2")


def can_read() -> bool:
    """Whether pydicom is installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        return False
    return True


def read_dicom(path: str | Path) -> np.ndarray:
    """Return the pixels as uint8: (H, W) when grey, else (H, W, 3). Raises UserError or MemoryError."""
    data = _dataset(path, pixels=True)
    try:
        stored = data.pixel_array
    except MemoryError:
        raise
    except Exception as error:  # pydicom's decoders raise whatever their plugins do
        raise UserError(f"{path}: its pixels cannot be decoded ({first_line(error)})") from None
    kind = str(data.get("PhotometricInterpretation", ""))
    if kind in GREY and stored.ndim == 2:
        grey = np.rint(255 * _tones(stored.astype(np.float64), data, path)).astype(np.uint8)
        return 255 - grey if kind == "MONOCHROME1" else grey
    if stored.ndim == 3 and stored.shape[2] == 3 and stored.dtype == np.uint8:
        return stored  # pydicom has turned YCbCr into RGB
    raise UserError(f"{path}: pixels of the kind {kind or 'unknown'} {stored.shape}; grey and 8-bit colour are read")


def dicom_size(path: str | Path) -> tuple[int, int, bool, bool]:
    """Height, width, whether it is grey, whether it has more than 8 bits; of the header. Raises UserError."""
    data = _dataset(path, pixels=False)
    frames = int(data.get("NumberOfFrames", 1) or 1)
    if frames > 1:
        raise UserError(f"{path}: holds {frames} images; write each into a file of its own")
    grey = str(data.get("PhotometricInterpretation", "")) in GREY
    return int(data.get("Rows", 0)), int(data.get("Columns", 0)), grey, int(data.get("BitsStored", 8)) > 8


def person(path: str | Path) -> str:
    """A digest of the patient's identifier, to count persons with several images; "" without one."""
    identifier = str(_dataset(path, pixels=False).get("PatientID", "") or "").strip()
    return hashlib.sha256(identifier.encode()).hexdigest() if identifier else ""


def _dataset(path: str | Path, pixels: bool) -> Any:
    if not can_read():
        raise UserError(f"{path}: {HOW_TO_INSTALL}")
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such image; check the folder") from None
    except (InvalidDicomError, OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as DICOM ({first_line(error)}); remove it or fetch it again") from None


def _tones(stored: np.ndarray, data: Any, path: str | Path) -> np.ndarray:
    """Stored values (H, W) as tones in [0, 1]."""
    if data.get("ModalityLUTSequence") is not None:
        raise UserError(f"{path}: has a table of tones (Modality LUT), which is not read; write it as PNG")
    if data.get("WindowCenter") is None or data.get("WindowWidth") is None:
        if data.get("VOILUTSequence") is not None:
            raise UserError(f"{path}: has a table of tones (VOI LUT), which is not read; write it as PNG")
        bits, signed = int(data.BitsStored), bool(data.get("PixelRepresentation", 0))
        low = -(2.0 ** (bits - 1)) if signed else 0.0
        return np.clip((stored - low) / (2.0**bits - 1), 0, 1)
    values = stored * float(data.get("RescaleSlope", 1) or 1) + float(data.get("RescaleIntercept", 0) or 0)
    centre, width = _first(data.WindowCenter), _first(data.WindowWidth)
    function = str(data.get("VOILUTFunction", "") or "LINEAR")
    if width < 1 or function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise UserError(f"{path}: has a window of width {width:g} ({function}), which is not read")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    return np.clip((values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5, 0, 1)


def _first(value: Any) -> float:
    """A window's number; the first where a file states several windows."""
    return float(value[0] if not isinstance(value, str) and hasattr(value, "__len__") else value)
