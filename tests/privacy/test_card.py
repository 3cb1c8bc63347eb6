"""`ReleaseCard`: its content, its refusal to drop a release, and its atomic writing."""

from __future__ import annotations

import json
import math
import os
import stat
import threading
import time
from dataclasses import replace

import pytest

from ldm.errors import UserError
from ldm.files import locked
from ldm.privacy.card import ReleaseCard
from ldm.privacy.event import SamplingEvent
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.validate import is_line

PLAN = PrivacyPlan(
    sample_rate=0.1, steps=40, noise_multiplier=1.2, max_grad_norm=1.0, delta=1e-5, expected_batch_size=50
)


def card(steps=20, plan=PLAN, **changes):
    ledger = Ledger()
    if steps:
        ledger.record(plan.event(), steps)
    values = dict(
        plan=plan,
        ledger=ledger,
        trained={"attn.to_q.weight": 64, "attn.to_v.weight": 36},
        left_out=("attn2.norm2.weight",),
        public_data=("glyphs rendered from fonts",),
    )
    return ReleaseCard(**{**values, **changes})


def test_it_says_what_was_spent_by_two_accountants():
    values = card().to_dict()
    assert values["epsilon"]["pld"] == pytest.approx(card().ledger.epsilon(1e-5))
    assert values["epsilon"]["pld"] < values["epsilon"]["rdp"]
    assert values["steps"] == {"taken": 20, "planned": 40}
    assert values["trained"]["coordinates"] == 100
    assert (values["delta"], values["relation"], values["rng"]) == (1e-5, "add_or_remove_one", "secure")
    assert values["private"] is True
    assert "record" in values["statement"]


@pytest.mark.parametrize("steps", [1, 7, 20, 33, 40])
def test_the_statement_claims_no_less_than_was_spent(steps):
    values = card(steps).to_dict()
    epsilon, delta = (float(word) for word in values["statement"].partition(")")[0].strip("(").split(", "))
    assert values["epsilon"]["pld"] <= epsilon <= 1.001 * values["epsilon"]["pld"]
    assert delta == values["delta"] == 1e-5


@pytest.mark.parametrize("seed", [None, 3])
def test_a_card_whose_statement_has_the_nearest_numbers_is_still_read(tmp_path, seed):
    """Cards were written so until November 2026; they are read, and a rewritten card has the larger numbers."""
    path = tmp_path / "privacy.json"
    card(7, replace(PLAN, delta=1 / (60000 * math.log(60000)), insecure_seed=seed)).write(path)
    content = json.loads(path.read_text())
    nearest = content["statement"].replace(f"{1.51487e-06:g}", f"{content['delta']:g}")
    epsilon = content["epsilon"]["pld"]
    nearest = nearest.replace(f"{math.ceil(epsilon * 1000) / 1000:.4g}", f"{epsilon:.4g}")
    assert nearest != content["statement"]  # otherwise this test proves nothing
    upper, content["statement"] = content["statement"], nearest
    path.write_text(json.dumps(content))
    assert ReleaseCard.read(path).statement() == upper


def test_it_is_read_from_its_folder_too(tmp_path):
    card().write(tmp_path / "privacy.json")
    assert ReleaseCard.read(tmp_path) == ReleaseCard.read(tmp_path / "privacy.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty/privacy\.json: no privacy card here"):
        ReleaseCard.read(tmp_path / "empty")


def test_it_is_not_private_with_a_known_seed_or_a_release_outside_the_mechanism():
    from dataclasses import replace

    insecure = card(plan=replace(PLAN, insecure_seed=1))
    assert not insecure.private and insecure.statement().startswith("NOT private")
    assert insecure.to_dict()["rng"] == "insecure"
    leaky = card(not_covered=("latent scale from private data",))
    assert not leaky.private and "NOT covered: latent scale" in leaky.statement()


