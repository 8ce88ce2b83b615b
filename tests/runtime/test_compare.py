"""`restnet-bench --compare plain`: what it says of a real bundle is true, and where it cannot say it says why."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from restnet_export.writer import BundleSource, RouteSource, SegmentSource
from restnet_runtime import cli, compare
from restnet_runtime.budget import Budget
from restnet_runtime.bundle import SHIPPED_BUNDLE, Bundle, open_bundle
from restnet_runtime.compare import compare_plain, output_difference
from restnet_runtime.comparison import Comparison, MemoryComparison, render
from restnet_runtime.errors import CompileError
from restnet_runtime.growth import Growth
from restnet_runtime.machine import describe_machine
from restnet_runtime.manifest import Anchor
from restnet_runtime.sessions import plain_session

RUNS = 10
KEYS = {
    "bundle", "digest", "compared", "budget", "feasible", "chosen", "reason", "routes", "failed", "threads", "runs", "machine",
    "idle_pss_bytes", "pss_bytes", "resident_routes", "memory_reason",
    "plain_idle_pss_bytes", "plain_pss_bytes", "plain_routes", "plain_reason", "memory_factor",
}  # fmt: skip
ROUTE_KEYS = {
    "name", "macs", "accuracy", "on_front", "threads", "latency_ms", "p95_ms", "load_ms", "plain_latency_ms", "plain_p95_ms",
    "plain_load_ms", "ratio", "ratio_low", "ratio_high", "difference", "plain_reason", "precision",
}  # fmt: skip


def compared(bundle: Bundle, cache_root: Path, budget: Budget | None = None, **options) -> Comparison:
    return compare_plain(bundle, budget or Budget(), cache_root=cache_root, threads=1, runs=RUNS, **options)


@pytest.fixture(scope="module")
def result(family_bundle: Bundle, cache_root: Path) -> Comparison:
    return compared(family_bundle, cache_root)


def test_every_route_on_the_front_is_compared(result: Comparison, family_bundle: Bundle) -> None:
    assert [row.name for row in result.routes] == [route.name for route in sorted(family_bundle.routes, key=lambda route: route.macs)]
    for row in result.routes:
        route = family_bundle.route(row.name)
        assert (row.macs, row.accuracy, row.on_front) == (route.macs, route.accuracy, True)
        assert 0 < row.latency_ms <= row.p95_ms
        assert row.plain_latency_ms is not None
        assert row.plain_p95_ms is not None
        assert 0 < row.plain_latency_ms <= row.plain_p95_ms
        assert row.ratio_low is not None
        assert row.ratio is not None
        assert row.ratio_high is not None
        assert 0 < row.ratio_low <= row.ratio <= row.ratio_high
        assert row.plain_load_ms is not None
        assert min(row.load_ms, row.plain_load_ms) > 0
        assert row.difference is not None
        assert row.difference < 1e-5
        assert row.plain_reason is None
    assert (result.bundle, result.digest, result.compared) == ("shapes", family_bundle.digest, "plain")
    assert (result.threads, result.runs, result.failed, result.machine) == (1, RUNS, {}, describe_machine())


def test_memory_is_of_all_routes(result: Comparison) -> None:
    memory = result.memory
    assert memory.resident_routes == memory.plain_routes == 4
    assert memory.pss_bytes is not None
    assert memory.plain_pss_bytes is not None
    assert memory.pss_bytes > memory.idle_pss_bytes > 10_000_000
    assert memory.plain_pss_bytes > memory.plain_idle_pss_bytes > 10_000_000
    added, plain_added = memory.pss_bytes - memory.idle_pss_bytes, memory.plain_pss_bytes - memory.plain_idle_pss_bytes
    assert memory.memory_factor == plain_added / added
    assert (memory.memory_reason, memory.plain_reason) == (None, None)


def test_the_document_has_the_documented_keys(result: Comparison) -> None:
    document = json.loads(json.dumps(result.document()))
    assert set(document) == KEYS
    assert [set(route) for route in document["routes"]] == [ROUTE_KEYS] * 4
    assert document["routes"][0]["latency_ms"] == result.routes[0].latency_ms
    assert document["pss_bytes"] == result.memory.pss_bytes


def test_what_is_printed_tells_the_same(result: Comparison) -> None:
    lines = render(result).splitlines()
    assert lines[0] == "bundle shapes, 1 thread, 4 routes loaded; plain: one ONNX Runtime session for each, 10 runs"
    assert lines[1] == "budget none: large: afresh: large is the most accurate that fits"
    for row, line in zip(result.routes, lines[5:9], strict=True):
        cells = re.split(r"  +", line)
        assert (cells[0], cells[2], cells[3], cells[8]) == (row.name, f"{row.accuracy:.1%}", "1", f"{row.ratio:.3f}")
    assert f"{result.memory.memory_factor:.2f} times ours" in lines[-1]


def test_without_room_for_a_plain_session_ours_are_measured_all_the_same(family_bundle: Bundle, cache_root: Path) -> None:
    steps: list[str] = []
    result = compared(family_bundle, cache_root, available=lambda: 0, on_step=steps.append)
    for row in result.routes:
        assert row.latency_ms > 0
        assert row.load_ms > 0
        assert (row.plain_latency_ms, row.plain_p95_ms, row.plain_load_ms, row.ratio, row.ratio_low) == (None,) * 5
        assert row.plain_reason is not None
        assert row.plain_reason.startswith(f"a plain session of {row.name} may take ")
    assert result.memory.pss_bytes is not None
    assert (result.memory.plain_pss_bytes, result.memory.plain_routes, result.memory.memory_factor) == (None, 0, None)
    assert result.memory.plain_reason == result.routes[0].plain_reason
    printed = render(result)
    assert "plain: not one of the sessions was loaded" in printed
    assert printed.count("not measured: ") == 4  # once for each route, though two figures of the first are missing
    assert steps == [
        *(f"compiling {route.name}" for route in family_bundle.routes),
        *(f"memory with {route.name}" for route in family_bundle.routes),
        *(f"loading {route.name}" for route in family_bundle.routes),
        *(f"timing {route.name}" for route in family_bundle.routes),
    ]


def heavy_family() -> dict[str, object]:
    """Two routes that share a block of 20 MB: (1, 8, 8) -> 2240 -> 2240 -> 3, with a stem each."""

    def gemm(name: str, anchor: str, cin: int, cout: int, flatten: bool = False) -> SegmentSource:
        weight = np.random.default_rng(len(name) + cin).standard_normal((cin, cout)).astype(np.float32) / np.float32(cin**0.5)
        shape = [1, 8, 8] if flatten else [cin]
        nodes = [onnx.helper.make_node("Flatten", ["x"], ["flat"])] if flatten else []
        nodes.append(onnx.helper.make_node("MatMul", ["flat" if flatten else "x", "w"], ["y"]))
        graph = onnx.helper.make_graph(
            nodes,
            "segment",
            [onnx.helper.make_tensor_value_info("x", 1, ["batch", *shape])],
            [onnx.helper.make_tensor_value_info("y", 1, ["batch", cout])],
            [onnx.numpy_helper.from_array(weight, "w")],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        return SegmentSource(name, "block", anchor, "", tuple(shape), (cout,), weight.size, weight.size, model)

    own = (gemm("heavy.0", "heavy", 64, 2240, flatten=True), gemm("heavy.1", "heavy", 2240, 2240), gemm("heavy.2", "heavy", 2240, 3))
    other = (gemm("other.0", "other", 64, 2240, flatten=True), gemm("other.1", "other", 2240, 3))
    return {
        "anchors": (
            Anchor(name="heavy", segments=("heavy.0", "heavy.1", "heavy.2")),
            Anchor(name="other", segments=("other.0", "other.1")),
        ),
        "segments": (*own, *other),
        "routes": (
            RouteSource("heavy", ("heavy.0", "heavy.1", "heavy.2"), 0.9),
            RouteSource("joined", ("other.0", "heavy.1", "heavy.2"), 0.5),
        ),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="PSS is read from /proc")
def test_weights_that_routes_share_count_once_and_plain_sessions_hold_them_each(own_family: Callable[..., Path], tmp_path: Path) -> None:
    bundle = open_bundle(own_family(**heavy_family()))
    result = compared(bundle, tmp_path / "cache")
    memory = result.memory
    assert memory.pss_bytes is not None
    assert memory.plain_pss_bytes is not None
    shared_bytes = 4 * 2240**2
    assert memory.pss_bytes - memory.idle_pss_bytes < 1.8 * shared_bytes
    assert memory.plain_pss_bytes - memory.plain_idle_pss_bytes > 1.9 * shared_bytes
    # The joined route is as dear and less accurate: not on the front, hence not timed, but loaded all the same.
    assert [row.name for row in result.routes] == ["heavy"]
    assert memory.resident_routes == 2


def test_a_route_that_does_not_load_is_reported_and_the_others_are_compared(
    own_family: Callable[..., Path], family_source: BundleSource, tmp_path: Path
) -> None:
    def broken(segment: SegmentSource) -> SegmentSource:
        model = onnx.ModelProto()
        model.CopyFrom(segment.model)
        model.graph.node[0].op_type = "NoSuchOperator"
        return replace(segment, model=model)

    segments = tuple(broken(segment) if segment.name == "small.2" else segment for segment in family_source.segments)
    result = compared(open_bundle(own_family(segments=segments)), tmp_path / "cache")
    assert set(result.failed) == {"small"}
    assert "NoSuchOperator" in result.failed["small"]
    assert [row.name for row in result.routes] == ["small[0-1]>large[3-4]", "small[0-1]>large[2-4]", "large"]
    assert "route small cannot be loaded: " in render(result)
    assert result.memory.resident_routes == result.memory.plain_routes == 3


def test_a_route_that_answers_otherwise_is_not_timed(family_bundle: Bundle, cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer is another network here: what ours is compared with decides, so the mistake is found whichever side it is on."""
    monkeypatch.setattr(compare, "plain_session", lambda bundle, _, settings, *__: plain_session(bundle, bundle.route("large"), settings))
    with pytest.raises(CompileError, match=r"the route 'small' answers otherwise than a plain session of it: by .* of the largest logit"):
        compared(family_bundle, cache_root)


