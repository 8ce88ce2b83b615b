"""Settings of the server, parsed once by the command line and passed down."""

import math
from dataclasses import dataclass, field

from restnet_runtime.access import Access
from restnet_runtime.threads import usable_cores

BUDGET_HEADER = "X-Restnet-Budget"
"""The header by which a request of any kind narrows the standing budget for itself."""
MAX_PIXELS = 50_000_000
"""The largest image that is decoded unless somebody says otherwise, width times height."""


@dataclass(frozen=True)
class ServeSettings:
    """Limits of the HTTP server.

    max_body_bytes:       the longest request body that is read
    max_receiving_bytes:  how much of unfinished bodies is held, all together, before further bytes are refused
    body_timeout_s:       how long a body may take to arrive
    max_pixels:           the largest image that is decoded, width times height, checked before any pixel is
    max_batch:            the most inputs in one request
    top_k:                how many classes an answer lists unless the request says otherwise
    strict:               refuse a request when no route fits the budget, rather than overrun it
    workers:              how many requests are decoded and run at once
    read_only:            budget and pin cannot be changed over HTTP
    deadline_ms:          what has waited so long since its headers came is not run; `None` for no such limit
    access:               who may ask for what
    max_in_flight:        how many requests whose body is there may wait or run before further ones are refused
    """

    max_body_bytes: int = 16_000_000
    max_receiving_bytes: int = 64_000_000
    body_timeout_s: float = 30.0
    max_pixels: int = MAX_PIXELS
    max_batch: int = 64
    top_k: int = 5
    strict: bool = False
    workers: int = field(default_factory=usable_cores)
    max_in_flight: int = 256
    read_only: bool = False
    deadline_ms: float | None = None
    access: Access = field(default_factory=Access)

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_pixels", "max_batch", "top_k", "workers", "max_in_flight"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value!r} must be at least 1")
        if not 0 < self.body_timeout_s < math.inf:
            raise ValueError(f"body_timeout_s={self.body_timeout_s!r} must be above 0 and finite")
        if self.max_receiving_bytes < self.max_body_bytes:
            raise ValueError(f"max_receiving_bytes={self.max_receiving_bytes} must be at least max_body_bytes={self.max_body_bytes}")
