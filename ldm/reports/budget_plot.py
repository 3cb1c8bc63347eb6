"""Noise against batch size, as an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ldm.errors import UserError
from ldm.files import write_atomic
from ldm.numbers import rounded_up
from ldm.privacy.budget import Budget


def draw_budgets(rows: Sequence[Budget], path: str | Path) -> None:
    """Draw sigma, and the noise share sigma / B, against the batch size; ``path`` ends in .png, .pdf or .svg.

    Raises UserError when the folder does not exist or the ending is not that of an image.
    """
    target = Path(path)
    if not target.parent.is_dir() or target.suffix not in {".png", ".pdf", ".svg"}:
        raise UserError(f"cannot draw to {target}: the folder must exist and the name end in .png, .pdf or .svg")
    ordered = sorted(rows, key=lambda row: row.batch_size)
    batch = [row.batch_size for row in ordered]
    figure = Figure(figsize=(6, 4), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    left.plot(batch, [row.noise_multiplier for row in ordered], "o-", color="tab:blue")
    right.plot(batch, [row.noise_share for row in ordered], "s--", color="tab:red")
    left.set(xscale="log", xlabel="expected batch size B", ylim=(0, None))
    left.set_xticks(batch, [str(size) for size in batch])
    left.minorticks_off()
    left.set_ylabel("noise multiplier sigma", color="tab:blue")
    right.set_ylabel("sigma / B (in units of C)", color="tab:red")
    right.set_yscale("log")
    last = ordered[-1]
    left.set_title(f"epsilon {rounded_up(last.epsilon, 3)} at delta {rounded_up(last.delta, 6)}, {last.relation}")
    write_atomic(target, lambda path: figure.savefig(path, dpi=120))
