"""`Ledger`: append-only, exact merging on resume, strict reading."""

from __future__ import annotations

import copy
import json
import pickle
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import UserError
from ldm.privacy.accounting import epsilon
from ldm.privacy.event import SamplingEvent
from ldm.privacy.ledger import Ledger

EVENTS = (SamplingEvent(0.02, 1.1), SamplingEvent(0.05, 2.0), SamplingEvent(0.02, 1.2))
A, B, _ = EVENTS


def ledger_of(*runs):
    ledger = Ledger()
    for event, count in runs:
        ledger.record(event, count)
    return ledger


def reread(ledger):
    """What a resumed process has: the same entries, a new session."""
    return Ledger.from_dict(json.loads(json.dumps(ledger.to_dict())))


def total(ledger):
    counts = Counter()
    for event, count in ledger.events:
        counts[event] += count
    return counts


def test_steps_are_counted_and_run_together():
    ledger = ledger_of((A, 1), (A, 1), (B, 3), (A, 2))
    assert ledger.steps == 7
    assert ledger.events == ((A, 2), (B, 3), (A, 2))
    assert Ledger().steps == 0 and Ledger().events == () and Ledger().epsilon(1e-5) == 0


def test_epsilon_is_that_of_the_events():
    ledger = ledger_of((A, 200), (B, 100))
    assert ledger.epsilon(1e-5) == epsilon([(A, 200), (B, 100)], 1e-5)
    assert ledger.epsilon(1e-5, "rdp") > ledger.epsilon(1e-5)


def test_a_resumed_run_has_the_epsilon_of_an_uninterrupted_one():
    first = ledger_of((A, 50))
    second = reread(first)
    second.record(A, 50)
    assert second.events == ledger_of((A, 100)).events
    assert second.epsilon(1e-5) == ledger_of((A, 100)).epsilon(1e-5)


def test_recording_needs_a_real_event_and_count():
    ledger = Ledger()
    with pytest.raises(TypeError):
        ledger.record("step")
    for count in (0, -1, 1.5, True):
        with pytest.raises(UserError, match="must be a whole number of at least 1"):
            ledger.record(A, count)
    assert ledger.steps == 0


def test_it_survives_json_copy_and_pickle():
    ledger = ledger_of((A, 5), (B, 2))
    for twin in (reread(ledger), copy.copy(ledger), copy.deepcopy(ledger), pickle.loads(pickle.dumps(ledger))):
        assert twin == ledger and twin.steps == 7
        twin.record(A)
        assert twin.steps == 8 and ledger.steps == 7


def test_resuming_an_old_checkpoint_charges_the_steps_released_after_it():
    run = ledger_of((A, 500))
    checkpoint = reread(run)
    run.record(A, 300)
    card = reread(run)
    resumed = checkpoint.absorb(card)
    assert resumed.steps == 800, "500 are common, 300 were released in a later checkpoint"
    resumed.record(A, 200)
    assert resumed.steps == 1000
    assert card.absorb(checkpoint).steps == 800, "the other way round as well"


def test_resuming_the_last_checkpoint_charges_nothing_twice():
    run = ledger_of((A, 500))
    assert reread(run).absorb(reread(run)) == run
    assert reread(run).absorb(Ledger()) == run


def test_two_runs_from_one_checkpoint_are_both_charged():
    start = ledger_of((A, 300))
    left, right = reread(start), reread(start)
    left.record(A, 200)
    right.record(A, 500)
    assert left.absorb(right).steps == right.absorb(left).steps == 1000


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), reread])
def test_copies_that_go_on_are_different_sessions(duplicate):
    ledger = ledger_of((A, 10))
    twin = duplicate(ledger)
    ledger.record(A, 5)
    twin.record(A, 5)
    assert ledger.absorb(twin).steps == 20


def test_contradicting_accounts_of_one_session_are_both_charged():
    one = Ledger.from_dict({"version": 1, "steps": 3, "entries": [{"session": "s", "event": A.to_dict(), "count": 3}]})
    other = Ledger.from_dict(
        {"version": 1, "steps": 2, "entries": [{"session": "s", "event": B.to_dict(), "count": 2}]}
    )
    both = one.absorb(other)
    assert both.steps == 5 and both.covers(one) and both.covers(other)


