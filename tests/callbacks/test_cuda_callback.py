"""The line about every epoch: its seconds, and on a GPU its peak memory."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from callbacks import cuda_callback
from callbacks.cuda_callback import CUDACallback

CPU = SimpleNamespace(device=torch.device("cpu"))
TRAINER = SimpleNamespace(current_epoch=3)


def test_seconds_of_an_epoch(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 10.0, 12.5])
    monkeypatch.setattr(cuda_callback.time, "perf_counter", lambda: next(clock))
    callback = CUDACallback()
    with caplog.at_level(logging.INFO):
        callback.on_train_start(TRAINER, CPU)
        callback.on_train_epoch_start(TRAINER, CPU)
        callback.on_train_epoch_end(TRAINER, CPU)
    assert caplog.messages == ["epoch 3: 2.50 s"]


def test_a_run_resumed_within_an_epoch_has_no_epoch_start(caplog: pytest.LogCaptureFixture) -> None:
    callback = CUDACallback()
    with caplog.at_level(logging.INFO):
        callback.on_train_start(TRAINER, CPU)
        callback.on_train_epoch_end(TRAINER, CPU)
    assert caplog.messages[0].startswith("epoch 3: 0.")


def test_peak_memory_on_a_gpu(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: calls.append(name))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    callback, module = CUDACallback(), SimpleNamespace(device=torch.device("cuda", 0))
    with caplog.at_level(logging.INFO):
        callback.on_train_epoch_start(TRAINER, module)
        callback.on_train_epoch_end(TRAINER, module)
    assert caplog.messages[0].endswith("peak GPU memory 3 MiB")
    assert calls == ["reset_peak_memory_stats", "synchronize", "synchronize"]
