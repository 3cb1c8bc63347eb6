"""Fixtures shared by several tests of the clipper."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ldm.privacy.engines import capture


@pytest.fixture(scope="module", params=["small", "large"])
def uses(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every use of a layer in the module's tests counts as a small one, then as a large one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture, "_FEW_NUMBERS", {"cpu": 1 << 20 if request.param == "small" else -1})
        yield
