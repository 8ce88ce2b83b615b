"""ReStNet Runtime: the best accuracy that a device can afford right now.

    from restnet_runtime import Runtime

    with Runtime("bundle", budget="30ms") as rt:
        print(rt.predict("seven.png").name)

The device side: opens a bundle of stitched routes, compiles them once, and moves each request to the best route that
fits the budget. Imports no torch. The workstation side is the package `restnet_export`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restnet_runtime.async_runtime import AsyncRuntime
    from restnet_runtime.budget import Budget
    from restnet_runtime.pool import Pool
    from restnet_runtime.predictions import Prediction
    from restnet_runtime.runtime import Runtime

__version__ = "0.1.0"
__all__ = ["AsyncRuntime", "Budget", "Pool", "Prediction", "Runtime", "__version__"]

_MODULES = {"AsyncRuntime": "async_runtime", "Budget": "budget", "Pool": "pool", "Prediction": "predictions", "Runtime": "runtime"}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: every module of this package imports this one, and the commands must start quickly."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
