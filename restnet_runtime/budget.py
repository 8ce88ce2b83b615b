"""A budget: upper limits that a route must fit, and the least accuracy that it must have."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from restnet_runtime.errors import UnitError
from restnet_runtime.units import ALLOWED, format_bytes, format_macs, format_ms, parse_quantity


@dataclass(frozen=True)
class Budget:
    """Upper limits, any subset; `None` means no limit.

    macs:          multiply-accumulates per input (batch 1)
    latency_ms:    milliseconds per request (batch 1)
    memory_bytes:  proportional set size (PSS) of the serving process
    min_accuracy:  the floor, 0..1: a route below it, or of unknown accuracy, never answers, whatever the other limits cost
    """

    macs: int | None = None
    latency_ms: float | None = None
    memory_bytes: int | None = None
    min_accuracy: float | None = None

    def __post_init__(self) -> None:
        for name in _LIMITS:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UnitError(f"budget {name}={value!r} must be above zero and finite")
        if self.min_accuracy is not None and not 0 < self.min_accuracy <= 1:
            raise UnitError(f"budget min_accuracy={self.min_accuracy!r} must be above 0 and at most 1")

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read `200MFLOPs,30ms,150MB,90%`: any subset, any order; empty or `none` means no limit.

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
            min_accuracy=found.get("min_accuracy"),
        )

    def narrowed(self, other: "Budget") -> "Budget":
        """The budget that fits both: the lower limit of each kind, and the higher floor."""
        return Budget(
            _lower(self.macs, other.macs),
            _lower(self.latency_ms, other.latency_ms),
            _lower(self.memory_bytes, other.memory_bytes),
            _lower(self.min_accuracy, other.min_accuracy, max),
        )

    def __str__(self) -> str:
        parts = [
            "" if self.macs is None else format_macs(self.macs),
            "" if self.latency_ms is None else format_ms(self.latency_ms),
            "" if self.memory_bytes is None else format_bytes(self.memory_bytes),
            "" if self.min_accuracy is None else f"{100 * self.min_accuracy:.4g}%",
        ]
        return ", ".join(part for part in parts if part) or "none"


_LIMITS = ("macs", "latency_ms", "memory_bytes")
NO_LIMITS = Budget()
_Number = TypeVar("_Number", int, float)


def _lower(one: _Number | None, other: _Number | None, of: Callable[[_Number, _Number], _Number] = min) -> _Number | None:
    return other if one is None else one if other is None else of(one, other)
