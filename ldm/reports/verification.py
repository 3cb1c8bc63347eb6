"""Checks of a release folder that need the folder alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ldm.checkpoint import read_checkpoint
from ldm.config import config_layers, load_config, to_plain, value_at
from ldm.config.targets import check_target
from ldm.errors import UserError, first_line
from ldm.files import file_digest, read_text, write_text
from ldm.models.diffusion.sampling_section import SamplingSection
from ldm.numbers import rounded_down, rounded_up
from ldm.privacy.card_checks import AUDIT_PARTS, audit_finding
from ldm.reports import claim
from ldm.reports.release_card import CardContent, card_page, card_text
from ldm.reports.release_folder import PUBLIC_DP_KEYS, ReleaseFolder


@dataclass(frozen=True)
class Check:
    """One check of a release and its result; ``problem`` is empty when the check passed."""

    question: str
    finding: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Verdict:
    """All checks of one release folder."""

    folder: Path
    checks: tuple[Check, ...]

    @property
    def sound(self) -> bool:
        """Whether every check passed."""
        return not any(check.problem for check in self.checks)

    def lines(self) -> list[str]:
        """One line a check, then the verdict."""
        marked = [
            f"{'WRONG' if check.problem else 'ok   '}  {check.question}: {check.problem or check.finding}"
            for check in self.checks
        ]
        wrong = sum(bool(check.problem) for check in self.checks)
        end = f"{wrong} of {len(self.checks)} checks failed: do not rely on it" if wrong else "every check passed"
        return [*marked, f"{self.folder}: {end}"]


def verify_release(folder: Path, *, documents: bool = True) -> Verdict:
    """Check files against checksums, epsilon against the ledger by two accountants, and the consistency of card, plan,
    weights and documents.

    ``documents``: whether ``card.html`` and ``CARD.md`` are compared, word by word, with those that this version gives.
    Without them, read the card that `write_card` computes. Raises UserError when ``folder`` is no folder. A missing or
    damaged file is a failed check.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one that dp-ldm release has written")
    questions: tuple[tuple[str, Callable[[ReleaseFolder], str]], ...] = (
        ("files and checksums", check_files),
        ("card and its own ledger", check_card),
        ("epsilon by two accountants", check_epsilon),
        ("ledger within the plan", check_plan),
        ("audit and plan", check_audit),
        ("weights and card", check_weights),
        ("configuration and plan", check_config),
        ("documents and card", check_documents) if documents else ("a card that can be computed", check_content),
    )
    release = ReleaseFolder(folder)
    return Verdict(folder, tuple(_ask(question, answer, release) for question, answer in questions))


def _ask(question: str, answer: Callable[[ReleaseFolder], str], release: ReleaseFolder) -> Check:
    try:
        return Check(question, finding=answer(release))
    except UserError as error:
        return Check(question, problem=str(error))
    except Exception as error:  # a folder may hold anything, and whatever cannot be checked is not sound
        return Check(question, problem=f"cannot be checked ({type(error).__name__}: {first_line(error)[:200]})")


def check_files(release: ReleaseFolder) -> str:
    """The folder has exactly the files of a release, no links, each with the digest in ``SHA256SUMS``."""
    present = {path.name for path in release.path.iterdir()}
    files = {path.name: path for path in release.files}
    missing, extra = [name for name in files if name not in present], sorted(present - set(files))
    if missing or extra:
        raise UserError(f"missing: {', '.join(missing) or 'none'}; not part of a release: {', '.join(extra) or 'none'}")
    links = [name for name, path in files.items() if path.is_symlink()]
    if links:
        raise UserError(f"links to files elsewhere, whose content may change: {', '.join(links)}")
    stated = release.read_sums()
    gone = sorted(set(stated) - set(files))  # the file of draws, which not every release has
    if gone:
        raise UserError(f"missing: {', '.join(gone)}")
    digests = {name: file_digest(path) for name, path in files.items() if path != release.sums}
    wrong = [name for name, digest in digests.items() if stated.get(name) != digest]
    if wrong:
        raise UserError(f"changed since the release: {', '.join(wrong)}")
    return f"{len(files)} files, {len(digests)} digests agree"


def check_card(release: ReleaseFolder) -> str:
    """The card is consistent with itself, and its guarantee covers the whole run."""
    card = release.read_card()
    if not card.private or card.ledger.steps == 0:
        raise UserError(card.statement())
    return card.statement()


def check_epsilon(release: ReleaseFolder) -> str:
    """Epsilon of the ledger by every quick accountant; the tightest is the smallest of upper bounds on one number."""
    card = release.read_card()
    found = card.epsilons()
    if len(found) < 2:
        return f"{found} (one accountant can judge this ledger)"
    values = list(found.values())
    if values[0] > min(values[1:]) * 1.01:
        raise UserError(f"the accountants disagree: {found}")
    return ", ".join(f"{name} {rounded_up(value)}" for name, value in found.items())


def check_plan(release: ReleaseFolder) -> str:
    """The ledger has steps with the plan's noise and sampling, and at most the planned number of them."""
    card = release.read_card()
    planned = card.plan.event()
    steps = sum(count for event, count in card.ledger.events if event == planned)
    if steps > card.plan.steps:
        raise UserError(f"{steps} steps of the plan's kind are in the ledger, {card.plan.steps} were planned")
    if steps == 0:
        raise UserError("no step in the ledger is of the plan's kind")
    others = sum(count for event, count in card.ledger.events if event != planned)
    return f"{steps} of {card.plan.steps} planned steps" + (
        f", {others} other release{'s' * (others > 1)}" if others else ""
    )


