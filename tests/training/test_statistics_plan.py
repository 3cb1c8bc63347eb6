"""The section ``dp_config.warm_up``: mistakes are named; queries of later rounds follow from earlier releases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ldm.errors import UserError
from ldm.privacy.ledger import Ledger
from ldm.privacy.statistics import ClassMixture, ClassMoments, Frame, fit_round, release
from ldm.training.statistics_plan import StatisticsPlan
from tests import tiny

MEANS = {"noise_multiplier": 20, "weights": [1, 1, 0]}
CENTRES = {"noise_multiplier": 9, "weights": [0.5, 1, 0], "centred": True, "cells": 3}
GROUPS = {"noise_multiplier": 9, "weights": [0.3, 0.4, 1], "centred": True, "cells": 3, "groups": 2, "refine": True}
LEADING = {"noise_multiplier": 8, "centred": True, "second_by_cell": True, "leading": 2}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clipnorm": 3}, "warm_up.clipnorm is unknown"),
        ({"rounds": [{"noise_multiplier": 8, "cells": 3}]}, "one cell a class"),
        ({"rounds": [{"cells": 1}]}, "noise_multiplier"),
        ({"rounds": []}, "rounds is empty"),
        ({"rounds": [{"noise_multiplier": 0}]}, "noise_multiplier"),
        ({"rounds": [{"noise_multiplier": 8, "centred": True}]}, "the first has no centre"),
        ({"rounds": [{"noise_multiplier": 8, "clip_norm": 0}]}, "rounds clip_norm"),
        ({"rounds": [MEANS, {"noise_multiplier": 8, "cells": 3}]}, "number 2 splits classes whose spread"),
        ({"rounds": [MEANS, {"noise_multiplier": 8, "centred": True}]}, "number 2 is centred.*set a clip_norm"),
        ({"rounds": [MEANS, {"noise_multiplier": 8, "leading": 2}]}, "set centred and second_by_cell"),
        ({"rounds": [{"noise_multiplier": 8}, {**LEADING, "leading": 0}]}, "leading"),
        ({"rounds": [MEANS, {**LEADING, "clip_norm": 2}]}, "number 2 splits classes whose spread"),
        ({"rounds": [MEANS, CENTRES]}, "number 2 splits classes whose spread"),
        ({"rounds": [{**MEANS, "refine": True, "centred": True}]}, "the first has no cells to refine"),
        ({"rounds": [{"noise_multiplier": 8}, CENTRES, {**GROUPS, "cells": 4}]}, "refines 4 cells.*number 2 has 3"),
        ({"rounds": [{"noise_multiplier": 8}, {**GROUPS, "groups": 4}]}, "4 groups of 3 cells"),
        ({"rounds": [{"noise_multiplier": 8}, {**GROUPS, "groups": 0}]}, "groups"),
        ({"rounds": [{"noise_multiplier": 8}, {**GROUPS, "second_by_cell": True}]}, "leave out second_by_cell"),
        ({"rounds": [{"noise_multiplier": 8}, CENTRES, {**GROUPS, "centred": False}]}, "set centred to true"),
        ({"rounds": [{"noise_multiplier": 8}, {**LEADING, "refine": True}]}, "leave out leading"),
        ({"training": {"stepz": 3}}, "training.stepz is unknown"),
        ({"training": {"steps": -1}}, "steps"),
        ({"frame": None}, "frame is missing"),
        ({"clip_norm": 0}, "clip_norm"),
    ],
)
def test_mistakes_in_the_config_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        StatisticsPlan.read({**tiny.WARM_UP, "frame": "frame.safetensors", **change})


def test_a_round_after_nothing_but_noise_has_the_norm_of_the_section() -> None:
    rounds = [{"noise_multiplier": 8}, {"noise_multiplier": 8, "cells": 2, **LEADING}]
    statistics = StatisticsPlan.read({**tiny.WARM_UP, "frame": "frame.safetensors", "clip_norm": 3, "rounds": rounds})
    nothing = torch.zeros(2, 1, 3).double()
    flat = ClassMixture(
        torch.ones(2).double() / 2, torch.ones(2, 1).double(), nothing, torch.zeros(2, 1, 3, 3).double()
    )
    query = replace(statistics, classes=2).query(1, Frame.identity(3), flat)
    assert query.clip_norm == 3 and query.rank == 2
    answer = release(query, torch.randn(9, 3), torch.arange(9) % 2, noise_multiplier=8, ledger=Ledger())
    assert torch.isfinite(fit_round(query, answer, flat).factors).all()


def test_centred_rounds_take_their_centres_and_norms_from_the_rounds_before() -> None:
    rounds = [
        MEANS,
        {"noise_multiplier": 8, "weights": [0.2, 0.3, 1], "centred": True, "clip_norm": 9},
        {"noise_multiplier": 8, "cells": 2, "second_by_cell": True, "centred": True},
        {"noise_multiplier": 8, "cells": 4, "second_by_cell": True, "centred": True, "leading": 2},
    ]
    statistics = StatisticsPlan.read(
        {**tiny.WARM_UP, "frame": "frame.safetensors", "classes": 2, "clip_norm": 20, "rounds": rounds}
    )
    generator = torch.Generator().manual_seed(2)
    rows, labels = torch.randn(4000, 3, generator=generator), torch.arange(4000) % 2
    rows[labels == 1] += 4
    frame = Frame.identity(3)
    mixture: ClassMixture | None = None
    queries: list[ClassMoments] = []
    for index in range(4):
        queries.append(statistics.query(index, frame, mixture))
        answer = release(queries[-1], rows, labels, noise_multiplier=0.01, ledger=Ledger())
        mixture = fit_round(queries[-1], answer, mixture)
    assert [query.clip_norm for query in queries[:2]] == [20.0, 9.0]
    assert [query.centred for query in queries] == [False, True, True, True]
    own = rows[labels == 0].double().mean(dim=0)
    assert queries[1].anchors is not None and queries[2].anchors is not None
    assert torch.allclose(queries[1].anchors[0, 0], own, atol=0.02), "the mean of the class, as released"
    assert queries[2].anchors.shape == (2, 2, 3)
    near = torch.cdist(rows[labels == 0].double(), queries[2].anchors[0]).amin(dim=1).median()
    assert queries[2].clip_norm == pytest.approx(float(near), rel=0.1), "the median distance, known from draws"
    assert queries[3].basis is not None and queries[3].basis.shape == (2, 3, 2) and queries[3].anchors is not None
    flat = (rows[labels == 0].double() @ queries[3].basis[0])[:, None] - queries[3].anchors[0] @ queries[3].basis[0]
    near_flat = flat.norm(dim=2).amin(dim=1)
    assert queries[3].clip_norm < queries[2].clip_norm, "distances in two directions are shorter"
    assert queries[3].describe()["leading"] == 2 and "leading" not in queries[2].describe()
    assert queries[3].clip_norm == pytest.approx(float(near_flat.median()), rel=0.25)
    with pytest.raises(UserError, match="the frame has 3 directions"):
        replace(statistics, rounds=(*statistics.rounds[:3], replace(statistics.rounds[3], leading=4))).query(
            3, frame, mixture
        )


def test_refined_rounds_keep_their_cells_and_move_their_centres() -> None:
    rounds = [{"noise_multiplier": 8}, CENTRES, {**CENTRES, "refine": True}, GROUPS]
    statistics = StatisticsPlan.read(
        {**tiny.WARM_UP, "frame": "frame.safetensors", "classes": 2, "clip_norm": 20, "rounds": rounds}
    )
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(6000) % 2
    rows = torch.randn(6000, 3, generator=generator) + 6 * (torch.arange(6000) // 2 % 3)[:, None]
    mixture: ClassMixture | None = None
    anchors = []
    for index in range(4):
        query = statistics.query(index, Frame.identity(3), mixture)
        answer = release(query, rows, labels, noise_multiplier=0.01, ledger=Ledger())
        before, mixture = mixture, fit_round(query, answer, mixture)
        if index:
            assert query.anchors is not None
            anchors.append(query.anchors)
        if index > 1:
            assert before is not None and torch.equal(anchors[-1], before.means), "the means that were released"
    assert mixture is not None and mixture.means.shape == (2, 3, 3)
    blobs = 6.0 * torch.arange(3)[:, None].expand(3, 3).double()
    assert float(torch.cdist(blobs, mixture.means[0]).amin(dim=1).max()) < 0.5
    assert query.groups is not None and query.groups.shape == (2, 3) and query.matrices_per_class == 2
