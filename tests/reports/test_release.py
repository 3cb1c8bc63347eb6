"""A tiny private run is released; the folder verifies, samples, and every planted damage is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from ldm.checkpoint import checkpoint_metadata, read_checkpoint, save_safetensors
from ldm.checkpoint.export import half_weights
from ldm.commands import verify
from ldm.commands.table import dispatch
from ldm.errors import UserError
from ldm.files import file_digest
from ldm.inference import load_model
from ldm.privacy.card import ReleaseCard
from ldm.privacy.event import SamplingEvent
from ldm.privacy.ledger import Ledger
from ldm.reports.hub import export_hub
from ldm.reports.model_files import ModelFiles
from ldm.reports.release import release_run
from ldm.reports.release_card import CardContent, card_page, card_text, power_of_ten
from ldm.reports.release_facts import ReleaseFacts
from ldm.reports.release_folder import ReleaseFolder
from ldm.reports.verification import verify_release, write_card
from ldm.samples import SampleSet
from ldm.training import train
from tests import tiny

FILES = ("card.html", "CARD.md", "privacy.json", "release.json", "config.yaml", "weights.safetensors")
SUMS = "SHA256SUMS"
FACTS = ReleaseFacts(
    title="Tiny digits | a test", curator="<b>The curator</b>", class_names=("zero", "one"), date="2026-01-01"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    section = tiny.ldm(
        ckpt_path=str(tiny.public_checkpoint(folder / "public.ckpt")), dp_config=tiny.dp(dataset_size=30)
    )
    config = tiny.run_config(section, tiny.write_digits(folder / "digits"), 8, max_steps=2)
    return train(tiny.options(folder, config)).path


@pytest.fixture(scope="module")
def release(run: Path) -> Path:
    out = run.parent / "release"
    release_run(run, out, FACTS)
    return out


@pytest.fixture
def copy(release: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release, tmp_path / "copy"))


def renew_sums(folder: Path) -> None:
    """What a careful forger does after an edit."""
    lines = [f"{file_digest(folder / name)}  {name}\n" for name in FILES]
    (folder / SUMS).write_text("".join(lines))


def edit(path: Path, change: Callable[[dict], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values, indent=2) + "\n")


def test_a_release_is_complete_and_sound(release: Path) -> None:
    assert {path.name for path in release.iterdir()} == {*FILES, SUMS}
    verdict = verify_release(release)
    assert verdict.sound, "\n".join(verdict.lines())
    assert len(verdict.checks) == 8


def test_the_released_files_sample(release: Path) -> None:
    config, weights = ReleaseFolder(release).require_model()
    model = load_model(config, weights, torch.device("cpu"))
    assert model.dp_config.enabled
    stated = yaml.safe_load(config.read_text())["model"]["params"]["dp_config"]
    assert set(stated) == {"enabled", "delta", "max_grad_norm", "noise_multiplier"}
    assert checkpoint_metadata(read_checkpoint(weights), "privacy")["ledger"]


def test_no_path_of_the_owners_machine_leaves(release: Path, run: Path) -> None:
    for path in release.iterdir():
        assert str(run.parents[1]).encode() not in path.read_bytes(), path.name


def test_what_the_owner_says_is_escaped_and_shown(release: Path) -> None:
    page, text = (release / "card.html").read_text(), (release / "CARD.md").read_text()
    assert "&lt;b&gt;The curator" in page and "<b>The curator" not in page
    assert "zero, one" in page and "zero, one" in text and "differentially private" in text


def test_a_card_states_the_noise_of_statistics_in_words(release: Path) -> None:
    facts, card = ReleaseFacts.read(release / "release.json"), ReleaseCard.read(release / "privacy.json")
    statistics = ({"name": "class moments of latents", "noise_multiplier": 0.886},)
    ledger = Ledger()
    ledger.record(SamplingEvent(1.0, 0.886))
    ledger.record(card.plan.event(), 2)
    audit = {"bound": {"lower_bound": 0.5, "confidence": 0.95, "claimed_epsilon": 1.0, "steps": 1, "canaries": 2000}}
    audit["bound"]["method"], audit["on"] = "gaussian", "made-up records"
    shown = CardContent.make(facts, replace(card, ledger=ledger, statistics=statistics, audit=audit))
    assert dict(shown.mechanism)["noised steps"] == "2 of 2 planned"
    assert dict(shown.beside_the_steps) == {
        "Statistics before the steps": "class moments of latents, once, noise multiplier 0.886"
    }
    said = dict(shown.audit)["Leak that was measured"]
    assert "the same 1 step may cost" in said and said.endswith("the statistics were not audited")
    for text in (card_page(shown), card_text(shown)):
        assert "class moments of latents, once, noise multiplier 0.886" in text and "add_or_remove_one" not in text


def test_small_numbers_are_written_as_people_do() -> None:
    assert [power_of_ten(value) for value in (1e-3, 3e-5, 1.515e-6)] == ["0.001", "3·10⁻⁵", "1.515·10⁻⁶"]


def edited_epsilon(folder: Path) -> None:
    edit(folder / "privacy.json", lambda card: card["epsilon"].update(pld=0.01))


def edited_statement(folder: Path) -> None:
    edit(folder / "privacy.json", lambda card: card.update(statement="(0.1, 1e-05)-differentially private"))


def cut_ledger(folder: Path) -> None:
    def change(card: dict) -> None:
        card["ledger"]["entries"][0]["count"] = card["ledger"]["steps"] = card["steps"]["taken"] = 1

    edit(folder / "privacy.json", change)


def other_plan(folder: Path) -> None:
    edit(folder / "privacy.json", lambda card: card["plan"].update(noise_multiplier=50.0))


def swapped_weights(folder: Path) -> None:
    content = read_checkpoint(folder / "weights.safetensors")
    save_safetensors(
        {key: value + 0.5 for key, value in content["state_dict"].items()}, folder / "weights.safetensors", {}
    )


def one_byte(folder: Path) -> None:
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "weights.safetensors").write_bytes(data)


def edited_page(folder: Path) -> None:
    page = folder / "card.html"
    page.write_text(page.read_text().replace("at most <b>", "at most <b>1"))


def more_files(folder: Path) -> None:
    (folder / "last.ckpt").write_bytes(b"x")


def edited_config(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["params"]["dp_config"]["max_grad_norm"] = 99.0
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def lost_card(folder: Path) -> None:
    (folder / "privacy.json").unlink()


DAMAGES = (
    edited_epsilon,
    edited_statement,
    cut_ledger,
    other_plan,
    swapped_weights,
    one_byte,
    edited_page,
    more_files,
    edited_config,
    lost_card,
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found(copy: Path, damage: Callable[[Path], None]) -> None:
    damage(copy)
    assert not verify_release(copy).sound


@pytest.mark.parametrize(
    "damage", [cut_ledger, other_plan, swapped_weights, edited_page, edited_config], ids=lambda damage: damage.__name__
)
def test_damage_is_found_when_the_checksums_are_forged_too(copy: Path, damage: Callable[[Path], None]) -> None:
    damage(copy)
    renew_sums(copy)
    assert not verify_release(copy).sound


def test_a_card_of_another_version_is_replaced_by_one_of_this(copy: Path, tmp_path: Path) -> None:
    own = {name: (copy / name).read_text() for name in ("card.html", "CARD.md")}
    for name in own:
        (copy / name).write_text("words of another version")
    renew_sums(copy)
    assert not verify_release(copy).sound
    assert verify_release(copy, documents=False).sound
    for name, text in own.items():
        write_card(copy, tmp_path / name)
        assert (tmp_path / name).read_text() == text


@pytest.mark.parametrize(
    ("name", "line"), [("card.txt", r"ends in \.html"), ("copy/new.html", "in the release"), ("old.md", "exists")]
)
def test_a_card_is_written_beside_the_release_and_over_nothing(copy: Path, name: str, line: str) -> None:
    (copy.parent / "old.md").touch()
    with pytest.raises(UserError, match=line):
        write_card(copy, copy.parent / name.replace("copy", copy.name))
    assert (copy.parent / "old.md").read_text() == ""


def test_verify_writes_a_card_only_for_a_sound_release(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = copy.parent / "card.html"
    verify.main([str(copy), "--card", str(card)])
    assert card.is_file() and f"written to {card}" in capsys.readouterr().out
    card.unlink()
    cut_ledger(copy)
    renew_sums(copy)
    with pytest.raises(SystemExit) as ended:
        verify.main([str(copy), "--card", str(card)])
    assert ended.value.code == 1 and not card.exists()


def test_what_is_not_private_as_a_whole_is_not_released(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    card = copied / "privacy.json"
    whole = card.read_text()
    edit(card, lambda values: values.update(not_covered=["a leak"], private=False))
    with pytest.raises(UserError, match=r"a leak|consistent|statement"):
        release_run(copied, tmp_path / "out", FACTS)
    card.unlink()
    with pytest.raises(UserError, match="not trained privately"):
        release_run(copied, tmp_path / "out", FACTS)
    card.write_text(whole)
    with pytest.raises(UserError, match="no such checkpoint"):
        release_run(copied, tmp_path / "out", FACTS, copied / "checkpoints" / "lost.ckpt")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists; name a new folder"):
        release_run(copied, tmp_path / "there", FACTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "there"], "nothing half-written is left"


def test_a_release_becomes_a_hub_folder_and_samples(release: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="states no licence"):
        export_hub(release, tmp_path / "hub")
    copy = Path(shutil.copytree(release, tmp_path / "copy"))
    edit(copy / "release.json", lambda facts: facts.update(licence="MIT"))
    with pytest.raises(UserError, match="does not verify"):
        export_hub(copy, tmp_path / "hub")


def test_model_files_of_a_release_and_of_its_run(run: Path, release: Path, tmp_path: Path) -> None:
    of_release, of_run = ModelFiles.find(release), ModelFiles.find(run)
    assert of_release.class_names == ("zero", "one") and of_release.default_classes() == [0, 1]
    assert of_release.labels(["one", "0"]) == [1, 0]
    with pytest.raises(UserError, match="did you mean 'zero'"):
        of_release.labels(["zer"])
    assert of_run.weights == run / "checkpoints" / "last.ckpt"
    count = tiny.ldm()["params"]["cond_stage_config"]["params"]["n_classes"]
    assert of_run.class_names == () and of_run.default_classes() == list(range(count))
    with pytest.raises(UserError, match="neither a release folder nor a run directory"):
        ModelFiles.find(tmp_path)


def test_a_release_is_sampled_in_place_of_yaml_and_checkpoint(release: Path, tmp_path: Path) -> None:
    words = ["--output", str(tmp_path / "a.pt"), "-n", "3", "--ddim_steps", "1", "--device", "cpu"]
    dispatch(["sample", str(release), *words])
    assert SampleSet.load(tmp_path / "a.pt").labels.tolist() == [0, 0, 1]
    with pytest.raises(UserError, match="give one model"):
        dispatch(["sample", str(release), "--ckpt", "a.ckpt", *words])


def test_weights_of_another_run_do_not_go_out_under_this_card(run: Path, tmp_path: Path) -> None:
    other = run.parents[1] / "public.ckpt"
    with pytest.raises(UserError, match="carries no privacy account"):
        release_run(run, tmp_path / "out", FACTS, other)
    assert list(tmp_path.iterdir()) == []


def test_the_card_counts_steps_and_statistics_apart(release: Path) -> None:
    """A run with class moments and a classifier has 121 entries in its ledger and 60 steps."""
    card = ReleaseCard.read(release / "privacy.json")
    statistics = (
        {"name": "class moments of latents", "noise_multiplier": 8.0, "count": 1},
        {"name": "linear classifier on public features", "noise_multiplier": 77.459667, "count": 60},
    )
    ledger = Ledger.from_dict(card.ledger.to_dict())
    query = replace(card.plan.event(), sample_rate=1.0, noise_multiplier=8.0)
    ledger.record(query)
    mixed = replace(card, ledger=ledger, statistics=statistics)
    shown = CardContent.make(FACTS, mixed)
    assert ("noised steps", f"{card.ledger.steps} of {card.plan.steps} planned") in shown.mechanism
    assert [value.split("; ") for name, value in shown.beside_the_steps if name.startswith("Statistics")] == [
        [
            "class moments of latents, once, noise multiplier 8",
            "linear classifier on public features, 60 times, noise multiplier 77.46",
        ]
    ]


def test_half_precision_halves_the_file_and_nothing_else(run: Path, release: Path, tmp_path: Path) -> None:
    out = tmp_path / "half"
    release_run(run, out, FACTS, half=True)
    verdict = verify_release(out)
    assert verdict.sound, "\n".join(verdict.lines())
    whole, half = (read_checkpoint(folder / "weights.safetensors").state_dict for folder in (release, out))
    assert list(whole) == list(half)
    for name, value in whole.items():
        network = name.startswith(("model.", "first_stage_model.", "cond_stage_model."))
        assert half[name].dtype == (torch.float16 if network and value.dtype == torch.float32 else value.dtype)
        torch.testing.assert_close(half[name].to(value.dtype), value, rtol=1e-3, atol=1e-6)
    config, weights = ReleaseFolder(out).require_model()
    state = load_model(config, weights, torch.device("cpu")).state_dict()
    assert state["model.diffusion_model.out.2.weight"].dtype == torch.float32
    assert (out / "weights.safetensors").stat().st_size < (release / "weights.safetensors").stat().st_size
    with pytest.raises(UserError, match=r"model\.a has values beyond half precision"):
        half_weights({"model.a": torch.full((2,), 1e6)})


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("max_grad_norm: ", "max_grad_norm: 99", "would not verify .*max_grad_norm 99"),
        ("enabled: true", "enabled: false", "would not verify .*enabled: true"),
        ("  params:", "  params: text\n  other:", "no section 'model' with params"),
        ("    dp_config:", "    dp_config: text\n    other:", "dp_config is 'text', no section"),
    ],
)
def test_an_edited_run_becomes_no_release(run: Path, tmp_path: Path, old: str, new: str, line: str) -> None:
    edited, out = Path(shutil.copytree(run, tmp_path / "edited")), tmp_path / "out"
    for path in (edited / "configs").glob("*-project.yaml"):
        section, colon, rest = path.read_text().partition("model:\n")
        assert old in rest
        path.write_text(section + colon + rest.replace(old, new, 1))
    with pytest.raises(UserError, match=line):
        release_run(edited, out, FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["edited"]


def test_a_name_is_given_to_each_class_or_to_none() -> None:
    FACTS.check_for(("a", "b"))
    FACTS.check_for(())
    with pytest.raises(UserError, match="2 names for the 3 classes of the run"):
        FACTS.check_for(("a", "b", "c"))
