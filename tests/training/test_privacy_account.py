"""A privacy account goes on with the weights: through every kind of training, in every file, or the run is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from ldm.checkpoint import inherited_privacy, joined_accounts, read_checkpoint, save_checkpoint
from ldm.errors import UserError
from ldm.models.autoencoder import AutoencoderKL
from ldm.training import train
from ldm.training.options import RunOptions
from tests import tiny

ONE, TWO = {"plan": {"a": 1}, "ledger": {}}, {"plan": {"a": 2}, "ledger": {}}


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A private run of two steps, and the digits that it saw."""
    folder = tmp_path_factory.mktemp("account")
    tiny.write_digits(folder / "digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        model = tiny.ldm("attention", train_attention_only=True, dp_config=tiny.dp(dataset_size=24))
        run = train(tiny.options(folder / "a", tiny.run_config(model, folder / "digits", max_steps=2))).path
        yield folder, run


def public(place: Path, name: str, *dotlist: str, section: dict[str, Any] | None = None, **trainer: Any) -> Path:
    model = section or tiny.ldm("attention")
    config = tiny.run_config(model, place / "digits", **{"max_steps": 1, **trainer})
    return train(tiny.options(place / name, config, dotlist=list(dotlist))).path


def test_accounts_are_joined_and_never_dropped() -> None:
    chain = {**ONE, "start_privacy": TWO}
    assert joined_accounts() is joined_accounts(None) is None
    assert joined_accounts(None, ONE) == joined_accounts(ONE, ONE) == ONE
    assert joined_accounts(ONE, TWO) == joined_accounts(chain, TWO) == joined_accounts(chain, ONE) == chain
    assert inherited_privacy({"privacy": ONE, "start_privacy": TWO}) == chain


def test_a_private_checkpoint_does_not_go_on_without_privacy_wherever_it_lies(place: Any, tmp_path: Path) -> None:
    folder, run = place
    elsewhere = tmp_path / "copied" / "checkpoints" / "last.ckpt"
    content = read_checkpoint(run / "checkpoints" / "last.ckpt")
    save_checkpoint(content, elsewhere)
    off = tiny.ldm("attention", dp_config={"enabled": False})
    base = tiny.options(tmp_path / "b", tiny.run_config(off, folder / "digits", max_steps=9)).base
    before = files(tmp_path) | files(run)
    for options in (
        RunOptions(base=base, resume=str(elsewhere), train=True),
        RunOptions(base=base, resume=str(run / "checkpoints" / "last.ckpt"), train=True),
        RunOptions(base=base, trainer={"ckpt_path": str(elsewhere)}, logdir=str(tmp_path / "logs"), train=True),
        RunOptions(
            base=base, dotlist=[f"lightning.trainer.ckpt_path={elsewhere}"], logdir=str(tmp_path / "l"), train=True
        ),
    ):
        with pytest.raises(UserError, match="goes on privately or not at all"):
            train(options)
        assert files(tmp_path) | files(run) == before


def test_training_on_public_data_keeps_the_account_in_every_file(place: Any) -> None:
    folder, run = place
    start = run / "checkpoints" / "last.ckpt"
    account = read_checkpoint(start)["privacy"]
    extra = (
        "{target: pytorch_lightning.callbacks.ModelCheckpoint, params: {dirpath: "
        f"{folder / 'weights'}, every_n_train_steps: 1, save_weights_only: true}}}}"
    )
    section = tiny.ldm("attention", ckpt_path=str(start))
    again = public(folder, "public", f"lightning.callbacks.weights={extra}", section=section)
    for path in (again / "checkpoints" / "last.ckpt", *(folder / "weights").iterdir()):
        assert read_checkpoint(path)["start_privacy"] == account, path.name
    # resumed, with nothing left that leads to the start
    options = RunOptions(
        base=[],
        resume=str(again),
        train=True,
        scale_lr=False,
        dotlist=["model.params.ckpt_path=null"],
        trainer={"max_steps": 2},
    )
    train(options)
    assert read_checkpoint(again / "checkpoints" / "last.ckpt")["start_privacy"] == account
    # and a private run from there says that another one came before
    model = tiny.ldm(
        "attention",
        ckpt_path=str(again / "checkpoints" / "last.ckpt"),
        train_attention_only=True,
        dp_config=tiny.dp(dataset_size=24),
    )
    third = train(tiny.options(folder / "third", tiny.run_config(model, folder / "digits", max_steps=1))).path
    assert inherited_privacy(read_checkpoint(third / "checkpoints" / "last.ckpt"))["start_privacy"] == account


def test_an_autoencoder_keeps_the_account_of_its_start(place: Any, tmp_path: Path) -> None:
    folder, _ = place
    params = {**copy.deepcopy(tiny.AUTOENCODER["params"])}
    params["lossconfig"] = {"target": "ldm.modules.losses.reconstruction.ReconstructionKL"}
    section = {"target": tiny.AUTOENCODER["target"], "params": params}
    model = tiny.build(section)
    assert isinstance(model, AutoencoderKL)
    save_checkpoint({"state_dict": model.state_dict(), "privacy": ONE}, tmp_path / "start.ckpt")
    params["ckpt_path"] = str(tmp_path / "start.ckpt")
    trained = public(folder, "autoencoder", section=section)
    assert read_checkpoint(trained / "checkpoints" / "last.ckpt")["start_privacy"] == ONE


def test_a_refusal_within_fit_leaves_nothing_behind(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldm.models.diffusion.ddpm import LatentDiffusion

    folder, run = place

    def refuse(self: Any) -> None:
        raise UserError("no, after all")

    monkeypatch.setattr(LatentDiffusion, "on_train_start", refuse)
    before = files(folder)
    for options in (
        RunOptions(base=[], resume=str(run), train=True, scale_lr=False),
        tiny.options(
            folder / "a",
            tiny.run_config(tiny.ldm("attention"), folder / "digits", max_steps=1),
            logdir=str(folder / "new"),
        ),
    ):
        given = files(folder) | before
        with pytest.raises(UserError, match="no, after all"):
            train(options)
        assert files(folder) == given
