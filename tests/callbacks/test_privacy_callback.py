"""What the callback of a private run shows: epsilon, which follows from the plan, and nothing of the records."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from callbacks.privacy_callback import PrivacyCallback
from tests import tiny


def callback(taken: int, steps: int = 5) -> PrivacyCallback:
    training = SimpleNamespace(
        taken=taken,
        spent=taken >= steps,
        release=lambda: None,
        describe=lambda: f"epsilon 1 after {taken} of {steps} steps",
        clipper=SimpleNamespace(skipped=3),
    )
    return PrivacyCallback(training, lambda steps: 0.1 * steps)


@pytest.mark.parametrize("taken", [2, 5])
def test_what_is_shown_of_a_step(taken: int) -> None:
    shown: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    module = SimpleNamespace(log=lambda *given, **options: shown.append((given, options)))
    trainer = SimpleNamespace(should_stop=False)
    callback(taken).on_train_batch_end(trainer, module, None, tiny.batch(4), 0)
    assert shown == [(("privacy/epsilon", pytest.approx(0.1 * taken)), {"prog_bar": True, "batch_size": 1})]
    assert trainer.should_stop == (taken == 5)


def test_what_is_said_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        callback(5).on_train_end(SimpleNamespace(), SimpleNamespace())
    assert caplog.messages == ["privacy: epsilon 1 after 5 of 5 steps"]
