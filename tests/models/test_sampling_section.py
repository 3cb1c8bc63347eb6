"""The section `sampling` of a YAML file: its values, its typos, and a run that cannot keep it."""

from __future__ import annotations

from typing import Any

import pytest

from ldm.errors import UserError
from ldm.models.diffusion.sampling_section import SamplingSection


@pytest.mark.parametrize("section", [None, {}, {"source": None}, {"source": "model"}])
def test_without_a_declaration_images_are_samples_of_the_model(section: Any) -> None:
    assert SamplingSection.read(section) == SamplingSection() and not SamplingSection().draws


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"sorce": "draws"}, "sampling.sorce is unknown; did you mean 'source'"),
        ({"source": "draw"}, "sampling.source: 'draw' is unknown; did you mean 'draws'"),
        ({"source": "pixels"}, "sampling.source: 'pixels' is unknown; choose one of model, draws"),
        ("draws", "sampling: 'draws' is no section"),
    ],
)
def test_a_typo_is_named(section: Any, words: str) -> None:
    with pytest.raises(UserError) as refusal:
        SamplingSection.read(section)
    assert words in str(refusal.value)


def test_draws_need_statistics() -> None:
    declared = SamplingSection.read({"source": "draws"})
    declared.check({"warm_up": {"classes": 2}})
    for dp_config in ({}, {"warm_up": None}):
        SamplingSection().check(dp_config)
        with pytest.raises(UserError, match=r"sampling\.source: draws are those of .*dp_config\.warm_up"):
            declared.check(dp_config)
