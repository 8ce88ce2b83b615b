"""A budget: upper limits that a route must fit."""

import math
from dataclasses import dataclass, fields

from restnet_runtime.errors import UnitError
from restnet_runtime.units import ALLOWED, format_bytes, format_macs, format_ms, parse_quantity


@dataclass(frozen=True)
class Budget:
    """Upper limits, any subset; `None` means no limit.

    macs:          multiply-accumulates per input (batch 1)
    latency_ms:    milliseconds per request (batch 1)
    memory_bytes:  proportional set size (PSS) of the serving process
    """

    macs: int | None = None
    latency_ms: float | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 < value < math.inf:
                raise UnitError(f"budget {field.name}={value!r} must be above zero and finite")

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read `200MFLOPs,30ms,150MB`: any subset, any order; empty or `none` means no limit.

        Raises `UnitError` naming the part that cannot be read or that limits the same thing twice.
        """
        found: dict[str, float] = {}
        if text.strip().lower() in ("", "none"):
            return cls()
        for part in text.split(","):
            if not part.strip():
                raise UnitError(f"budget {text!r} has an empty part: give {ALLOWED}, separated by commas")
            kind, value = parse_quantity(part)
            if kind in found:
                raise UnitError(f"budget {text!r} limits {kind} twice")
            found[kind] = value
        macs, memory = found.get("macs"), found.get("memory_bytes")
        return cls(
            macs=None if macs is None else max(1, math.floor(macs)),
            latency_ms=found.get("latency_ms"),
            memory_bytes=None if memory is None else max(1, math.floor(memory)),
        )

    def narrowed(self, other: "Budget") -> "Budget":
        """The budget that fits both: the lower limit of each kind."""

        def lower(name: str) -> float | None:
            limits = [limit for limit in (getattr(self, name), getattr(other, name)) if limit is not None]
            return min(limits) if limits else None

        return Budget(**{field.name: lower(field.name) for field in fields(self)})  # type: ignore[arg-type]  # same types per field

    def __str__(self) -> str:
        parts = [
            "" if self.macs is None else format_macs(self.macs),
            "" if self.latency_ms is None else format_ms(self.latency_ms),
            "" if self.memory_bytes is None else format_bytes(self.memory_bytes),
        ]
        return ", ".join(part for part in parts if part) or "none"
