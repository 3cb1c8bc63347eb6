"""`ReleaseFolder`: the files of a release, as `dp-ldm release` writes them and `dp-ldm verify` expects them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError
from ldm.files import file_digest, read_text
from ldm.privacy.card import CARD_FILE, ReleaseCard
from ldm.reports.release_facts import ReleaseFacts

#: Keys of ``dp_config`` that a release repeats from the plan; the others are settings of the computation.
PUBLIC_DP_KEYS = ("enabled", "epsilon", "delta", "max_grad_norm", "noise_multiplicity", "noise_multiplier", "clipping")
_SUM = re.compile(r"([0-9a-f]{64})  (.+)")


@dataclass(frozen=True)
class ReleaseFolder:
    """The places of a release's files in the folder ``path``; a file need not be there."""

    path: Path

    @property
    def card_page(self) -> Path:
        """The card as a page to print."""
        return self.path / "card.html"

    @property
    def card_text(self) -> Path:
        """The card as Markdown."""
        return self.path / "CARD.md"

    @property
    def card(self) -> Path:
        """The card as plain values, which the other two forms are made from."""
        return self.path / CARD_FILE

    @property
    def facts(self) -> Path:
        """The owner's statements (`ReleaseFacts`)."""
        return self.path / "release.json"

    @property
    def config(self) -> Path:
        """The model's configuration, without paths."""
        return self.path / "config.yaml"

    @property
    def weights(self) -> Path:
        """The model's weights, with plan and ledger."""
        return self.path / "weights.safetensors"

    @property
    def draws(self) -> Path:
        """The fitted class statistics to draw from, of a run that released some (`LatentDraws`)."""
        return self.path / "draws.safetensors"

    @property
    def sums(self) -> Path:
        """The digests of all other files."""
        return self.path / "SHA256SUMS"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that this release should have, in reading order; ``draws`` only where it is there."""
        draws = (self.draws,) if self.draws.exists() else ()
        return (
            *(self.card_page, self.card_text, self.card, self.facts, self.config, self.weights),
            *draws,
            self.sums,
        )

    def read_card(self) -> ReleaseCard:
        """The card, checked against itself. Raises UserError naming the file."""
        return ReleaseCard.read(self.card)

    def read_facts(self) -> ReleaseFacts:
        """The owner's statements. Raises UserError naming the file."""
        return ReleaseFacts.read(self.facts)

    def write_sums(self) -> None:
        """Write the digest of every other file, in the form of `sha256sum`."""
        lines = [f"{file_digest(path)}  {path.name}\n" for path in self.files if path != self.sums]
        self.sums.write_text("".join(lines), encoding="utf-8")

    def read_sums(self) -> dict[str, str]:
        """Digests by name of file, as `write_sums` wrote them. Raises UserError for another line, or a name twice."""
        stated: dict[str, str] = {}
        for number, line in enumerate(read_text(self.sums).splitlines(), 1):
            found = _SUM.fullmatch(line)
            if found is None:
                raise UserError(f"{self.sums.name}, line {number}: is not a digest, two spaces and the name of a file")
            digest, name = found.groups()
            if name in stated:
                raise UserError(f"{self.sums.name}, line {number}: names {name} a second time")
            stated[name] = digest
        return stated

    def require_model(self) -> tuple[Path, Path]:
        """Configuration and weights, for sampling. Raises UserError for a folder without them."""
        for path in (self.config, self.weights):
            if not path.is_file():
                raise UserError(
                    f"{self.path}: is no release, {path.name} is missing; dp-ldm release RUN OUT writes one"
                )
        return self.config, self.weights