def test_a_run_without_steps_and_one_without_privacy_are_json_too(tmp_path):
    from dataclasses import replace

    assert card(steps=0).to_dict()["epsilon"]["pld"] == 0
    hopeless = card(plan=replace(PLAN, noise_multiplier=1e-6))
    hopeless.write(tmp_path / "privacy.json")
    assert json.loads((tmp_path / "privacy.json").read_text())["epsilon"]["pld"] == "infinite"


@pytest.mark.parametrize("relation", ["replace_one"])
@pytest.mark.parametrize("sampling", ["poisson", "without_replacement"])
def test_every_relation_has_a_card(tmp_path, relation, sampling):
    from dataclasses import replace

    one = card(plan=replace(PLAN, relation=relation, sampling=sampling))
    one.write(tmp_path / "privacy.json")
    assert ReleaseCard.read(tmp_path / "privacy.json").statement() == one.statement()


def test_it_is_read_back_as_written_and_readable_by_all(tmp_path):
    path = tmp_path / "privacy.json"
    original = card(not_covered=("a figure in the paper",))
    original.write(path)
    copy = ReleaseCard.read(path)
    assert copy == original and copy.to_dict() == original.to_dict()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["privacy.json"]


def changed(card, **paths):
    """The card's values with some of them replaced, addressed as ``plan__noise_multiplier``."""
    values = json.loads(json.dumps(card.to_dict()))
    for path, value in paths.items():
        *above, last = path.split("__")
        place = values
        for key in above:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[last] = value
    return values


def refusal(tmp_path, text):
    path = tmp_path / "privacy.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"privacy\.json") as failure:
        ReleaseCard.read(path)
    assert time.monotonic() - begin < 10 and "\n" not in str(failure.value)
    return str(failure.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"epsilon__pld": 0.001}, "epsilon by pld is stated as 0.001, its ledger gives"),
        ({"epsilon__rdp": "infinite"}, "epsilon by rdp is stated as 'infinite'"),
        ({"epsilon": {}}, "epsilon is stated as {}"),
        ({"epsilon": {"rdp": 1.0}}, "epsilon by pld is not stated"),
        ({"statement": "(0.001, 1e-05)-differentially private"}, "it states '"),
        ({"private": "yes"}, "private is stated as 'yes', its plan and ledger say True"),
        ({"private": 1}, "private is stated as 1"),
        ({"private": False}, "private is stated as False"),
        ({"delta": 1e-9}, "delta is stated as 1e-09"),
        ({"relation": "replace_one"}, "relation is stated as"),
        ({"rng": "insecure"}, "rng is stated as"),
        ({"steps__taken": 2}, "steps are stated as"),
        ({"steps__planned": 4}, "steps are stated as"),
        ({"trained__coordinates": 7}, "7 trained coordinates are stated, 100 are listed"),
        ({"plan__noise_multiplier": 12.0}, "20 of the 20 steps in its ledger are not steps of its plan"),
        ({"plan__noise_multiplier": 1e-6, "ledger__entries__0__event__noise_multiplier": 1e-6}, "epsilon by pld"),
        ({"ledger__entries__0__event__noise_multiplier": 12.0}, "not steps of its plan"),
        ({"ledger": {"version": 1, "steps": 0, "entries": []}}, "its ledger is empty"),
        ({"weights": [{"sha256": "x", "steps": 1}]}, "'x' is no digest of weights"),
        ({"weights": [{"sha256": "0" * 64, "steps": 21}]}, "weights after 21 steps are named, its ledger has 20"),
        ({"statistics": 7}, "damaged"),
    ],
)
def test_a_card_that_disagrees_with_itself_is_refused(tmp_path, change, line):
    assert line in refusal(tmp_path, changed(card(), **change))


def test_a_card_without_a_bound_says_so_and_an_old_one_is_refused(tmp_path):
    from dataclasses import replace

    hopeless = card(plan=replace(PLAN, noise_multiplier=1e-6))
    assert not hopeless.private and hopeless.statement().startswith("NOT private: noise multiplier 1e-06 is too little")
    hopeless.write(tmp_path / "privacy.json")
    assert not ReleaseCard.read(tmp_path / "privacy.json").private
    old = "(inf, 1e-05)-differentially private, add_or_remove_one, record: one image with its label"
    assert "private is stated as True" in refusal(tmp_path, changed(hopeless, statement=old, private=True))


