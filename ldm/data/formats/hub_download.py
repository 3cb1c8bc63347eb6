"""Fetching the Parquet files of a data set from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from ldm.errors import UserError


def fetch_parquet(repository: str, folder: Path) -> list[Path]:
    """Download ``data/*.parquet`` of a data set repository into ``folder``; return the files, sorted.

    Files that are there already are kept, an interrupted download goes on, and every file is verified.
    ``HF_ENDPOINT`` names a mirror, ``HF_TOKEN`` an account.

    Raises:
        UserError: when the hub cannot be reached, or the repository has no such files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    by_hand = f"fetch the Parquet files of the data set {repository} on another machine and type --from FOLDER"
    try:
        place = snapshot_download(repository, repo_type="dataset", allow_patterns="data/*.parquet", local_dir=folder)
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{repository} cannot be downloaded ({reason}); {by_hand}") from None
    files = sorted((Path(place) / "data").glob("*.parquet"))
    if not files:
        raise UserError(f"{repository} has no data/*.parquet; {by_hand}")
    return files
