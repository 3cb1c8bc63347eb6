"""Memory that is freed on a CPU stays with the process, so that the next step need not ask the system for it.

glibc returns large blocks to the operating system as soon as they are freed. A training step allocates and frees the
same hundreds of megabytes again and again, and every page that comes back must be mapped and cleared anew. A private
step feels it most, because it holds inputs and output gradients of all layers at once (results/performance.md).
"""

from __future__ import annotations

import ctypes
import os

#: Parameters of glibc's mallopt (malloc.h): blocks from this size on come straight from the system; free memory at the
#: end of the heap from this size on goes back to it.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

#: Bytes; the second is the most that older versions of glibc accept.
_LARGE_BLOCKS = (1 << 30, 1 << 25)
_NEVER = 2**31 - 1

#: Variables by which a user sets the same; then nothing is changed.
_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, up to its highest point; whether the allocator can do so.

    Only glibc's allocator (Linux) can do so. Call it after the last measurement of the machine's free memory.
    """
    if any(name in os.environ for name in _OF_THE_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    kept = any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGE_BLOCKS)
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and kept
