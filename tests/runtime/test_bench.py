"""The benchmark: what it says of a real bundle is true."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from restnet_export.writer import BundleSource
from restnet_runtime.bench import Benchmark, neighbours, render, run_benchmark
from restnet_runtime.budget import Budget
from restnet_runtime.engine import Engine
from restnet_runtime.errors import CompileError
from restnet_runtime.machine import describe_machine
from restnet_runtime.profile import RouteProfile
from restnet_runtime.routes import Route

RUNS = 3
MIDDLE = "small[0-1]>large[2-4]"


@pytest.fixture(scope="module")
def engine(family_path: Path, cache_root: Path) -> Iterator[Engine]:
    engine = Engine.open(family_path, cache_root=cache_root, threads=1)
    yield engine
    engine.stop()


def bench_under(engine: Engine, budget: Budget) -> Benchmark:
    return run_benchmark(engine, budget, RUNS)


@pytest.mark.parametrize(
    ("allowed", "cheaper", "dearer"),
    [
        ("small", None, "small[0-1]>large[3-4]"),
        ("small[0-1]>large[3-4]", "small", MIDDLE),
        (MIDDLE, "small[0-1]>large[3-4]", "large"),
        ("large", MIDDLE, None),
    ],
)
def test_the_choice_fits_and_stands_between_its_neighbours(engine: Engine, allowed: str, cheaper: str | None, dearer: str | None) -> None:
    bundle = engine.executor.bundle
    limit = bundle.route(allowed).macs
    result = bench_under(engine, Budget(macs=limit))
    assert result.feasible
    fitting = [route for route in bundle.routes if route.macs <= limit]
    assert result.chosen.name == allowed == max(fitting, key=lambda route: route.accuracy or 0).name
    assert (result.cheaper and result.cheaper.name, result.dearer and result.dearer.name) == (cheaper, dearer)


def test_every_figure_is_what_it_says(engine: Engine) -> None:
    bundle, budget = engine.executor.bundle, Budget(macs=engine.executor.bundle.route(MIDDLE).macs)
    result = bench_under(engine, budget)
    assert (result.bundle, result.digest, result.budget, result.threads) == ("shapes", bundle.digest, budget, 1)
    assert result.resident_routes == len(bundle.routes)
    assert result.failed == {}
    assert result.machine == describe_machine()
    for role in ("cheaper", "chosen", "dearer"):
        figures = getattr(result, role)
        route, profile = bundle.route(figures.name), engine.executor.profile(figures.name)
        assert profile is not None
        assert (figures.role, figures.macs, figures.accuracy) == (role, route.macs, route.accuracy)
        assert figures.predicted_ms == profile.latency_ms
        assert figures.predicted_memory_bytes == pytest.approx(figures.memory_bytes, rel=0.15)
        assert 0 < figures.median_ms <= figures.p95_ms
        assert figures.first_ms > 0
    assert result.pss_bytes > 10_000_000  # an interpreter with ONNX Runtime is never smaller
    assert result.switch_ms > 0
    assert result.load_ms is not None
    assert result.load_ms > 0


def test_a_budget_that_nothing_fits(engine: Engine) -> None:
    result = bench_under(engine, Budget(latency_ms=1e-6))
    assert not result.feasible
    assert result.chosen.name == "small"
    assert "small" in render(result)
    assert result.reason in render(result)


def test_no_budget_chooses_the_most_accurate(engine: Engine) -> None:
    assert bench_under(engine, Budget()).chosen.name == "large"


def test_what_is_printed_and_the_document_tell_the_same(engine: Engine) -> None:
    result = bench_under(engine, Budget(macs=engine.executor.bundle.route(MIDDLE).macs, latency_ms=1000, memory_bytes=2**40))
    document = json.loads(json.dumps(result.document()))
    assert document["budget"] == {"macs": result.budget.macs, "latency_ms": 1000, "memory_bytes": 2**40, "min_accuracy": None}
    assert document["chosen"] == vars(result.chosen)
    lines = render(result).splitlines()
    assert lines[0].startswith(f"bundle shapes, budget {result.budget}, 1 thread")
    assert lines[1] == f"route  {MIDDLE}: {result.reason}"
    (chosen,) = [line.split() for line in lines if line.startswith("chosen")]
    assert chosen[1] == MIDDLE
    assert float(chosen[2]) == pytest.approx(result.chosen.macs / 1e3, abs=1)
    assert chosen[4] == "90.0%"
    assert [line.split()[0] for line in lines[5:8]] == ["cheaper", "chosen", "dearer"]
    assert "loading a route would cost" in lines[-1]


def test_accuracies_may_be_unknown(own_family: Callable[..., Path], family_source: BundleSource, cache_root: Path) -> None:
    path = own_family(routes=tuple(replace(route, accuracy=None) for route in family_source.routes))
    engine = Engine.open(path, cache_root=cache_root, threads=1)
    result = bench_under(engine, Budget())
    engine.stop()
    assert result.chosen.accuracy is None
    assert json.loads(json.dumps(result.document()))["chosen"]["accuracy"] is None
    (chosen,) = [line for line in render(result).splitlines() if line.startswith("chosen")]
    assert " ? " in chosen


def test_a_bundle_of_one_route_claims_no_loading_time(
    own_family: Callable[..., Path], family_source: BundleSource, cache_root: Path
) -> None:
    engine = Engine.open(own_family(routes=family_source.routes[:1]), cache_root=cache_root, threads=1)
    result = bench_under(engine, Budget())
    engine.stop()
    assert (result.chosen.name, result.cheaper, result.dearer, result.resident_routes) == ("small", None, None, 1)
    assert result.load_ms is None
    assert "loading" not in render(result)


def test_no_route_at_all_is_an_error(family_path: Path, tmp_path: Path) -> None:
    path = shutil.copytree(family_path, tmp_path / "bundle")
    engine = Engine.open(path, cache_root=tmp_path / "cache", threads=1)
    for graph in (path / "segments").iterdir():
        graph.write_bytes(b"spoilt since")
    with pytest.raises(CompileError, match=r"no route could be loaded.*small"):
        bench_under(engine, Budget())


def test_a_cache_that_is_gone_is_done_without(family_path: Path, tmp_path: Path) -> None:
    engine = Engine.open(family_path, cache_root=tmp_path / "cache", threads=1)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").touch()
    assert bench_under(engine, Budget()).resident_routes == 4
    assert engine.executor.loaded
    assert set(engine.executor.levels.values()) == {"plain"}
    engine.stop()


def route(name: str, macs: int, on_front: bool) -> Route:
    return Route(name, ("a",), ("fp32",), macs, 1, 1, 0.5, on_front)


def test_neighbours_are_on_the_front_and_cost_something_else() -> None:
    a, b, c, d = route("a", 1, True), route("b", 2, False), route("c", 3, True), route("d", 4, True)
    twin = route("twin", 3, False)
    assert neighbours(c, [d, twin, b, a, c]) == (a, d)
    assert neighbours(twin, [a, b, c, d, twin]) == (a, d)
    assert neighbours(b, [a, b, c, d]) == (a, c)
    assert neighbours(a, [a]) == (None, None)


def profiled(latency_ms: float) -> RouteProfile:
    return RouteProfile(latency_ms, latency_ms, 1000)


def test_between_precisions_neighbours_go_by_measured_latency() -> None:
    small, middle, large = route("small", 1, True), route("middle", 2, True), route("large", 3, True)
    large8 = replace(large, name="large@int8", precisions=("int8",))
    accurate = replace(large, accuracy=0.6)
    profiles = {"small": profiled(4), "middle": profiled(8), "large": profiled(12), "large@int8": profiled(6)}
    routes = [replace(small, accuracy=0.4), middle, accurate, replace(large8, accuracy=0.55)]
    found = neighbours(routes[3], routes, profiles)
    assert tuple(one and one.name for one in found) == ("small", "large"), "the middle is slower and less accurate, for all its few MACs"
    found = neighbours(routes[1], routes, profiles)
    assert tuple(one and one.name for one in found) == ("large@int8", "large"), "one that a limit of MACs may have chosen"
    assert neighbours(routes[3], routes) == (middle, None), "without profiles by MACs"


def test_tables_name_the_precision(int8_path: Path, cache_root: Path) -> None:
    engine = Engine.open(int8_path, cache_root=cache_root, threads=1)
    result = bench_under(engine, Budget())
    engine.stop()
    assert result.resident_routes == 9, "all are compared, the outdone ones too"
    assert (result.chosen.name, result.chosen.precision) == ("large", "fp32")
    shown = [one for one in (result.cheaper, result.chosen, result.dearer) if one is not None]
    lines = render(result).splitlines()
    assert ("precision" in lines[3]) == any(one.precision != "fp32" for one in shown)
    assert {
        one["precision"] for one in json.loads(json.dumps(result.document())).values() if isinstance(one, dict) and "precision" in one
    } == {one.precision for one in shown}
