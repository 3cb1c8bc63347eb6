"""Records of a run without differential privacy: a warning, a card, and digests of its training data."""

from __future__ import annotations

import json
import logging
from typing import Any

from ldm.data.module import DataModuleFromConfig
from ldm.errors import UserError
from ldm.files import read_text, write_text
from ldm.privacy.card import FORMAT, VERSION
from ldm.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

STATEMENT = "NOT private: trained without differential privacy"


def warn_unprotected(model: Any) -> None:
    """Log one line when a model that could be trained privately is trained without privacy."""
    if hasattr(model, "dp_config"):
        logger.warning(
            "dp_config.enabled is not set: this run is NOT private, and its privacy.json says so; train on public "
            "images only"
        )


def source_of(dataset: Any) -> str:
    """A digest of a data set's stored records, independent of image size and channels; "" if there is none."""
    inner = dataset
    while not callable(getattr(inner, "source_digest", None)):
        wrapped = getattr(inner, "dataset", None) or getattr(inner, "data", None)  # a latent cache, a wrapper
        if wrapped is None:
            return str(dataset.fingerprint()) if callable(getattr(dataset, "fingerprint", None)) else ""
        inner = wrapped
    return f"{type(inner).__name__} {inner.source_digest()}"


def record_unprotected(model: Any, data: DataModuleFromConfig, run_dir: RunDirectory) -> None:
    """Before training without privacy, write the run's card and store the data set's digest with the weights.

    Raises UserError, and writes nothing, when the directory holds the card of a private run.
    """
    source = source_of(data.datasets["train"]) if "train" in data.datasets else ""
    seen = [*getattr(model, "unprotected_data", ()), *([source] if source else [])]
    model.unprotected_data = tuple(dict.fromkeys(seen))
    card = {
        "format": FORMAT,
        "version": VERSION,
        "statement": STATEMENT,
        "private": False,
        "plan": None,
        "ledger": None,
        "trained_on": list(model.unprotected_data),
    }
    path = run_dir.privacy_card
    if path.exists() and not is_unprotected_card(read_text(path)):
        raise UserError(f"{path}: is the account of a private run; train without privacy in another run directory")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(card, indent=2) + "\n")


def is_unprotected_card(text: str) -> bool:
    """Whether the text of a ``privacy.json`` belongs to a run without privacy."""
    try:
        card = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(card, dict) and card.get("private") is False and card.get("plan", ...) is None
