"""Quantities as people write them: `200MFLOPs`, `30ms`, `150MB`, `90%`.

One FLOP is one multiply-accumulate here, as in the stitching literature (SN-Net, CVPR 2023, counts with fvcore), so
`200MFLOPs` and `200MMACs` mean the same. Memory is decimal for `kB, MB, GB` and binary for `KiB, MiB, GiB`.
"""

import math
import re

from restnet_runtime.errors import UnitError

_NUMBER = r"(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
_QUANTITY = re.compile(rf"\s*{_NUMBER}\s*(?P<unit>[A-Za-z%\u00b5\u03bc]+)\s*")

_SI = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_MACS = {f"{si}{unit}".lower(): factor for si, factor in _SI.items() for unit in ("FLOPs", "FLOP", "MACs", "MAC")}
_MS = {"us": 1e-3, "\u00b5s": 1e-3, "\u03bcs": 1e-3, "ms": 1.0, "s": 1e3}
_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_SHARE = {"%": 100}
ALLOWED = "a number with FLOPs/MACs (K, M, G, T before it), us/ms/s, B/kB/MB/GB/KiB/MiB/GiB, or % for the least accuracy"


def parse_quantity(text: str) -> tuple[str, float]:
    """Read one quantity.

    Returns `("macs", count)`, `("latency_ms", milliseconds)`, `("memory_bytes", bytes)` or `("min_accuracy", share)`.
    Raises `UnitError` for anything else, zero and infinity included.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise UnitError(f"{text.strip()!r} is not a quantity: give {ALLOWED}")
    number, unit = float(match["number"]), match["unit"].lower()
    for kind, units in (("macs", _MACS), ("latency_ms", _MS), ("memory_bytes", _BYTES), ("min_accuracy", _SHARE)):
        if unit in units:
            value = number / 100 if kind == "min_accuracy" else number * units[unit]  # 95 x 0.01 is above 0.95
            if not 0 < value < math.inf:
                raise UnitError(f"{text.strip()!r} must be above zero and finite")
            return kind, value
    raise UnitError(f"{text.strip()!r} has the unknown unit {match['unit']!r}: give {ALLOWED}")


def _scaled(value: float, steps: list[tuple[float, str]]) -> str:
    """`value` in the first unit in which it is at least 1, else in the last; 3 digits, more only where no larger unit is left."""
    for factor, unit in steps:
        scaled = value / factor
        # From 0.9995 on, three digits make it 1.
        if abs(scaled) >= 0.9995 or factor == steps[-1][0]:
            text = f"{scaled:.0f}" if abs(scaled) >= 999.5 else f"{scaled:.3g}"
            return f"{text} {unit}"
    raise AssertionError("steps is never empty")


def format_macs(macs: float) -> str:
    """`1843200` as `1.84 MMACs`."""
    return _scaled(macs, [(1e12, "TMACs"), (1e9, "GMACs"), (1e6, "MMACs"), (1e3, "KMACs"), (1, "MACs")])


def format_bytes(count: float) -> str:
    """`150000000` as `150 MB` (decimal)."""
    return _scaled(count, [(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")])


def format_ms(milliseconds: float) -> str:
    """`0.41` as `0.41 ms`, `0.0213` as `21.3 us`, `1500` as `1.5 s`."""
    if 0.1 <= milliseconds < 0.9995:
        return f"{milliseconds:.3g} ms"
    return _scaled(milliseconds, [(1e3, "s"), (1, "ms"), (1e-3, "us")])