def check_audit(release: ReleaseFolder) -> str:
    """The card's audit, if there is one, was of these steps, and found no more than they may cost."""
    card = release.read_card()
    if not card.audit:
        return "no audit is on the card"
    if finding := audit_finding(card.audit, card):
        raise UserError(finding)
    bound = card.audit.get("bound")
    measured = ""
    if bound:
        least, claimed = rounded_down(bound["lower_bound"]), rounded_up(bound["claimed_epsilon"])
        measured = f"epsilon is at least {least} of {claimed}"
    return "; ".join(filter(None, (measured, ", ".join(sorted(set(AUDIT_PARTS) & set(card.audit))))))


def check_weights(release: ReleaseFolder) -> str:
    """The ledger in the weights equals that of the card, which names their checkpoint and the values that they hold.

    The ledger of the statistics to draw from, if the release has them, equals it, too.
    """
    card, weights, draws = release.read_card(), release.weights, release.draws
    if draws.exists():
        claim.check_weights(card, read_checkpoint(draws), draws.name)
    content = read_checkpoint(weights)
    finding = claim.check_weights(card, content, weights.name)
    if not card.weights:
        raise UserError(f"{release.card.name} names no checkpoint, so that any weights could lie beside it")
    if not card.trained:
        raise UserError(f"{release.card.name} names no trained parameters")
    for name, count in card.trained.items():
        if name not in content.state_dict or content.state_dict[name].numel() != count:
            raise UserError(f"{weights.name}: has no {name} of {count} values, which the card says were trained")
    return finding


def check_config(release: ReleaseFolder) -> str:
    """The mechanism's settings in ``config.yaml`` equal those of the plan, and what it says to draw from is there.

    Nothing else may be in it: other sections, and settings of the mechanism that a release leaves out.
    """
    name = release.config.name
    if len(config_layers(release.config)) > 1:
        raise UserError(f"{name} builds on another file (base:), which is no part of the release")
    config = to_plain(load_config([release.config]))
    if unknown := sorted(set(config) - {"model", "sampling"}):
        raise UserError(f"{name} has a section {unknown[0]!r}, which no release has")
    section = value_at(config, "model", "params", "dp_config")
    if not isinstance(section, Mapping) or section.get("enabled") is not True:
        raise UserError(f"{name} has no model.params.dp_config with enabled: true")
    if unknown := sorted(set(section) - set(PUBLIC_DP_KEYS)):
        raise UserError(f"{name} has dp_config.{unknown[0]}, which no release has")
    check_target(value_at(config, "model", "target"))
    plan = release.read_card().plan
    stated = {
        "delta": plan.delta,
        "epsilon": plan.target_epsilon,
        "max_grad_norm": plan.max_grad_norm,
        "noise_multiplicity": plan.noise_multiplicity,
        "noise_multiplier": plan.noise_multiplier,
        "clipping": plan.clipping,
    }
    for key, value in stated.items():
        if section.get(key) is not None and value is not None and section[key] != value:
            raise UserError(f"{name} says {key} {section[key]}, the plan {value}")
    drawn = SamplingSection.read(config.get("sampling")).draws
    if drawn and not release.draws.is_file():
        raise UserError(
            f"{name} says that images are drawn from the released statistics, but {release.draws.name} is missing"
        )
    return f"{len(stated)} values agree" + (f"; images are drawn from {release.draws.name}" if drawn else "")


def check_content(release: ReleaseFolder) -> str:
    """Both forms of the card can be computed from the facts and the ledger."""
    content = CardContent.make(release.read_facts(), release.read_card())
    for write in (card_text, card_page):
        write(content)
    return "the documents of the folder were not compared"


def check_documents(release: ReleaseFolder) -> str:
    """Both forms of the card equal those computed from the facts and the ledger."""
    content = CardContent.make(release.read_facts(), release.read_card())
    for path, text in ((release.card_text, card_text(content)), (release.card_page, card_page(content))):
        if read_text(path) != text:
            raise UserError(
                f"{path.name} is not what {release.card.name} and {release.facts.name} give; it was edited, or written "
                "by another version: type --card FILE.html, and read that card in its place"
            )
    return "card.html and CARD.md say what privacy.json says"


def write_card(folder: Path, target: Path) -> None:
    """Write the card that this version computes from a release's ledger and facts, in place of the release's own.

    ``target``: a file outside of the release; Markdown for the suffix ``.md``, HTML for ``.html``. Verify the release
    first. Raises UserError as `check_card_target` does.
    """
    check_card_target(folder, target)
    release = ReleaseFolder(folder)
    content = CardContent.make(release.read_facts(), release.read_card())
    write_text(target, (card_text if target.suffix == ".md" else card_page)(content))


def check_card_target(folder: Path, target: Path) -> None:
    """Raises UserError for another suffix, a file that exists, and a place in the release itself."""
    if target.suffix not in (".md", ".html"):
        raise UserError(f"--card {target}: give a name that ends in .html or .md")
    if folder.resolve() in target.resolve().parents:
        raise UserError(f"--card {target}: is in the release, whose files are checked; name a file elsewhere")
    if target.exists():
        raise UserError(f"--card {target}: exists; name another file")