def many_entries(count):
    values = card().to_dict()
    event = PLAN.event().to_dict()
    entries = [
        {"session": "a", "event": {**event, "noise_multiplier": 1 + place / 9999}, "count": 1} for place in range(count)
    ]
    return {**values, "ledger": {"version": 1, "steps": count, "entries": entries}}


def test_cards_that_would_keep_the_accountants_busy_are_refused_at_once(tmp_path):
    for count in (10**9, 10**12):
        large = changed(card(), ledger__steps=count, ledger__entries__0__count=count)
        assert "steps, more than" in refusal(tmp_path, large)
    assert "3000 different events" in refusal(tmp_path, many_entries(3000))
    assert "nested too deep" in refusal(tmp_path, '{"format": ' + "[" * 100_000)
    text = json.dumps(card().to_dict())
    assert "not readable JSON" in refusal(tmp_path, text.replace('"version": 1', f'"version": {"9" * 5000}', 1))
    assert "NaN is no number" in refusal(tmp_path, text.replace('"delta": 1e-05', '"delta": NaN', 1))
    assert "larger than" in refusal(tmp_path, text + " " * (2**24))
    (tmp_path / "privacy.json").unlink()
    os.mkfifo(tmp_path / "privacy.json")
    with pytest.raises(UserError, match="a pipe or a device"):
        ReleaseCard.read(tmp_path / "privacy.json")


def test_a_card_names_all_weights_of_its_run(tmp_path):
    path = tmp_path / "privacy.json"
    one = card(steps=3, weights={"a" * 64: 2})
    one.write(path)
    later = card(ledger=one.ledger, weights={"b" * 64: 3})
    later.write(path)
    assert ReleaseCard.read(path).weights == {"a" * 64: 2, "b" * 64: 3}


def test_a_card_never_forgets_a_release(tmp_path):
    path = tmp_path / "privacy.json"
    released = card(steps=30)
    released.write(path)
    with pytest.raises(UserError, match="forgotten"):
        card(steps=40).write(path)
    absorbed = card(steps=5)
    merged = absorbed.ledger.absorb(ReleaseCard.read(path).ledger)
    assert merged.steps == 35
    card(ledger=merged).write(path)
    assert ReleaseCard.read(path).ledger.steps == 35


def test_the_card_of_a_growing_run_is_replaced(tmp_path):
    path = tmp_path / "privacy.json"
    one = card(steps=3)
    for _ in range(3):
        one.ledger.record(SamplingEvent(0.1, 1.2))
        one.write(path)
    assert ReleaseCard.read(path).ledger.steps == 6


