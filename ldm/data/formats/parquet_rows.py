"""Rows of Parquet files, the form in which data sets are shared on the Hugging Face hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ldm.errors import UserError, first_line, nearest
from ldm.files import require_regular_file
from ldm.samples.array_files import require_plausible

BATCH_BYTES = 2**30
THRIFT_LIMIT = 100 * 2**20


def open_parquet(path: str | os.PathLike[str]) -> Any:
    """Return ``pyarrow.parquet.ParquetFile`` of a file.

    Raises:
        UserError: without the pyarrow package, and for a file that is missing or not Parquet.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError("reading Parquet files needs the pyarrow package; type: pip install pyarrow") from None
    try:
        size = require_regular_file(Path(path))
        file = ParquetFile(
            path,
            thrift_string_size_limit=THRIFT_LIMIT,
            thrift_container_size_limit=THRIFT_LIMIT,
            page_checksum_verification=True,  # where the file has page checksums, as our own have
        )
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        require_plausible(sum(group.total_byte_size for group in groups), size, str(path))
        return file
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check the folder") from None
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({first_line(error)}); fetch the file again") from None


def column_names(path: str | os.PathLike[str]) -> list[str]:
    """Return the names of a file's columns."""
    with open_parquet(path) as file:
        return list(file.schema_arrow.names)


def row_count(path: str | os.PathLike[str]) -> int:
    """Return the number of rows of a file, read from its footer."""
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)


def class_names(path: str | os.PathLike[str], column: str) -> list[str] | None:
    """Return the class names of an integer column from the hub's metadata in the file, or None without them."""
    with open_parquet(path) as file:
        described = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(described or b"{}")["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def rows(
    paths: Iterable[str | os.PathLike[str]], columns: Sequence[str] | None = None, batch_size: int = 64
) -> Iterator[dict[str, Any]]:
    """Yield the rows of Parquet files one by one, file after file, as plain dicts (a struct is a dict too).

    Args:
        paths: files, read in the order given.
        columns: names to read; default all.
        batch_size: number of rows decoded and held in memory at a time.

    Raises:
        UserError: without the pyarrow package, for an unreadable file, and for a missing column.
    """
    for path in map(Path, paths):
        with open_parquet(path) as file:
            known = list(file.schema_arrow.names)
            for name in columns or ():
                if name not in known:
                    raise UserError(f"{path} has no column {name!r}{nearest(name, known)}; its columns are {known}")
            try:
                for batch in file.iter_batches(
                    batch_size=bounded_batch(file, batch_size), columns=None if columns is None else list(columns)
                ):
                    yield from batch.to_pylist()
            except (OSError, ValueError, NotImplementedError) as error:  # the types that pyarrow raises
                raise UserError(f"{path} is damaged ({first_line(error)}); fetch the file again") from None


def bounded_batch(file: Any, batch_size: int) -> int:
    """Number of rows to decode at a time within `BATCH_BYTES`; a dictionary page may repeat one large value per row.

    Only the sizes of row groups are read, because reading a column of a damaged file can crash the process.
    """
    sizes = [file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups)]
    return max(1, min(batch_size, BATCH_BYTES // max(1, *sizes, 1)))
