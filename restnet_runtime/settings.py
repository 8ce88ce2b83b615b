"""Settings of the server, parsed once by the command line and passed down."""

import os
from dataclasses import dataclass, field


def usable_cores() -> int:
    """Cores that this process may run on (its CPU affinity), at least 1."""
    return max(1, len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class ServeSettings:
    """Limits of the HTTP server.

    max_body_bytes:  the longest request body that is read
    max_pixels:      the largest image that is decoded, width times height, checked before any pixel is
    max_batch:       the most inputs in one request
    top_k:           how many classes an answer lists unless the request says otherwise
    strict:          refuse a request when no route fits the budget, rather than overrun it
    workers:         how many requests are decoded and run at once
    max_in_flight:   how many requests may wait or run before further ones are refused
    """

    max_body_bytes: int = 16_000_000
    max_pixels: int = 50_000_000
    max_batch: int = 64
    top_k: int = 5
    strict: bool = False
    workers: int = field(default_factory=usable_cores)
    max_in_flight: int = 256

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_pixels", "max_batch", "top_k", "workers", "max_in_flight"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value!r} must be at least 1")
