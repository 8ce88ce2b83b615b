"""Precision: which of them a device runs, and how its sessions compute in int8. docs/decisions/0017-precision-on-the-device.md says why."""

import os
import platform
from functools import lru_cache
from pathlib import Path
from typing import Literal

from restnet_runtime.bundle import Bundle
from restnet_runtime.cgroups import read_limits
from restnet_runtime.providers import Providers
from restnet_runtime.routes import Route

CPUINFO = Path("/proc/cpuinfo")

Filters = Literal["pointwise", "spatial", "depthwise"]
"""Of quantised convolutions: 1x1 without stride; all others; those of one channel each."""
EVERY_FILTER: frozenset[Filters] = frozenset({"pointwise", "spatial", "depthwise"})

_COPIES_SHARE = 1 / 8
"""Of the device's memory: more than this is too much for copies of filters."""
_LITTLE_SHARE = 1 / 64
"""Less than this is nothing to save."""
_TILES = "amx_int8"
_EVERYWHERE = frozenset({"fp32", "int8"})
_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni"})


def lacking(route: Route, providers: Providers) -> str | None:
    """Why a route cannot run in its precision here, `None` where it can: half precision is for providers other than the CPU."""
    halves = sorted(set(route.precisions) - _EVERYWHERE)
    if not halves or not providers.cpu_only:
        return None
    return f"its precision is {route.precision}: the CPU provider has no kernels for {' and '.join(halves)}, ask for another provider"


def exact_products(cpuinfo: Path = CPUINFO, machine: str = platform.machine()) -> dict[str, str]:
    """Session entries with which products of uint8 and int8 do not saturate; none where they do not anyway.

    x86 without dot-product instructions adds pairs of such products in 16 bits. ONNX Runtime then keeps weights as uint8, whose
    products it computes in 32 bits, which is slower: so it is asked for only where it is needed.
    """
    if machine.lower() not in ("x86_64", "amd64"):
        return {}
    flags = _flags(cpuinfo)
    return {"session.x64quantprecision": "1"} if flags and not flags & _DOT_PRODUCTS else {}


def shared_filters(bundle: Bundle, memory_bytes: int | None = None, cpuinfo: Path = CPUINFO) -> frozenset[Filters]:
    """Which quantised filters sessions are to share, although ONNX Runtime would rather pack them anew for each (`quantised.py`).

    All of them where copies for every route would take much of this device's memory, none where they would take little, else those
    that run no slower shared. Convolutions of few channels and positions run slower in any case: a family of small ones shares none.

    memory_bytes: of the device, by default what it has and the cgroups allow
    """
    parts = [part for route in bundle.routes for part in zip(route.segments, route.precisions, strict=True) if part[1] == "int8"]
    copies = sum(bundle.segments[segment].graphs[precision].weight_bytes for segment, precision in parts)
    memory = memory_bytes or _device_bytes()
    if copies > _COPIES_SHARE * memory:
        return EVERY_FILTER
    return frozenset({"spatial"}) if copies > _LITTLE_SHARE * memory and _TILES in _flags(cpuinfo) else frozenset()


@lru_cache
def _flags(cpuinfo: Path) -> frozenset[str]:
    """Instruction sets of an x86 processor; empty where the kernel does not tell."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split())


def _device_bytes() -> int:
    limit = read_limits(Path("/"), "self").limit_bytes
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total if limit is None else min(total, limit)
