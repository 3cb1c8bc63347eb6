"""What every test shares: one computing thread and the numeric fixtures."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from ldm.config import ALLOWED_PREFIXES
from tests import parity as parity_fixtures

torch.set_num_threads(1)


@pytest.fixture
def parity() -> ModuleType:
    """The loader of the numeric fixtures, :mod:`tests.parity`."""
    return parity_fixtures


@pytest.fixture(autouse=True)
def only_the_usual_targets():
    """What one test allows configurations to name is not allowed in the next."""
    before = set(ALLOWED_PREFIXES)
    yield
    ALLOWED_PREFIXES.clear()
    ALLOWED_PREFIXES.update(before)