def test_difference_of_outputs() -> None:
    expected = np.array([[1.0, -20.0, 3.0]], np.float32)
    assert output_difference("r", expected, expected) == 0
    assert output_difference("r", expected + np.float32(1e-3), expected) == pytest.approx(5e-5, rel=0.1)
    assert output_difference("r", np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32)) == 0
    for wrong in (expected + np.float32(1e-2), np.full_like(expected, np.nan)):
        with pytest.raises(CompileError, match="the route 'r'"):
            output_difference("r", wrong, expected)


def test_the_factor_is_of_the_same_routes() -> None:
    ours = Growth(100, (("a", 110), ("b", 120), ("c", 130)), {}, None)
    assert MemoryComparison.of(ours, Growth(200, (("a", 230), ("b", 260)), {}, "full")).memory_factor == 60 / 20
    assert MemoryComparison.of(ours, Growth(200, (("a", 230), ("c", 260)), {"b": "no"}, None)).memory_factor == 30 / 10
    assert MemoryComparison.of(ours, Growth(200, (), {}, "full")).memory_factor is None


@pytest.fixture
def command(family_path: Path, cache_root: Path) -> list[str]:
    return [str(family_path), "--compare", "plain", "--runs", "1", "--threads", "1", "--cache", str(cache_root)]


