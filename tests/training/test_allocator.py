"""Freed memory stays with the process: a block that is asked for again costs no page faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: Prints the pages that were mapped while 32 MB were allocated, written and freed ten times, after a first time.
WORK = """
import resource, sys
from ldm.training.allocator import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("no")
    sys.exit()
bytearray(1 << 25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(1 << 25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 10 * (1 << 25) // 4096


def faults(word: str, **variables: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", WORK, word], check=True, capture_output=True, text=True, env=variables
    ).stdout.strip()


def test_a_block_that_was_freed_is_there_again() -> None:
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name and "GLIBC" not in name}
    kept = faults("keep", **environment)
    if kept == "no":
        pytest.skip("another C library")
    assert int(kept) < PAGES // 20
    assert faults("keep", **environment, MALLOC_TRIM_THRESHOLD_="131072") == "no", "the user's choice counts"
