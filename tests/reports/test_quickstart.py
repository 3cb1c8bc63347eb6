"""The quickstart's report: its table, its images and what it reads from run directories."""

from __future__ import annotations

import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from ldm.errors import UserError
from ldm.privacy.card import ReleaseCard
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from ldm.reports.quickstart import Row, comparison, draw_curves, fixed_images, last_checkpoint, table
from ldm.reports.run_metrics import read_metric
from ldm.samples import SampleSet


def numbered(count: int = 40, shift: float = 0.0) -> SampleSet:
    """Grey 8x8 images whose brightness tells their digit."""
    labels = torch.arange(count) % 10
    images = (labels / 10 - 0.5 + shift).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return SampleSet(images.clone(), labels)


def write_metrics(run, lines):
    folder = run / "metrics" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def test_the_grid_has_two_lines_of_each_in_order_of_the_digits():
    images = comparison(numbered(), numbered(shift=0.01), numbered(shift=0.02))
    assert len(images) == 3 * 2 * 20
    first = images[:20].flatten(1).mean(dim=1)
    assert torch.allclose(first, torch.arange(10).repeat_interleave(2) / 10 - 0.5)
    assert torch.allclose(images[40:60] - images[:20], torch.tensor(0.01), atol=1e-6)


def test_fixed_images_repeat_for_a_seed_and_differ_between_seeds():
    draw = fixed_images(numbered(), 10)
    assert torch.equal(draw(0).labels, draw(0).labels) and len(draw(0)) == 10
    assert not torch.equal(draw(0).labels, draw(1).labels)


def test_the_table_names_every_row_and_never_says_fid_of_a_stand_in():
    text = table([Row("private", (0.9, 0.8), 12.34), Row("real", (0.99,), None)], 9.9959, 1e-4)
    assert "epsilon 9.996 at delta 0.0001" in text
    assert "85.0 % +- 7.1" in text and "12.3" in text
    assert text.splitlines()[4].endswith("-")
    assert "not FID" in text


def test_metrics_are_read_by_column(tmp_path):
    write_metrics(tmp_path, ["step,privacy/epsilon", "0,1.5", "1,", "2,2.5"])
    assert read_metric(tmp_path, "privacy/epsilon") == [(0, 1.5), (2, 2.5)]
    assert read_metric(tmp_path, "train/loss_step") == [] == read_metric(tmp_path / "none", "privacy/epsilon")


def test_the_curves_are_those_of_the_right_runs(tmp_path, monkeypatch):
    """Epsilon of the private run and the loss of the other one; a private loss would not be public."""
    private, plain = tmp_path / "private", tmp_path / "plain"
    write_metrics(private, ["step,privacy/epsilon,train/loss_step", "0,1.5,9", "2,2.5,9"])
    plan = PrivacyPlan(0.25, 4, 1.0, 0.1, 1e-3, 6)
    ledger = Ledger()
    ledger.record(plan.event(), 2)
    ReleaseCard(plan, ledger).write(private / "privacy.json")
    write_metrics(plain, ["step,train/loss_step", "0,0.5", "1,0.4"])
    drawn = []
    plot = Axes.plot

    def record(axes, *values, **options):
        drawn.append((axes, values))
        return plot(axes, *values, **options)

    monkeypatch.setattr(Axes, "plot", record)
    draw_curves(private, plain, tmp_path / "curves.png")
    (left, epsilon), (right, loss) = drawn
    assert epsilon[0] == [0, 1, 2] and epsilon[1][2] == pytest.approx(ledger.epsilon(1e-3), rel=2e-3)
    assert loss == ([0, 1], [0.5, 0.4])
    assert (left.get_title(), left.get_ylabel()) == ("privacy spent", "epsilon") and left.get_ylim()[0] == 0
    assert (right.get_title(), right.get_xlabel()) == ("loss of the run without privacy", "step")
    with Image.open(tmp_path / "curves.png") as image:
        pixels = image.convert("RGB")
        assert pixels.size == (1080, 384) and len(pixels.getcolors(maxcolors=1 << 20)) > 10


def test_a_run_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="last.ckpt"):
        last_checkpoint(tmp_path)
