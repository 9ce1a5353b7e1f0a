"""Keep freed memory in the process, so that large bodies do not fault in fresh pages."""

from __future__ import annotations

import ctypes
import gc

_MIB = 1 << 20
# (mallopt parameter, value): what is freed stays in the kept heap. There is one for all threads:
# of several, each would grow to the most it ever held. NumPy asks for huge pages for blocks from
# 4 MiB on, which would go on filling the heap's holes: such blocks are mapped, and given back.
_OPTIONS = (
    (-8, 1),  # M_ARENA_MAX
    (-3, 4 * _MIB),  # M_MMAP_THRESHOLD
    (-1, 256 * _MIB),  # M_TRIM_THRESHOLD
    (-2, 16 * _MIB),  # M_TOP_PAD
)


def keep_heap() -> bool:
    """Tune glibc's allocator; elsewhere (musl, macOS) nothing happens.

    Without this, the event loop's 256 KiB read buffers are mapped and unmapped for every
    chunk of a body.

    Returns
    -------
    bool
        Whether every option was taken.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    taken = [mallopt(option, value) == 1 for option, value in _OPTIONS]
    return all(taken)


def settle_heap() -> None:
    """Leave what has been loaded by now out of all later garbage collections.

    It lives as long as the process, and going through it again and again takes time from
    requests.
    """
    gc.collect()
    gc.freeze()
