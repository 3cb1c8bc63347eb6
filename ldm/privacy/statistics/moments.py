"""`ClassMoments`: the count, mean and second moment of each class, in public directions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.privacy.statistics.frame import Frame
from ldm.privacy.statistics.query import chunks, clipped
from ldm.privacy.validate import number, whole


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class ClassMoments:
    """Sums of (1, v, v vᵀ) for each class: v are the coordinates of a record in ``frame``, clipped to norm R, over R.

    One record contributes to one class: a · 1 and b · v to one row of ``count`` (classes, cells) and ``mean`` (classes,
    cells, k), and c · v vᵀ to one row of ``second`` (classes, k (k + 1) / 2), which holds the diagonal and sqrt(2)
    times the upper triangle, so that its Euclidean length is the Frobenius norm of the matrix. R is ``clip_norm``; a,
    b, c are the ``weights``. As |v| <= 1 the contribution of any record is at most sqrt(a² + b² + c²) long.

    ``anchors`` (classes, cells, k) split each class into cells: a record belongs to the nearest anchor of its class.
    They are public, or computed from earlier releases. Second moments are those of the whole class, or of each
    cell when ``second_by_cell``: then ``second`` is (classes · cells, k (k + 1) / 2), and the bound is the same.
    When ``centred``, v is the difference of a record from its anchor, clipped to norm R: differences are shorter than
    records, so that R is smaller and the same noise on the sums is less noise on the moments. With a ``basis``
    (classes, k, r) of orthonormal directions of each class, the difference is taken in these r directions alone, and r
    stands for k in the shapes above. With ``groups`` (classes, cells) int64, second moments are those of groups of
    cells: the entry of a cell is the number of its group, 0 to G - 1, and ``second`` is (classes · G, k (k + 1) / 2).

    All fields are public constants. Raises UserError for values out of range.
    """

    frame: Frame
    classes: int
    clip_norm: float
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    anchors: Tensor | None = field(default=None)
    second_by_cell: bool = False
    centred: bool = False
    basis: Tensor | None = field(default=None)
    groups: Tensor | None = field(default=None)
    name: str = "class moments of latents"

    def __post_init__(self) -> None:
        whole("classes", self.classes)
        number("clip_norm of the moments", self.clip_norm, above=0)
        if len(self.weights) != 3 or any(not math.isfinite(w) or w < 0 for w in self.weights) or not self.weights[0]:
            raise UserError(
                f"weights {self.weights}: give three numbers from 0 for count, mean, second moment; the first above 0"
            )
        if self.anchors is not None and (
            self.anchors.ndim != 3
            or (self.anchors.shape[0], self.anchors.shape[2]) != (self.classes, self.frame.rank)
            or not torch.isfinite(self.anchors).all()
        ):
            raise UserError(
                f"anchors have shape {tuple(self.anchors.shape)}; expected ({self.classes}, cells, {self.frame.rank}) "
                "finite numbers"
            )
        if self.centred and self.anchors is None:
            raise UserError("centred moments need anchors to be centred on: the means of an earlier release")
        if self.basis is not None:
            self._check_basis(self.basis)
        if self.groups is not None:
            self._check_groups(self.groups)

    def _check_groups(self, groups: Tensor) -> None:
        if not self.centred or self.second_by_cell:
            raise UserError("groups are for centred second moments: set centred, and leave out second_by_cell")
        if groups.shape != (self.classes, self.cells) or groups.is_floating_point() or int(groups.min()) < 0:
            raise UserError(
                f"groups have shape {tuple(groups.shape)}; expected ({self.classes}, {self.cells}) whole numbers from 0"
            )

    def _check_basis(self, basis: Tensor) -> None:
        if not (self.centred and self.second_by_cell):
            raise UserError("a basis is for centred second moments of cells: set centred and second_by_cell")
        if basis.ndim != 3 or basis.shape[:2] != (self.classes, self.frame.rank):
            raise UserError(f"basis has shape {tuple(basis.shape)}; expected ({self.classes}, {self.frame.rank}, r)")
        products = basis.double().transpose(1, 2) @ basis.double()
        if not torch.allclose(products, torch.eye(basis.shape[2], dtype=torch.float64), atol=1e-6):
            raise UserError("the directions of a basis must be orthonormal")

    @property
    def rank(self) -> int:
        """Number of coordinates whose moments are released."""
        return self.frame.rank if self.basis is None else self.basis.shape[2]

    @property
    def cells(self) -> int:
        """Cells a class."""
        return 1 if self.anchors is None else self.anchors.shape[1]

    @property
    def matrices_per_class(self) -> int:
        """Matrices of second moments a class: one, one for each cell, or one for each group of cells."""
        if self.groups is not None:
            return int(self.groups.max()) + 1
        return self.cells if self.second_by_cell else 1

    @property
    def bound(self) -> float:
        """Largest norm of one record's contribution: sqrt(a² + b² + c²)."""
        return math.sqrt(sum(weight**2 for weight in self.weights))

    @cached_property
    def triangle(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row and column of every stored number of a matrix, and the factor it is stored with."""
        row, column = torch.triu_indices(self.rank, self.rank)
        factor = torch.where(row == column, 1.0, math.sqrt(2.0)).double()
        return row, column, factor

    def describe(self) -> dict[str, Any]:
        """The public constants as plain JSON values."""
        constants = {
            "classes": self.classes,
            "cells": self.cells,
            "directions": self.frame.rank,
            "frame": self.frame.digest(),
            "clip_norm": self.clip_norm,
            "weights": list(self.weights),
            "bound": self.bound,
            "second_by_cell": self.second_by_cell,
        }
        # releases made before these fields existed have no such entries, and are compared with this one
        later = {"centred": self.centred, "leading": 0 if self.basis is None else self.rank}
        later["groups"] = 0 if self.groups is None else self.matrices_per_class
        return {**constants, **{name: value for name, value in later.items() if value}}

    def total(self, records: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The sums over flattened or shaped latents (N, ...) with labels (N,); see the class for their shapes."""
        k, groups = self.rank, self.classes * self.cells
        count = torch.zeros(groups, dtype=torch.float64)
        mean = torch.zeros(groups, k, dtype=torch.float64)
        matrices = torch.zeros(self.classes * self.matrices_per_class, k, k, dtype=torch.float64)
        for rows, which in chunks(records, labels, self.classes):
            cell, unit = self._contributions(self.frame.project(rows), which)
            count.index_add_(0, cell, torch.ones(len(cell), dtype=torch.float64))
            mean.index_add_(0, cell, unit)
            owner = self._owner(cell, which)
            for group in owner.unique().tolist():
                members = unit[owner == group]
                matrices[group] += members.T @ members
        row, column, factor = self.triangle
        a, b, c = self.weights
        return {
            "count": a * count.view(self.classes, self.cells),
            "mean": b * mean.view(self.classes, self.cells, k),
            "second": c * matrices[:, row, column] * factor,
        }

    def _owner(self, cell: Tensor, which: Tensor) -> Tensor:
        """The matrix of second moments (B,) that each record adds to."""
        if self.groups is not None:
            return which * self.matrices_per_class + self.groups.flatten()[cell]
        return cell if self.second_by_cell else which

    def _contributions(self, coordinates: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """The row of ``count`` and ``mean`` of each record (B,), and v (B, k or r) of length <= 1."""
        if not self.centred:  # the length is limited first, so that the cell is that of the vector which is summed
            coordinates = clipped(coordinates, self.clip_norm)
        if self.anchors is None:
            return which * self.cells, coordinates / self.clip_norm
        places = self.anchors.double()[which]
        nearest = (coordinates[:, None, :] - places).square().sum(dim=2).argmin(dim=1)
        if self.centred:
            offsets = coordinates - places[torch.arange(len(which)), nearest]
            if self.basis is not None:
                offsets = torch.einsum("nk,nkr->nr", offsets, self.basis.double()[which])
            coordinates = clipped(offsets, self.clip_norm)
        return which * self.cells + nearest, coordinates / self.clip_norm

    def matrices(self, stored: Tensor) -> Tensor:
        """Symmetric matrices (G, k, k) from stored triangles (G, k (k + 1) / 2), without the weight."""
        row, column, factor = self.triangle
        k = self.rank
        result = torch.zeros(len(stored), k, k, dtype=torch.float64)
        result[:, row, column] = stored / factor
        result[:, column, row] = stored / factor
        return result