def test_a_failed_write_leaves_the_old_card(tmp_path, monkeypatch):
    path = tmp_path / "privacy.json"
    one = card(steps=3)
    one.write(path)
    before = path.read_text()
    one.ledger.record(PLAN.event())

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        one.write(path)
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["privacy.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda v: v.pop("ledger"),
        lambda v: v.pop("plan"),
        lambda v: v.update(version=99),
        lambda v: v.update(format="something"),
        lambda v: v["plan"].update(steps=-1),
        lambda v: v["ledger"].update(steps=1),
        lambda v: v.update(trained=None),
        lambda v: v.update(trained={"parameters": {"a": "many"}}),
    ],
)
def test_a_damaged_card_is_refused_by_its_name(tmp_path, damage):
    path = tmp_path / "privacy.json"
    values = card().to_dict()
    damage(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"privacy\.json"):
        ReleaseCard.read(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_something_else_is_refused(tmp_path, content):
    path = tmp_path / "privacy.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"privacy\.json"):
        ReleaseCard.read(path)
    with pytest.raises(UserError, match="no privacy card"):
        ReleaseCard.read(tmp_path / "absent.json")


def test_versions_name_what_did_the_accounting():
    assert {"python", "torch", "dp-accounting"} <= set(card().to_dict()["versions"])


def test_a_statistic_is_charged_and_named_and_is_no_step_of_the_plan(tmp_path):
    released = SamplingEvent(1.0, 8.0)
    ledger = Ledger()
    ledger.record(released)
    ledger.record(PLAN.event(), 20)
    summary = {"name": "class moments of latents", "noise_multiplier": 8.0, "constants": {"clip_norm": 22.0}}
    both = card(ledger=ledger, statistics=(summary,))
    assert both.to_dict()["steps"] == {"taken": 20, "planned": 40}
    assert both.to_dict()["statistics"] == [summary]
    assert both.epsilons()["pld"] > card().epsilons()["pld"]
    both.write(tmp_path / "privacy.json")
    assert ReleaseCard.read(tmp_path / "privacy.json") == both
    older = both.to_dict()
    for change, words in (
        ({"noise_multiplier": 9.0}, "1 statistics have noise multiplier 9, its ledger charges 0"),
        ({"relation": "replace_one"}, "1 statistics have noise multiplier 8, its ledger charges 0"),
        ({"constants": {"bound": 2.0}, "noise_std": 8.0}, "noise_std is 8.0, its noise multiplier and bound give 16.0"),
        ({"count": 2}, "2 statistics have noise multiplier 8, its ledger charges 1"),
    ):
        edited = tmp_path / "edited.json"
        edited.write_text(json.dumps({**older, "statistics": [{**summary, **change}]}))
        with pytest.raises(UserError, match=words):
            ReleaseCard.read(edited)
    ledger.record(SamplingEvent(1.0, 3.0), 2)
    swapped = card(ledger=ledger, statistics=(summary,) * 3)
    edited.write_text(json.dumps(swapped.to_dict()))
    with pytest.raises(UserError, match="3 statistics have noise multiplier 8, its ledger charges 1"):
        ReleaseCard.read(edited)
    del older["statistics"]
    assert ReleaseCard.from_dict(older).statistics == ()


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda values: values.update(promise="epsilon 0"), "an entry 'promise', which no card has"),
        (lambda values: values.update(covered=["everything"]), "not what this program covers"),
        (lambda values: values["trained"].update(promise=0), "trained is not written as cards write it"),
        (lambda values: values.update(version=True), "version is not written"),
        (lambda values: values["steps"].update(promise=0), "steps are stated as"),
        (lambda values: values["steps"].update(taken=20.0), "steps are stated as"),
        (lambda values: values.update(public_data=["a\nb"]), "is not one line of text"),
        (lambda values: values.update(public_data=["a\u202eb"]), "is not one line of text"),
    ],
)
def test_a_card_holds_nothing_that_is_not_checked(tmp_path, change, finding):
    values = card().to_dict()
    change(values)
    (tmp_path / "privacy.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=finding):
        ReleaseCard.read(tmp_path)


@pytest.mark.parametrize("text", ["Größe, 日本語, \u200f\u0639\u200c\u0631", "\U0001f600", ""])
def test_a_line_in_any_language_is_one(text):
    assert is_line(text)


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\x00", "a\u2028b", "\u202e", "\u2066", "\udcff", 7, None])
def test_what_is_shown_otherwise_than_it_is_stored_is_no_line(text):
    assert not is_line(text)


def test_two_processes_do_not_overwrite_each_others_card(tmp_path):
    """The second one reads the card only when the first has written it, and then refuses to drop its steps."""
    pytest.importorskip("fcntl")
    outcome = []

    def write():
        try:
            card(3).write(tmp_path / "privacy.json")
        except UserError as error:
            outcome.append(str(error))

    other = threading.Thread(target=write)
    with locked(tmp_path):
        other.start()
        other.join(0.5)
        assert other.is_alive() and not (tmp_path / "privacy.json").exists()
        card(2)._write_over(tmp_path / "privacy.json")
    other.join(60)
    assert "charges steps of another run that would be forgotten" in outcome[0]
    assert ReleaseCard.read(tmp_path).ledger.steps == 2
