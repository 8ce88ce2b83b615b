"""Growth, measured in real processes."""

import multiprocessing
import os
from pathlib import Path

import pytest

from restnet_runtime.bundle import Bundle
from restnet_runtime.errors import BundleError, CompileError
from restnet_runtime.growth import RESERVE_BYTES, Growth, measure_growth, plain_need_bytes, room_for_plain

PLENTY = 10**12


def names_of(bundle: Bundle) -> list[str]:
    return [route.name for route in bundle.routes]


@pytest.mark.parametrize("kind", ["compiled", "plain"])
def test_every_route_is_loaded_once_more_than_before(family_bundle: Bundle, cache_root: Path, kind) -> None:
    told = []
    names = names_of(family_bundle)
    growth = measure_growth(family_bundle, names, kind, cache_root=cache_root, threads=1, on_route=told.append)
    assert [name for name, _ in growth.after] == told == names
    assert (growth.failed, growth.stopped, growth.why_fewer) == ({}, None, None)
    assert growth.idle_bytes > 10_000_000  # an interpreter with ONNX Runtime is never smaller
    assert growth.pss_bytes == growth.after[-1][1] > growth.idle_bytes
    assert not multiprocessing.active_children()


def test_plain_sessions_end_where_memory_does(family_bundle: Bundle, cache_root: Path) -> None:
    names = names_of(family_bundle)
    left = iter([PLENTY, PLENTY, RESERVE_BYTES])
    growth = measure_growth(family_bundle, names, "plain", cache_root=cache_root, threads=1, available=lambda: next(left))
    assert [name for name, _ in growth.after] == names[:2]
    assert growth.stopped is not None
    assert growth.why_fewer == growth.stopped
    assert names[2] in growth.stopped
    assert "67.1 MB are available" in growth.stopped
    none = measure_growth(family_bundle, names, "plain", cache_root=cache_root, threads=1, available=lambda: 0)
    assert (none.after, none.pss_bytes) == ((), None)


def test_compiled_routes_are_not_held_back(family_bundle: Bundle, cache_root: Path) -> None:
    growth = measure_growth(family_bundle, ["small"], "compiled", cache_root=cache_root, threads=1, available=lambda: 0)
    assert [name for name, _ in growth.after] == ["small"]


def test_a_process_that_the_kernel_ends_is_reported(family_bundle: Bundle, cache_root: Path) -> None:
    def end(name: str) -> None:
        if name == "large":
            (process,) = multiprocessing.active_children()
            process.kill()
            process.join()

    growth = measure_growth(family_bundle, ["small", "large"], "compiled", cache_root=cache_root, threads=1, on_route=end)
    assert [name for name, _ in growth.after] == ["small"]
    assert growth.stopped == "the process that held the routes was ended by SIGKILL (out of memory?) while it loaded large"


def test_the_process_that_grows_is_the_first_that_the_kernel_would_end(family_bundle: Bundle, cache_root: Path) -> None:
    scores = []

    def look(_: str) -> None:
        (process,) = multiprocessing.active_children()
        scores.append(int(Path(f"/proc/{process.pid}/oom_score_adj").read_text()))

    measure_growth(family_bundle, ["small"], "plain", cache_root=cache_root, threads=1, on_route=look)
    assert scores == [1000]
    assert int(Path(f"/proc/{os.getpid()}/oom_score_adj").read_text()) < 1000


def test_a_route_that_fails_is_left_out(family_bundle: Bundle, cache_root: Path) -> None:
    growth = measure_growth(family_bundle, ["missing", "small"], "compiled", cache_root=cache_root, threads=1)
    assert [name for name, _ in growth.after] == ["small"]
    assert "has no route 'missing'" in growth.failed["missing"]
    assert growth.why_fewer == f"missing: {growth.failed['missing']}"
    with pytest.raises(BundleError, match="has no route 'missing'"):
        measure_growth(family_bundle, ["missing"], "plain", cache_root=cache_root, threads=1)
    assert not multiprocessing.active_children()


def test_a_process_that_cannot_begin_is_an_error(family_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CompileError, match="no cache can be made under"):
        measure_growth(family_bundle, ["small"], "compiled", cache_root=tmp_path / "file", threads=1)


def test_room_is_left_to_others(family_bundle: Bundle) -> None:
    route = family_bundle.route("large")
    enough = plain_need_bytes(route) + RESERVE_BYTES
    assert plain_need_bytes(route) > 2 * route.weight_bytes
    assert room_for_plain(route, enough) is None
    assert room_for_plain(route, None) is None
    assert "large" in (room_for_plain(route, enough - 1) or "")
    assert "; 0 B are available" in (room_for_plain(route, -5) or "")


def test_nothing_loaded_has_no_size() -> None:
    assert Growth(1, (), {}, "why").pss_bytes is None