def test_absorbing_changes_neither_side():
    one, other = ledger_of((A, 3)), ledger_of((B, 4))
    result = one.absorb(other)
    result.record(A, 10)
    assert (one.steps, other.steps, result.steps) == (3, 4, 17)


def test_covers_is_about_the_same_steps_not_about_their_number():
    run = ledger_of((A, 5))
    early = reread(run)
    run.record(A, 2)
    assert run.covers(early) and not early.covers(run)
    assert run.covers(run) and run.covers(Ledger()) and not Ledger().covers(run)
    assert not ledger_of((A, 100)).covers(early), "as many steps, of another run"


# --- any history of runs, checkpoints and resumptions --------------------------------------------------------------

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("train"), st.integers(0, 2), st.sampled_from(EVENTS), st.integers(1, 50)),
        st.tuples(st.just("save"), st.integers(0, 2)),
        st.tuples(st.just("resume"), st.integers(0, 2), st.integers(0, 20)),
    ),
    max_size=14,
)


@settings(max_examples=80, deadline=None)
@given(actions=ACTIONS)
def test_absorb_charges_exactly_the_union_of_what_was_released(actions):
    """Three processes train, save and resume at will; a twin keeps every single step as a unique name."""
    ledgers, names, counter = [Ledger() for _ in range(3)], [Counter() for _ in range(3)], 0
    saved = [(Ledger(), Counter())]
    for action, place, *rest in actions:
        if action == "train":
            event, count = rest
            ledgers[place].record(event, count)
            names[place].update({(counter + i, event): 1 for i in range(count)})
            counter += count
        elif action == "save":
            saved.append((reread(ledgers[place]), Counter(names[place])))
        else:
            checkpoint, known = saved[rest[0] % len(saved)]
            ledgers[place], names[place] = reread(checkpoint), Counter(known)
    for one, its_names in saved:
        for other, other_names in saved:
            merged = one.absorb(other)
            assert merged.covers(one) and merged.covers(other)
            assert merged.steps >= max(one.steps, other.steps)
            assert merged.steps == len(its_names | other_names), "every step once"
            assert total(merged) == Counter(event for _, event in (its_names | other_names))
            assert total(merged) == total(other.absorb(one))
            assert merged.absorb(one) == merged


@settings(max_examples=6, deadline=None)
@given(common=st.integers(1, 200), mine=st.integers(0, 200), theirs=st.integers(0, 200))
def test_the_merged_epsilon_is_never_smaller(common, mine, theirs):
    start = ledger_of((A, common))
    left, right = reread(start), reread(start)
    if mine:
        left.record(B, mine)
    if theirs:
        right.record(A, theirs)
    merged = left.absorb(right).epsilon(1e-5)
    assert merged >= max(left.epsilon(1e-5), right.epsilon(1e-5)) * (1 - 1e-3)


def _damage(change):
    values = ledger_of((A, 5), (B, 2)).to_dict()
    change(values)
    return values


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.pop("entries"),
        lambda v: v.update(extra=1),
        lambda v: v.update(version=2),
        lambda v: v.update(steps=6),
        lambda v: v.update(entries={}),
        lambda v: v["entries"].pop(),
        lambda v: v["entries"][0].pop("session"),
        lambda v: v["entries"][0].update(session=""),
        lambda v: v["entries"][0].update(count=0),
        lambda v: v["entries"][0].update(count=-5),
        lambda v: v["entries"][0].update(count="5"),
        lambda v: v["entries"][0]["event"].update(noise_multiplier=-1),
        lambda v: v["entries"][0]["event"].pop("sample_rate"),
        lambda v: v["entries"][0].update(event=None),
    ],
)
def test_a_damaged_ledger_is_refused(change):
    with pytest.raises(UserError, match="ledger"):
        Ledger.from_dict(_damage(change))


def test_something_else_is_refused():
    for values in (None, [], "ledger", {}):
        with pytest.raises(UserError, match="damaged"):
            Ledger.from_dict(values)
