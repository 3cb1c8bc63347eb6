"""What every test shares: one computing thread and the numeric fixtures."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from tests import parity as parity_fixtures

torch.set_num_threads(1)


@pytest.fixture
def parity() -> ModuleType:
    """The loader of the numeric fixtures, :mod:`tests.parity`."""
    return parity_fixtures
