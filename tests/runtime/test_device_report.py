"""What `restnet-bench --report` says of a device, and the rows that it becomes."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from restnet_runtime import __version__, cli
from restnet_runtime.budget import Budget
from restnet_runtime.device_report import DeviceReport, make_report
from restnet_runtime.engine import Engine
from restnet_runtime.redaction import without_paths
from restnet_runtime.report_text import render

RUNS = 5
ROOT = Path(__file__).resolve().parents[2]
CACHE_BYTES = 12_000
"""Room for some of the family's routes, and not for all."""
MIDDLE = "small[0-1]>large[2-4]"


@pytest.fixture(scope="module")
def engine(family_path: Path, cache_root: Path) -> Iterator[Engine]:
    engine = Engine.open(family_path, cache_root=cache_root, threads=1)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def report(engine: Engine) -> DeviceReport:
    return make_report(engine, Budget(), RUNS)


@pytest.fixture
def devices_page() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts/devices_page.py"))


def test_every_route_is_measured(report: DeviceReport, engine: Engine) -> None:
    known = {route.name: route for route in engine.executor.bundle.routes}
    assert [route.name for route in report.routes] == sorted(known, key=lambda name: known[name].macs)
    for route in report.routes:
        assert (route.macs, route.accuracy) == (known[route.name].macs, known[route.name].accuracy)
        assert 0 < route.median_ms <= route.p95_ms
        assert route.predicted_memory_bytes > 0
    assert report.failed == {}
    assert 0 < report.idle_bytes < 1.05 * report.resident_bytes  # memory that is shared comes and goes by itself
    assert report.digest == engine.executor.bundle.digest


def test_budgets_are_a_ladder_of_what_was_measured_and_their_outcomes_were_run(report: DeviceReport) -> None:
    best = report.routes[-1]
    limits = [one.latency_ms or 0.0 for one in report.outcomes]
    assert limits == pytest.approx([share * best.median_ms for share in (1.5, 0.75, 0.5, 0.25)], rel=0.06)
    for one in report.outcomes:
        assert one.route in {route.name for route in report.routes}
        assert one.runs == RUNS
        assert one.met_share is not None
        assert 0 <= one.met_share <= 1
        assert one.median_ms > 0


def test_a_budget_of_ones_own_is_tried_alone(engine: Engine) -> None:
    budget = Budget(macs=engine.executor.bundle.route(MIDDLE).macs)
    (outcome,) = make_report(engine, budget, RUNS).outcomes
    assert (outcome.route, outcome.feasible, outcome.met_share) == (MIDDLE, True, None)


def test_the_command_writes_json_and_text_to_paste(
    family_path: Path, cache_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], devices_page: dict[str, Any]
) -> None:
    prefix = tmp_path / "mine.v1"
    arguments = [str(family_path), "--threads", "1", "--runs", str(RUNS), "--cache", str(cache_root), "--report", str(prefix)]
    assert cli.bench(arguments) == 0
    document, text = json.loads((tmp_path / "mine.v1.json").read_text()), (tmp_path / "mine.v1.md").read_text()
    assert text in capsys.readouterr().out
    assert text.startswith(f"### ReStNet Runtime {__version__} on ")
    assert str(tmp_path) not in json.dumps(document) + text
    assert len(document["routes"]) == 4
    cells = devices_page["row"](document)
    assert len(cells) == len(devices_page["HEADER"])
    assert f"`small` {document['routes'][0]['accuracy']:.1%}: " in cells[4]


def test_what_could_not_be_loaded_is_told_without_the_paths_of_the_device(family_path: Path, tmp_path: Path) -> None:
    cache_root = tmp_path / "of user one" / "cache"
    cache_root.parent.mkdir()
    engine = Engine.open(family_path, cache_root=cache_root, threads=1, cache_bytes=CACHE_BYTES)
    try:
        report = make_report(engine, Budget(), 1)
    finally:
        engine.stop()
    assert 0 < len(report.failed) < 4
    assert all(why.startswith("the caches under ... have room for ") for why in report.failed.values()), report.failed
    text = json.dumps(report.document()) + render(report)
    assert "cannot be loaded: the caches under ... have room for " in text
    assert not any(name in text for name in ("/" + cache_root.parts[1], "user one", str(family_path)))


@pytest.mark.parametrize(
    ("told", "given_away"),
    [
        (
            "the cache /data/my cache/ab12 cannot be used: [Errno 28] No space left on device: '/data/my cache/ab12/route 1.onnx'",
            "the cache .../ab12 cannot be used: [Errno 28] No space left on device: '.../route 1.onnx'",
        ),
        ("build/cache/ab12/x.onnx has changed", ".../x.onnx has changed"),
        (f"Load model from {Path.home()}/models/x.onnx failed", "Load model from .../x.onnx failed"),
        (f"{Path.home()}: is not there", "...: is not there"),
        ('there is no "/usr/of user one/x.bin" and no /tmp/one', 'there is no ".../x.bin" and no ...'),
        # Not of this device: nodes of a graph, the library's sources, addresses, quotients.
        ("node '/layer1/conv/Conv' failed", "node '/layer1/conv/Conv' failed"),
        ("/onnxruntime_src/onnxruntime/core/a.cc:12 failed", "/onnxruntime_src/onnxruntime/core/a.cc:12 failed"),
        ("see https://onnxruntime.ai/docs/x; 1/2 and / or", "see https://onnxruntime.ai/docs/x; 1/2 and / or"),
        ("the route 'small[0-1]>large[2-4]' is none", "the route 'small[0-1]>large[2-4]' is none"),
    ],
)
def test_paths_in_messages(told: str, given_away: str) -> None:
    assert without_paths(told, [Path("/data/my cache"), Path("build/cache")]) == given_away


def test_a_bundle_that_stands_where_the_prefix_goes_is_refused(family_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.bench(["--report", str(family_path)]) == 2
    assert "give the bundle before it" in capsys.readouterr().err


@pytest.mark.parametrize("other", [["--compare", "plain"], ["--explain"], ["--trace", "steps"], ["--json", "x"]])
def test_a_report_is_made_alone(other: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.bench(["--report", str(tmp_path / "x"), *other]) == 2
    assert "--report writes files of its own" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_rows_of_an_emulated_board_show_no_speed(report: DeviceReport, devices_page: dict[str, Any]) -> None:
    document = json.loads(json.dumps(report.document()))
    assert " us" in devices_page["row"](document)[4] or " ms" in devices_page["row"](document)[4]
    document["facts"]["board"] = "linux,dummy-virt"
    cells = devices_page["row"](document)
    assert "emulated" in cells[0]
    assert (cells[4], cells[5], cells[7]) == ("", "", "")


def test_a_report_of_another_format_is_no_row(report: DeviceReport, devices_page: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="format 2"):
        devices_page["row"]({**report.document(), "format": 2})


def test_the_page_has_the_rows_of_the_reports_that_are_there(devices_page: dict[str, Any]) -> None:
    rows = devices_page["table"](sorted((ROOT / "docs/devices").glob("*.json")))
    text = (ROOT / "docs/devices.md").read_text()
    assert text == devices_page["page"](text, rows)
    assert rows.count("\n") > 1


def test_the_text_names_every_route_and_budget(report: DeviceReport) -> None:
    text = render(report)
    assert all(f"| `{route.name}` |" in text for route in report.routes)
    assert all(f"| {one.budget} |" in text for one in report.outcomes)
