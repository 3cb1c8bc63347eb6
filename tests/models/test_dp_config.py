"""`read_dp_config`: the spellings of a YAML section, and what is refused with which words."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from omegaconf import OmegaConf

from ldm.errors import UserError
from ldm.models.diffusion.dp_config import read_dp_config
from ldm.privacy.config import DPConfig


@pytest.mark.parametrize("raw", [None, {}, {"delta": None, "enabled": None, "public_data": None}])
def test_nothing_said_means_the_defaults(raw: Any) -> None:
    assert read_dp_config(raw) == DPConfig()


def test_every_spelling_of_yaml_is_understood() -> None:
    text = """
    enabled: true
    epsilon: "10"
    delta: 1e-5
    max_grad_norm: '0.1'
    noise_multiplicity: 4
    dataset_size: 60000
    public_data: dots
    """
    raw = OmegaConf.to_container(OmegaConf.create(text))
    assert read_dp_config(raw) == DPConfig(  # type: ignore[arg-type]
        enabled=True,
        epsilon=10.0,
        delta=1e-5,
        max_grad_norm=0.1,
        noise_multiplicity=4,
        dataset_size=60_000,
        public_data=("dots",),
    )
    assert read_dp_config({"public_data": ["dots", 3]}).public_data == ("dots", "3")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"max_grad_nrom": 1.0}, "dp_config.max_grad_nrom is unknown; did you mean 'max_grad_norm'"),
        ({"dpdm_k": 2}, "dp_config.dpdm_k is unknown; did you mean 'DPDM_k'"),
        ({"delta": "small"}, "dp_config.delta: 'small' is no number"),
        ({"delta": True}, "dp_config.delta: True is no number"),
        ({"noise_multiplicity": 2.5}, "dp_config.noise_multiplicity: 2.5 is no whole number"),
        ({"insecure_seed": True}, "dp_config.insecure_seed: True is no whole number"),
        ({"enabled": "perhaps"}, "dp_config.enabled: 'perhaps' is neither true nor false"),
        ({"clipping": ["flat"]}, "dp_config.clipping: .* is no text"),
        ({"public_data": 3}, "dp_config.public_data"),
        ({"public_data": ["a\nb"]}, "must be one line of text"),
    ],
)
def test_a_key_or_a_type_that_does_not_exist_is_refused_in_one_line(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_dp_config(raw)
    assert "\n" not in str(error.value)


def test_the_multiplicity_may_stand_in_three_places_and_must_be_one_number(caplog: pytest.LogCaptureFixture) -> None:
    assert read_dp_config({"DPDM_k": 4}).noise_multiplicity == 4
    assert read_dp_config({"DPDM_k": 4, "noise_multiplicity": 4}, 4).noise_multiplicity == 4
    assert read_dp_config({"enabled": True}, 4).noise_multiplicity == 4
    with pytest.raises(UserError, match="DPDM_k 4 and noise_multiplicity 8 are one setting"):
        read_dp_config({"DPDM_k": 4, "noise_multiplicity": 8})
    with pytest.raises(UserError, match="DPDM_k is 4 but dp_config.noise_multiplicity is 2"):
        read_dp_config({"noise_multiplicity": 2}, 4)
    with caplog.at_level(logging.WARNING):
        assert read_dp_config({}, 4).noise_multiplicity == 1
    assert "this run takes one" in caplog.text
