"""Places and checksums of the members of a `torch.save` file whose tensors are written after the file."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

_LOCAL_HEADER = struct.Struct("<26xHH")  # 30 bytes before a member; ends with the lengths of its name and extra field
_ENTRY = struct.Struct("<4s24xHHH12x")  # 46 bytes of a directory entry; lengths of its name, extra field and comment
_ENTRY_CHECKSUM = 16  # place of the checksum in a directory entry
_DESCRIPTOR = b"PK\x07\x08"  # begins the copy of checksum and sizes that may follow a member
_CHUNK = 2**22


def member_offset(path: Path, name: str, size: int) -> int:
    """Offset of the uncompressed bytes of a tensor in a file of torch.save."""
    with zipfile.ZipFile(path) as archive:
        (member,) = [found for found in archive.infolist() if found.filename.partition("/")[2] == name]
    assert member.file_size == size and member.compress_type == zipfile.ZIP_STORED
    with path.open("rb") as file:
        return _data_offset(file, member)


def write_checksums(path: Path) -> None:
    """Compute the checksum of every member and store it in the archive's directory, where readers look for it.

    `torch.save` without data leaves the checksums of tensors empty.
    """
    with zipfile.ZipFile(path) as archive:
        members, place = archive.infolist(), archive.start_dir
    with path.open("r+b") as file:
        for member in members:
            file.seek(place)
            signature, *lengths = _ENTRY.unpack(file.read(_ENTRY.size))
            assert signature == b"PK\x01\x02" and member.compress_type == zipfile.ZIP_STORED
            start = _data_offset(file, member)
            checksum = struct.pack("<I", _checksum(file, start, member.file_size))
            _put(file, place + _ENTRY_CHECKSUM, checksum)
            file.seek(start + member.file_size)
            if file.read(4) == _DESCRIPTOR:
                _put(file, start + member.file_size + 4, checksum)
            place += _ENTRY.size + sum(lengths)


def _data_offset(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    file.seek(member.header_offset)
    return member.header_offset + 30 + sum(_LOCAL_HEADER.unpack(file.read(30)))


def _checksum(file: IO[bytes], start: int, size: int) -> int:
    file.seek(start)
    crc = 0
    while size:
        block = file.read(min(size, _CHUNK))
        if not block:
            raise EOFError("the file is cut short")
        crc = zlib.crc32(block, crc)
        size -= len(block)
    return crc


def _put(file: IO[bytes], place: int, value: bytes) -> None:
    file.seek(place)
    file.write(value)
