"""Precision: which of them a device runs, and what sessions are told so that int8 is computed exactly."""

import platform
from functools import lru_cache
from pathlib import Path

from restnet_runtime.providers import Providers
from restnet_runtime.routes import Route

_EVERYWHERE = frozenset({"fp32", "int8"})
_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni"})


def lacking(route: Route, providers: Providers) -> str | None:
    """Why a route cannot run in its precision here, `None` where it can: half precision is for providers other than the CPU."""
    halves = sorted(set(route.precisions) - _EVERYWHERE)
    if not halves or not providers.cpu_only:
        return None
    return f"its precision is {route.precision}: the CPU provider has no kernels for {' and '.join(halves)}, ask for another provider"


@lru_cache(maxsize=1)
def exact_products(cpuinfo: Path = Path("/proc/cpuinfo"), machine: str = platform.machine()) -> dict[str, str]:
    """Session entries with which products of uint8 and int8 do not saturate; none where they do not anyway.

    x86 without dot-product instructions adds pairs of such products in 16 bits. ONNX Runtime then keeps weights as uint8, whose
    products it computes in 32 bits, which is slower: so it is asked for only where it is needed.
    """
    if machine.lower() not in ("x86_64", "amd64"):
        return {}
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    flags = {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}
    return {} if flags & _DOT_PRODUCTS else {"session.x64quantprecision": "1"}
