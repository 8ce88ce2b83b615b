"""Limits of the server, and the cores that it may count on."""

import math
import os
from pathlib import Path

import pytest

from restnet_runtime.settings import ServeSettings
from restnet_runtime.threads import usable_cores

TREES = Path(__file__).parents[1] / "data" / "cgroups"


@pytest.mark.parametrize(
    ("tree", "affinity", "expected"),
    [
        ("v1-recorded", 8, 1),  # half a core
        ("v1-container", 8, 2),
        ("v1-container", 1, 1),
        ("v2-service", 8, 2),  # one and a half
        ("v2-container", 8, 1),
        ("v1-flat", 8, 8),  # no quota
        ("v2-outside-namespace", 3, 3),
        ("no-such-tree", 4, 4),
    ],
)
def test_cores_within_affinity_and_quota(monkeypatch: pytest.MonkeyPatch, tree: str, affinity: int, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    assert usable_cores(TREES / tree, 4242) == expected


def test_cores_of_this_process_within_its_affinity() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("name", ["max_body_bytes", "max_pixels", "max_batch", "top_k", "workers", "max_in_flight"])
def test_counts_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        ServeSettings(**{name: 0})


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_bodies_must_be_given_some_time(value: float) -> None:
    with pytest.raises(ValueError, match=r"body_timeout_s=.* must be above 0 and finite"):
        ServeSettings(body_timeout_s=value)


def test_a_body_at_its_limit_must_fit_in_what_may_be_received() -> None:
    with pytest.raises(ValueError, match="max_receiving_bytes=9 must be at least max_body_bytes=10"):
        ServeSettings(max_body_bytes=10, max_receiving_bytes=9)
    assert ServeSettings(max_body_bytes=10, max_receiving_bytes=10).max_receiving_bytes == 10
