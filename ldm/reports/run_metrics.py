"""Logged metrics of a run: columns of the metrics.csv files in its directory."""

from __future__ import annotations

import csv
from pathlib import Path


def read_metric(run: str | Path, name: str) -> list[tuple[int, float]]:
    """(step, value) pairs of one column over all versions of a run's metrics; empty when it was not logged."""
    points = []
    for file in sorted((Path(run) / "metrics").glob("version_*/metrics.csv")):
        with file.open(newline="", encoding="utf-8") as stream:
            for line in csv.DictReader(stream):
                if line.get(name) and line.get("step"):
                    points.append((int(line["step"]), float(line[name])))
    return points
