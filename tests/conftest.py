"""For all tests: property tests do not fail because the machine is busy, and what is `untraced` runs at its own speed."""

import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("restnet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("restnet")


# fmt: off
LONGEST = (
    "pipeline", "broken_off", "cuts", "families", "ranks", "segments", "digits", "onnx_anchors", "templates", "quantise", "precisions",
    "replay", "fuzz", "policy", "bundle_refusals", "fields", "batch_plan",
)
# fmt: on
"""Files, as test_NAME.py, that are handed to the workers first, so that none of them is begun when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Coverage's tracer lets go of a test that is marked so. pytest-cov's own `no_cover` does nothing in a worker of xdist."""
    tracer, of_threads = sys.gettrace(), threading.gettrace()
    if item.get_closest_marker("untraced") is None or not type(tracer).__module__.startswith("coverage"):
        return (yield)
    sys.settrace(None)
    threading.settrace(None)
    try:
        return (yield)
    finally:
        threading.settrace(of_threads)
        sys.settrace(tracer)
        _resumed()


def _resumed() -> None:
    """The tracer goes on where it sees a call: this one, before anything returns."""
