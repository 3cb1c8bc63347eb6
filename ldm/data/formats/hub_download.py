"""Fetching the Parquet files of a data set from the Hugging Face hub."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from ldm.errors import UserError

PATTERN = "data/*.parquet"


def fetch_parquet(repository: str, folder: Path) -> list[Path]:
    """Download ``data/*.parquet`` of a data set repository into ``folder``; return the files, sorted.

    Files that are there already are kept, an interrupted download goes on, and every file is verified.
    ``HF_ENDPOINT`` names a mirror, ``HF_TOKEN`` an account.

    Raises:
        UserError: when the hub cannot be reached, or the repository has no such files.
    """
    import huggingface_hub

    by_hand = f"fetch the Parquet files of the data set {repository} on another machine and type --from FOLDER"
    try:
        # asked first: without a network, a download that was cut short would be taken for a whole one
        listed = huggingface_hub.list_repo_files(repository, repo_type="dataset")
        wanted = sorted(path for path in listed if fnmatch(path, PATTERN))
        place = huggingface_hub.snapshot_download(
            repository, repo_type="dataset", allow_patterns=PATTERN, local_dir=folder
        )
    except Exception as error:  # errors of the hub, of its HTTP client, and of the system
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{repository} cannot be downloaded ({reason}); {by_hand}") from error
    missing = [path for path in wanted if not (Path(place) / path).is_file()]
    if not wanted or missing:
        raise UserError(f"{repository} has no {missing[0] if missing else PATTERN}; {by_hand}")
    return [Path(place) / path for path in wanted]
