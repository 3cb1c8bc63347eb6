"""The quickstart's report: its table, its images and what it reads from run directories."""

from __future__ import annotations

import pytest
import torch

from ldm.errors import UserError
from ldm.reports.quickstart import Row, comparison, draw_curves, fixed_images, last_checkpoint, read_metric, table
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


def test_metrics_are_read_by_column_and_drawn(tmp_path):
    private, plain = tmp_path / "private", tmp_path / "plain"
    write_metrics(private, ["step,privacy/epsilon", "0,1.5", "1,", "2,2.5"])
    write_metrics(plain, ["step,train/loss_step", "0,0.5", "1,0.4"])
    assert read_metric(private, "privacy/epsilon") == ([0, 2], [1.5, 2.5])
    assert read_metric(private, "train/loss_step") == ([], [])
    draw_curves(private, plain, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="last.ckpt"):
        last_checkpoint(tmp_path)
