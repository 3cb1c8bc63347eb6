"""Checkpoint files: nothing in them runs, everything must match, no write leaves half a file."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import stat
import sys
import tempfile
import types
import zipfile

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ldm.checkpoint import load_weights, read_checkpoint, save_checkpoint, save_safetensors
from ldm.checkpoint.restricted_pickle import Foreign
from ldm.errors import UserError
from ldm.files import file_digest, write_atomic

WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.0, -1.0])}


class Runs:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


# --- nothing runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.system, ("touch {marker}",), rf"{os.name}\.system"),
        (eval, ("open('{marker}', 'w')",), r"builtins\.eval"),
        (open, ("{marker}", "w"), r"\.open"),
        (getattr, (collections.OrderedDict, "fromkeys"), r"builtins\.getattr"),
        (torch.storage._load_from_bytes, (b"x",), r"torch\.storage\._load_from_bytes"),
        (torch.hub.load, ("a/b", "c"), r"torch\.hub\.load"),
        (np.load, ("{marker}",), r"numpy.*load"),
    ],
)
def test_a_pickle_that_calls_something_is_refused_by_name(tmp_path, zipped, function, args, name):
    marker = tmp_path / "ran"
    args = tuple(arg.format(marker=marker) if isinstance(arg, str) else arg for arg in args)
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": WEIGHTS, "x": Runs(function, *args)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=rf"evil\.ckpt' is refused: it asks for '[\w.]*{name}'.*nothing in it was run"):
        read_checkpoint(path)
    assert not marker.exists()


def test_the_malicious_file_of_these_tests_would_run_elsewhere(tmp_path):
    """Guards the test above against a file that is harmless by mistake."""
    marker = tmp_path / "ran"
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": WEIGHTS, "x": Runs(os.system, f"touch {marker}")}, path)
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_call_hidden_in_a_framework_object_is_refused(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "evil.ckpt"
    state = argparse.Namespace(a=Runs(os.system, f"touch {marker}"))
    torch.save({"state_dict": WEIGHTS, "hyper_parameters": state}, path)
    with pytest.raises(UserError, match="is refused"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"asks for 'torch\.nn\.modules\.linear\.Linear'"):
        read_checkpoint(tmp_path / "net.pt")


# --- foreign but harmless -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_files_of_old_trainers_are_readable(tmp_path, monkeypatch, zipped):
    """Lightning 1.x keys its callbacks by class and stores settings as framework objects."""
    old = types.ModuleType("pytorch_lightning.callbacks.old")
    old.Gone = type("Gone", (), {"__module__": old.__name__})
    own = types.ModuleType("callbacks.privacy")
    own.Meter = type("Meter", (dict,), {"__module__": own.__name__})
    own.Queue = type("Queue", (collections.deque,), {"__module__": own.__name__})
    parents = [types.ModuleType("pytorch_lightning"), types.ModuleType("pytorch_lightning.callbacks")]
    for module in (*parents, old, own):  # stand-ins for the parents too: importing the real ones takes seconds
        monkeypatch.setitem(sys.modules, module.__name__, module)
    meter = own.Meter(epsilon=[1.0])
    meter.extra = "x"
    content = {
        "state_dict": collections.OrderedDict(WEIGHTS),
        "epoch": 3,
        "callbacks": {old.Gone: {"best": np.float64(0.5), "history": np.arange(3)}},
        "hyper_parameters": argparse.Namespace(lr=1e-3),
        "config": OmegaConf.create({"a": [1, {"b": 2}], "c": "text"}),
        "meter": meter,
        "queue": own.Queue([1, 2]),
        "counts": collections.defaultdict(list, {1: [2]}),
        "note": b"bytes",
        "kinds": {1, 2},
    }
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=zipped)
    for module in (*parents, old, own):
        monkeypatch.delitem(sys.modules, module.__name__)
    read = read_checkpoint(tmp_path / "old.ckpt")
    assert same(read["state_dict"], WEIGHTS)
    assert read["epoch"] == 3 and read["note"] == b"bytes" and read["kinds"] == {1, 2}
    ((callback, state),) = read["callbacks"].items()
    assert callback.foreign_name == "pytorch_lightning.callbacks.old.Gone"
    assert state["best"] == 0.5 and state["history"].tolist() == [0, 1, 2]
    assert isinstance(read["hyper_parameters"], Foreign) and isinstance(read["config"], Foreign)
    assert dict(read["meter"]) == {"epsilon": [1.0]}
    assert isinstance(read["queue"], Foreign) and "foreign_items" not in vars(read["queue"])
    assert dict(read["counts"]) == {1: [2]}


def test_a_foreign_object_cannot_be_written_back_by_accident(tmp_path):
    torch.save({"state_dict": WEIGHTS, "hp": argparse.Namespace(a=1)}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="write only its 'state_dict'"):
        save_checkpoint(read_checkpoint(tmp_path / "a.ckpt"), tmp_path / "b.ckpt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


# --- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth"])
def test_checkpoint_round_trip(tmp_path, suffix):
    path = tmp_path / "new" / f"last{suffix}"
    save_checkpoint({"state_dict": WEIGHTS, "global_step": 7, "ledger": {"events": [[1, 2.5]]}}, path)
    read = read_checkpoint(path)
    assert same(read["state_dict"], WEIGHTS)
    assert read["global_step"] == 7 and read["ledger"] == {"events": [[1, 2.5]]}
    torch.load(path, weights_only=True)


def test_bare_tensors_are_a_state_dict(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "bare.pt")
    assert read_checkpoint(tmp_path / "bare.pt")["state_dict"].keys() == {"weight", "bias"}


def test_safetensors_round_trip_with_shared_and_sliced_tensors(tmp_path):
    table = torch.randn(4, 4)
    state = {"a": table, "tied": table, "row": table[1], "turned": table.T, "count": torch.tensor(3)}
    save_safetensors(state, tmp_path / "w.safetensors", {"plan": "{}"})
    read = read_checkpoint(tmp_path / "w.safetensors")
    assert same(read["state_dict"], state)
    assert read["metadata"] == {"plan": "{}"}


@pytest.mark.parametrize(
    ("state", "name", "metadata", "message"),
    [
        ({"a": 1}, "w.safetensors", None, "'a' is int, not a tensor"),
        (WEIGHTS, "w.pt", None, "expected the suffix .safetensors"),
        (WEIGHTS, "w.safetensors", {"steps": 3}, "metadata 'steps' is int, not text"),
    ],
)
def test_what_safetensors_cannot_hold(tmp_path, state, name, metadata, message):
    with pytest.raises(UserError, match=message):
        save_safetensors(state, tmp_path / name, metadata)


def test_digest_is_the_sha256_of_the_content(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(UserError, match="cannot read"):
        file_digest(tmp_path / "none")


# --- damaged and foreign files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_a_file_cut_short_is_one_line(tmp_path, zipped, kept):
    path = tmp_path / "cut.ckpt"
    torch.save({"state_dict": {"w": torch.randn(50, 50)}}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError, match=r"cut\.ckpt'.*(cut short|empty)") as failure:
        read_checkpoint(path)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("kept", [4, 40, 200])
def test_safetensors_cut_short_is_one_line(tmp_path, kept):
    path = tmp_path / "cut.safetensors"
    save_safetensors({"w": torch.randn(50, 50)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="cut short or damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "data",
    [b"model:\n  target: x\n", b"\x89PNG\r\n\x1a\n" + b"0" * 100, pickle.dumps({"a": 1}), b"PK\x03\x04 and no more"],
    ids=["yaml", "png", "pickle", "zip head"],
)
def test_what_is_no_checkpoint(tmp_path, data):
    (tmp_path / "x.ckpt").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.ckpt'") as failure:
        read_checkpoint(tmp_path / "x.ckpt")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds list, not a checkpoint"),
        ({"image": torch.zeros(1), "labels": "x"}, "has no 'state_dict'; it holds: image, labels"),
        ({}, "has no 'state_dict'; it holds: nothing"),
        ({"state_dict": {1: torch.zeros(1)}}, "not a mapping of names to tensors"),
    ],
)
def test_files_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "x.pt")


def test_paths_that_cannot_be(tmp_path):
    save_checkpoint({"state_dict": WEIGHTS}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="did you mean 'last.ckpt'"):
        read_checkpoint(tmp_path / "lst.ckpt")
    with pytest.raises(UserError, match="no such folder"):
        read_checkpoint(tmp_path / "nowhere" / "last.ckpt")
    with pytest.raises(UserError, match=r"expected one of \.ckpt, \.pt, \.pth, \.safetensors"):
        read_checkpoint(tmp_path / "last.yaml")
    (tmp_path / "run.pt").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        read_checkpoint(tmp_path / "run.pt")


def zip_of(path, **records):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)


def test_a_file_that_unpacks_without_measure_is_refused(tmp_path):
    zip_of(tmp_path / "bomb.ckpt", **{"data.pkl": b"", "data/0": bytes(64 * 2**20)})
    assert (tmp_path / "bomb.ckpt").stat().st_size < 2**20
    with pytest.raises(UserError, match=r"would unpack to 67108864 bytes"):
        read_checkpoint(tmp_path / "bomb.ckpt")


def test_tensors_that_only_pretend_to_be_large_are_refused(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(1).expand(2**30)}}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="declares tensors of 4294967296 bytes"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_too_many_records_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ldm.checkpoint.restricted_pickle.MAX_ENTRIES", 3)
    save_checkpoint({"state_dict": WEIGHTS}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="which no model needs"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_other_archives_are_named(tmp_path):
    zip_of(tmp_path / "images.pt", **{"a.png": b"x"})
    with pytest.raises(UserError, match="not a torch checkpoint"):
        read_checkpoint(tmp_path / "images.pt")
    zip_of(tmp_path / "program.pt", **{"data.pkl": b"x", "constants.pkl": b"x"})
    with pytest.raises(UserError, match="TorchScript"):
        read_checkpoint(tmp_path / "program.pt")


# --- loading --------------------------------------------------------------------------------------------------------


def two_layers():
    return nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})


def test_matching_weights_are_copied_in_the_dtype_of_the_module():
    source, target = two_layers(), two_layers().double()
    assert load_weights(target, source.state_dict()) == []
    assert target["first"].weight.dtype == torch.float64
    assert torch.equal(target["first"].weight.float(), source["first"].weight)


def test_every_kind_of_mismatch_is_listed_and_nothing_is_loaded():
    target = two_layers()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = {key: value + 1 for key, value in target.state_dict().items()}
    state["frist.weight"] = state.pop("first.weight")
    state["second.bias"] = torch.zeros(3)
    with pytest.raises(UserError) as failure:
        load_weights(target, state, source="old.ckpt")
    text = str(failure.value)
    assert text.startswith("old.ckpt does not fit the model of the configuration; give the YAML file that they were ")
    assert "1 missing from the file:\n    first.weight" in text
    assert "1 unexpected in the file:\n    frist.weight" in text
    assert "second.bias is (3,) in the file, (2,) in the model" in text
    assert same(dict(target.state_dict()), before)


def test_the_list_stops_at_ten():
    many = {f"extra{i:03}": torch.zeros(1) for i in range(25)}
    with pytest.raises(UserError) as failure:
        load_weights(nn.Linear(1, 1), {**nn.Linear(1, 1).state_dict(), **many})
    text = str(failure.value)
    assert "25 unexpected" in text and "extra009" in text and "extra010" not in text and "... and 15 more" in text


def test_prefixes_excuse_keys():
    source, target = two_layers(), two_layers()
    kept = target["second"].weight.clone()
    state = {**source.state_dict(), "loss.net.weight": torch.zeros(1)}
    left = load_weights(target, state, ignore=["second.", "loss."])
    assert left == ["second.weight", "second.bias"]
    assert torch.equal(target["second"].weight, kept)
    assert torch.equal(target["first"].weight, source["first"].weight)

    partial = {key: value for key, value in source.state_dict().items() if key.startswith("first.")}
    assert load_weights(two_layers(), partial, allow_missing=["second."]) == ["second.weight", "second.bias"]
    with pytest.raises(UserError, match="missing"):
        load_weights(two_layers(), partial, allow_missing=["third."])


def test_a_single_prefix_is_not_taken_for_letters():
    state = two_layers().state_dict()
    assert load_weights(two_layers(), state, ignore="second.") == ["second.weight", "second.bias"]


def test_a_value_that_is_no_tensor_is_a_mismatch():
    with pytest.raises(UserError, match="bias is str in the file"):
        load_weights(nn.Linear(3, 2), {**WEIGHTS, "bias": "x"})


# --- atomic writes --------------------------------------------------------------------------------------------------


def test_a_writer_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half(temporary):
        temporary.write_text("ne")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write_atomic(path, half)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "deep" / "er" / "a.txt"

    def write(temporary):
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent, "a rename is atomic within one folder only"

    write_atomic(path, write)
    assert path.read_text() == "new"


def test_the_temporary_name_keeps_the_suffix(tmp_path):
    write_atomic(tmp_path / "a.npz", lambda temporary: np.savez(temporary, x=np.arange(3)))
    assert np.load(tmp_path / "a.npz")["x"].tolist() == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_can_be_read_by_whom_the_umask_says(tmp_path, mask):
    def replaced(temporary):  # as writers do that make a temporary file of their own
        handle, name = tempfile.mkstemp(dir=tmp_path)
        os.close(handle)
        os.replace(name, temporary)

    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "a.bin", replaced)
        save_safetensors(WEIGHTS, tmp_path / "a.safetensors")
        save_checkpoint({"state_dict": WEIGHTS}, tmp_path / "a.ckpt")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("a.bin", "a.safetensors", "a.ckpt"), 0o666 & ~mask)


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        write_atomic(tmp_path / "file" / "a.txt", lambda temporary: None)
    with pytest.raises(UserError, match="is a folder"):
        write_atomic(tmp_path, lambda temporary: None)


def test_a_checkpoint_needs_weights_and_a_known_suffix(tmp_path):
    with pytest.raises(UserError, match="needs a 'state_dict'"):
        save_checkpoint({"epoch": 1}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="expected one of"):
        save_checkpoint({"state_dict": {}}, tmp_path / "a.bin")
