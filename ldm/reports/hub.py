"""A release as a folder for the Hugging Face hub: a README with the hub's header, and the unchanged release."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from ldm.cli import typed
from ldm.errors import UserError
from ldm.files import check_new_folder, new_folder
from ldm.reports.release_facts import ReleaseFacts
from ldm.reports.release_folder import ReleaseFolder
from ldm.reports.verification import verify_release

INSIDE = "release"
TAGS = ["differential-privacy", "latent-diffusion", "synthetic-data", "dp-ldm"]


def export_hub(release: Path, out: Path, base_model: str = "", datasets: tuple[str, ...] = ()) -> tuple[Path, ...]:
    """Write the new folder ``out``: ``README.md`` and, unchanged, the release in ``release/``; returns both paths.

    ``base_model`` and ``datasets`` are names on the hub, of the public model and of public data. Raises UserError for
    a release that does not verify or states no licence, because an upload cannot be undone.
    """
    check_new_folder(out)
    if not verify_release(release).sound:
        raise UserError(f"{release}: does not verify; type dp-ldm verify {typed(release)} to see why")
    whole = ReleaseFolder(release)
    facts = whole.read_facts()
    if not facts.licence:
        raise UserError(f"{release}: states no licence, which the hub asks for; release it with --licence NAME")
    card = whole.card_text.read_text(encoding="utf-8")
    text = f"---\n{_header(facts, base_model, datasets)}---\n\n{card}\n{_how_to_use()}"
    with new_folder(out) as folder:
        shutil.copytree(release, folder / INSIDE)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return out / "README.md", out / INSIDE


def _header(facts: ReleaseFacts, base_model: str, datasets: tuple[str, ...]) -> str:
    """The YAML header for the hub: licence in the hub's spelling (lower case), library, task, tags."""
    header: dict[str, object] = {
        "license": facts.licence.lower(),
        "library_name": "dp-ldm",
        "pipeline_tag": "unconditional-image-generation",
        "tags": TAGS,
    }
    if datasets:
        header["datasets"] = list(datasets)
    if base_model:
        header["base_model"] = base_model
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True)


def _how_to_use() -> str:
    return (
        "## How to use it\n\n```sh\ndp-ldm verify release\n"
        "dp-ldm sample release --output samples.pt --num_samples 100\n```\n"
    )