def test_command_on_the_digits(tmp_path: Path) -> None:
    code = "import sys; from restnet_runtime.cli import bench; sys.exit(bench())"
    options = ["--compare", "plain", "--budget", "600kFLOPs", "--runs", "5", "--threads", "2"]
    places = ["--cache", str(tmp_path / "cache"), "--json", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, "-c", code, *options, *places], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads((tmp_path / "out.json").read_text())
    assert (document["bundle"], document["feasible"], document["chosen"]) == ("digits", True, "cnn-l[0-1]>cnn-s[2-3]")
    digits = open_bundle(SHIPPED_BUNDLE)
    front = {route.name for route in digits.routes if route.on_front}
    assert {route["name"] for route in document["routes"]} == front
    assert {document["threads"], *(route["threads"] for route in document["routes"])} == {1}, "the digits are small, whatever is asked for"
    assert "bundle digits, 1 thread, 7 routes loaded" in done.stdout
    assert document["resident_routes"] == document["plain_routes"] == len(digits.routes)
    assert all(line in done.stdout for line in ("memory (PSS) of a process with 7 routes: ", *(f"\n{name} " for name in front)))


def test_command_says_by_its_exit_status_that_nothing_fits(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.bench([*command, "--budget", "1MACs"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[1].startswith("budget 1 MACs: small: ")
    assert err == ""


def test_a_file_that_cannot_be_written_costs_no_measuring(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "compare_plain", lambda *_, **__: pytest.fail("measured"))
    target = tmp_path / "missing" / "out.json"
    assert cli.bench([*command, "--json", str(target)]) == 2
    assert capsys.readouterr().err == f"restnet-bench: [Errno 2] No such file or directory: '{target}'\n"


@pytest.mark.parametrize("older", [None, "{}"])
def test_a_comparison_that_fails_leaves_the_file_as_it_was(
    own_family, cache_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], older: str | None
) -> None:
    path, target = own_family(), tmp_path / "out.json"
    (path / "weights.bin").write_bytes(b"\0" * (path / "weights.bin").stat().st_size)
    if older is not None:
        target.write_text(older)
    assert cli.bench([str(path), "--compare", "plain", "--cache", str(cache_root), "--json", str(target)]) == 2
    assert "weights.bin: has SHA-256" in capsys.readouterr().err
    assert (target.read_text() if target.exists() else None) == older


def test_another_peer_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.bench(["--compare", "torch"])
    assert ended.value.code == 2
    assert "argument --compare: invalid choice: 'torch'" in capsys.readouterr().err


def test_routes_of_both_precisions(int8_bundle: Bundle, tmp_path: Path) -> None:
    """Quantised ones answer as plain sessions do to the last bit, and the table says which they are."""
    result = compared(int8_bundle, tmp_path)
    by_name = {row.name: row for row in result.routes}
    assert set(by_name) == {route.name for route in int8_bundle.routes if route.on_front}
    assert {row.precision for row in result.routes} == {"fp32", "int8", "fp32+int8"}
    assert all(row.difference == 0 for row in result.routes if row.precision != "fp32")
    lines = render(result).splitlines()
    assert lines[3].split()[:3] == ["route", "precision", "cost"]
    assert {line.split()[1] for line in lines if line.startswith("large@int8 ")} == {"int8"}
