"""The heap of the C library: what is freed goes back to the system, where the library can be told so (glibc)."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE_BYTES = 4 * 2**20


def trim_heap() -> None:
    """Give freed memory back to the system.

    Before ONNX Runtime finds a packed weight in the file it packs it once more, into memory that it frees at once. glibc keeps such
    memory in its heap, in pieces: without this each session of a layer of 20 MB cost another 20 MB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # not glibc otherwise
        trim(0)


def return_large_blocks() -> None:
    """Have glibc take blocks of several megabytes from the system and give them back, each by itself.

    By default it learns from the first large block that is freed to keep such blocks in its heap, and in that of a thread they stay:
    `malloc_trim` does not touch the end of it. Weights that a load packs and drops again kept tens of megabytes that way, and an export
    a fifth of its memory, the more the more batches it had seen.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)
