"""Load YAML configurations and build the objects they describe.

A section ``{target: dotted.name, params: {...}}`` describes one object; `instantiate_from_config` builds it.
"""

from __future__ import annotations

from ldm.config.aliases import LIGHTNING_ALIASES, MAIN_ALIASES, NETWORKS, RETIRED, TAMING_ALIASES, canonical_target
from ldm.config.instantiate import instantiate_from_config, instantiate_networks
from ldm.config.load import config_layers, load_config
from ldm.config.options import read_options, take_options
from ldm.config.parameters import accepted_parameters
from ldm.config.plain import section_at, to_plain, value_at
from ldm.config.targets import ALLOWED_PREFIXES, allow_target, get_obj_from_str, networks_of

__all__ = [
    "ALLOWED_PREFIXES",
    "LIGHTNING_ALIASES",
    "MAIN_ALIASES",
    "NETWORKS",
    "RETIRED",
    "TAMING_ALIASES",
    "accepted_parameters",
    "allow_target",
    "canonical_target",
    "config_layers",
    "get_obj_from_str",
    "instantiate_from_config",
    "instantiate_networks",
    "load_config",
    "networks_of",
    "read_options",
    "section_at",
    "take_options",
    "to_plain",
    "value_at",
]
