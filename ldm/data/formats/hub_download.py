"""Fetching the Parquet files of a data set from the Hugging Face hub."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from ldm.errors import UserError, first_line

PATTERN = "data/*.parquet"


def fetch_parquet(repository: str, folder: Path) -> list[Path]:
    """Download ``data/*.parquet`` of a data set repository into ``folder``; return the files, sorted.

    Existing files are kept, an interrupted download is resumed, and every file is verified.
    ``HF_ENDPOINT`` selects a mirror, and ``HF_TOKEN`` an account.

    Raises:
        UserError: when the hub cannot be reached, or the repository has no such files.
    """
    import huggingface_hub

    by_hand = f"fetch the Parquet files of the data set {repository} on another machine and type --from FOLDER"
    try:
        # query the hub first, because offline an interrupted download would be mistaken for a complete one
        listed = huggingface_hub.list_repo_files(repository, repo_type="dataset")
        wanted = sorted(path for path in listed if fnmatch(path, PATTERN))
        place = huggingface_hub.snapshot_download(
            repository, repo_type="dataset", allow_patterns=PATTERN, local_dir=folder
        )
    except Exception as error:  # the hub, its HTTP client and the system raise different types
        raise UserError(f"{repository} cannot be downloaded ({first_line(error)}); {by_hand}") from error
    missing = [path for path in wanted if not (Path(place) / path).is_file()]
    if not wanted or missing:
        raise UserError(f"{repository} has no {missing[0] if missing else PATTERN}; {by_hand}")
    return [Path(place) / path for path in wanted]
