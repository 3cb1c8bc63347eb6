"""The budget command: sigma for epsilon, epsilon for sigma, a table, an image, a card; exit code 2 for nonsense."""

from __future__ import annotations

import pytest

from ldm.cli import run
from ldm.errors import UserError
from ldm.privacy.budget import budget
from ldm.privacy.card import ReleaseCard
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from scripts import privacy_budget
from tests.shipped import CONFIGS, path_of

SETTING = ["--delta", "1e-5", "--num_records", "60000", "--batch_size", "2000", "--epochs", "200"]


def rows(text):
    head, *lines = text.strip().splitlines()
    names = head.replace("sample rate", "rate").split()
    return [dict(zip(names, map(float, line.split()), strict=True)) for line in lines]


def call(*arguments):
    run(lambda: privacy_budget.main(arguments))


def test_noise_for_an_epsilon_and_back(capsys):
    call("--epsilon", "10", *SETTING)
    (row,) = rows(capsys.readouterr().out)
    assert row["sigma"] == pytest.approx(1.472, rel=0.01) and row["steps"] == 6000
    call("--noise_multiplier", str(row["sigma"]), *SETTING)
    (back,) = rows(capsys.readouterr().out)
    assert back["epsilon"] == pytest.approx(10, rel=0.005)


def test_a_table_and_a_image_over_batch_sizes(capsys, tmp_path):
    target = tmp_path / "budget.png"
    arguments = ["--epsilon", "5", "--delta", "1e-5", "--num_records", "4000", "--batch_size", "100", "200", "400"]
    call(*arguments, "--epochs", "5", "--plot", str(target))
    text = capsys.readouterr().out
    assert f"written to {target}\nnext: " in text
    found = rows(text.partition("written to")[0])
    assert [row["batch"] for row in found] == [100, 200, 400]
    assert [row["sigma"] for row in found] == sorted(row["sigma"] for row in found)
    assert [row["sigma/B"] for row in found] == sorted((row["sigma/B"] for row in found), reverse=True)
    assert target.read_bytes().startswith(b"\x89PNG") and target.stat().st_size > 5000


def test_second_opinions(capsys):
    call("--noise_multiplier", "2", "--delta", "1e-5", "--sample_rate", "0.05", "--batch_size", "50", "--steps", "100",
         "--second_opinion")  # fmt: skip
    text = capsys.readouterr().out
    assert all(f"epsilon by {name}" in text for name in ("pld", "prv", "rdp"))


def test_what_shipped_configurations_would_spend(capsys):
    files = [str(path_of(name)) for name in ("mnist32-dp-eps10", "cifar32-dp-eps10")]
    call("--yaml", *files)
    mnist, cifar = rows(capsys.readouterr().out)
    assert (mnist["batch"], mnist["steps"]) == (2000, 6000) and mnist["sigma"] == pytest.approx(1.472, rel=0.01)
    assert (cifar["batch"], cifar["steps"]) == (2000, 750) and cifar["sigma"] == pytest.approx(0.858, rel=0.01)
    assert mnist["epsilon"] == pytest.approx(10, rel=0.005) and cifar["epsilon"] == pytest.approx(10, rel=0.005)
    call(
        "--yaml", files[0], "--set", "model.params.dp_config.noise_multiplier=2", "model.params.dp_config.epsilon=null"
    )
    (noisier,) = rows(capsys.readouterr().out)
    assert noisier["sigma"] == 2 and noisier["epsilon"] < 7


def test_a_sweep_states_what_all_its_runs_cost():
    common = dict(batch_size=100, delta=1e-5, num_records=4000, epochs=2)
    one = budget(**common, noise_multiplier=1.5)
    four = budget(**common, noise_multiplier=1.5, runs=4)
    assert four.epsilon > 1.5 * one.epsilon
    assert four.steps == one.steps
    alone, swept = budget(**common, target_epsilon=2), budget(**common, target_epsilon=2, runs=4)
    assert swept.noise_multiplier > alone.noise_multiplier


def test_the_card_of_a_run_is_computed_anew(capsys, tmp_path):
    plan = PrivacyPlan(
        sample_rate=0.1, steps=40, noise_multiplier=1.2, max_grad_norm=1.0, delta=1e-5, expected_batch_size=50
    )
    ledger = Ledger()
    ledger.record(plan.event(), 40)
    ReleaseCard(plan, ledger).write(tmp_path / "privacy.json")
    call("--card", str(tmp_path / "privacy.json"))
    assert f"({plan.epsilon():.4g}, 1e-05)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epsilon", "10"], "missing --delta"),
        (["--epsilon", "10", "--delta", "1e-4", *SETTING[2:]], "1 / 60000"),
        (["--epsilon", "-1", *SETTING], "target epsilon"),
        (["--noise_multiplier", "0", *SETTING], "noise_multiplier"),
        (SETTING, "exactly one of a target epsilon"),
        (["--epsilon", "1", "--noise_multiplier", "1", *SETTING], "exactly one of a target epsilon"),
        (["--epsilon", "1", *SETTING, "--steps", "3"], "exactly one of epochs"),
        (["--epsilon", "1", *SETTING, "--runs", "0"], "runs"),
        (["--epsilon", "1", *SETTING, "--relation", "replace"], "did you mean 'replace_one'"),
        (["--epsilon", "1", *SETTING, "--sampling", "without_replacement"], "replace_one"),
        (["--epsilon", "1", *SETTING, "--plot", "budget.txt"], "image|png"),
        (["--card", "absent.json"], "no privacy card"),
        (["--yaml", "absent.yaml"], "does not exist"),
        (["--yaml", str(CONFIGS / "latent-diffusion" / "emnist32-conditional.yaml")], "dp_config.enabled is not set"),
        (
            ["--yaml", str(path_of("mnist32-dp-eps10")), "--set", "model.params.dp_config.dataset_size=null"],
            "dataset_size is not stated",
        ),
        (["--yaml", str(path_of("mnist32-dp-eps10")), "data.params.batch_size=null"], "batch_size is None; type"),
        (["--yaml", str(path_of("mnist32-dp-eps10")), "lightning.trainer=5"], "needs its length"),
        (["--yaml", str(CONFIGS / "latent-diffusion" / "cin256-v2.yaml")], "no section 'data'"),
        (["--epsilon", "1", *SETTING, "--epocs", "3"], "did you mean '--epochs'"),
    ],
)
def test_nonsense_ends_with_exit_code_2_and_one_line(capsys, arguments, message):
    import re

    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert re.search(message, error) and "\n" not in error


def test_the_library_raises_what_the_verb_reports():
    with pytest.raises(UserError, match="the sampling rate is unknown: give num_records"):
        budget(batch_size=10, delta=1e-5, epochs=1, target_epsilon=1)
