"""Benchmarks count what they claim: here, what needs no measuring."""

import importlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from restnet_runtime.bundle import SHIPPED_BUNDLE, open_bundle

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from imported("small_memory", monkeypatch)


@pytest.fixture
def int8_elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from imported("int8_elsewhere", monkeypatch)


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module(name)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@contextmanager
def answering(routes: list[str]) -> Iterator[str]:
    """The address of a server whose answers are by these routes, one after the other."""
    left = iter(routes)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that the class looks for
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"route": next(left)}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("routes", "switches"), [(["a"] * 4, 0), (["a", "b", "b", "a"], 2), (["a"], 0)])
def test_a_switch_is_an_answer_by_another_route(small_memory: ModuleType, routes: list[str], switches: int) -> None:
    with answering(routes) as url:
        client = small_memory.Client(url, open_bundle(SHIPPED_BUNDLE))
        for _ in routes:
            client.ask()
    assert (client.answers, client.failed, client.switches, client.routes) == (len(routes), 0, switches, set(routes))


def test_without_a_switch_nothing_is_decided(small_memory: ModuleType) -> None:
    held = {"killed": False, "alive": True, "ready_s": 1.0, "answers": 9, "failed": 0, "switches": 3, "routes_served": ["a", "b"]}
    assert small_memory.met(held, 5) is True
    assert small_memory.met(held, 4) is None
    assert small_memory.met({**held, "switches": 0, "routes_served": ["a"]}, 5) is None
    assert small_memory.met({**held, "switches": 0, "routes_served": ["a"], "failed": 1}, 5) is False
    assert "3 switches among 2 routes" in small_memory.figure(held, 5)


def test_the_bundle_served_in_little_memory_lets_costs_decide(small_memory: ModuleType, tmp_path: Path) -> None:
    bundle = open_bundle(shutil.copytree(SHIPPED_BUNDLE, tmp_path / "scored"))  # links do not reach to another file system
    before = (bundle.path / "manifest.json").read_bytes()
    served = small_memory.unscored(bundle, tmp_path / "served")
    assert {route.accuracy for route in served.routes} == {None}
    assert [route.macs for route in served.routes] == [route.macs for route in bundle.routes]
    assert (bundle.path / "manifest.json").read_bytes() == before


def test_answers_of_two_machines_are_compared_image_by_image(int8_elsewhere: ModuleType, tmp_path: Path) -> None:
    bundle, rng = open_bundle(SHIPPED_BUNDLE), np.random.default_rng(0)
    side = bundle.manifest.input.shape[1]
    images = tmp_path / "images.npz"
    np.savez(images, x=rng.integers(0, 256, (20, side, side), dtype=np.uint8), y=rng.integers(0, 10, 20))
    names = [route.name for route in bundle.routes[:2]]
    script = BENCHMARKS.parent / "scripts" / "score_check.py"
    command = [sys.executable, str(script), str(bundle.path), str(images), "--within", "1", "--routes", *names]
    here = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (here["images"], [row["route"] for row in here["routes"]]) == (20, names)
    same = int8_elsewhere.compared(here, here)
    assert [(row["differing"], row["here"] == row["there"]) for row in same] == [(0, True)] * 2

    there = json.loads(json.dumps(here))
    answers = there["routes"][1]["answers"].split()
    answers[3] = str((int(answers[3]) + 1) % 10)
    there["routes"][1]["answers"] = " ".join(answers)
    assert [row["differing"] for row in int8_elsewhere.compared(here, there)] == [0, 1]
    del there["routes"][0]
    with pytest.raises(ValueError, match="not of the same routes"):
        int8_elsewhere.compared(here, there)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from imported("squeeze_report", monkeypatch)


def course_of(report: ModuleType, late: list[tuple[float, float]], failed: tuple[float, ...] = ()) -> object:
    """Ten requests a second for 20 s that take 10 ms on `best`, and from 4 s on 100 ms on `small` where it is said: in [begin, end)."""

    def asked(place: int) -> object:
        at_s = place / 10
        slow = any(begin <= at_s < end for begin, end in late)
        status = 503 if at_s in failed else 200
        return report.Asked(at_s, 100.0 if slow else 10.0, status, "small" if slow else "best")

    phases = [
        report.Phase("peace", 0, 4, True, 0),
        report.Phase("0.5 cores", 4, 12, True, 0),
        report.Phase("2 cores again", 12, 20, True, 0),
    ]
    samples = [report.Sample(at_s / 2, 100 + at_s, None, 50, 0.0) for at_s in range(40)]
    return report.Course("restnet", [asked(place) for place in range(200)], phases, samples, {}, "", {"best": 0.9, "small": 0.7})


@pytest.mark.parametrize(
    ("late", "seconds"),
    [
        ([], 0.0),
        ([(4.0, 5.0)], 1.8),  # the window of a second is free of them a second after the last, at 4.9
        ([(4.0, 4.5), (5.5, 6.0)], 2.8),  # calm for less than a second between
        ([(4.0, 4.5), (9.0, 9.5)], 1.3),  # another squeeze of its own
        ([(4.0, 12.0)], None),
    ],
)
def test_inside_again_is_when_a_window_is_calm_and_stays_so(
    report: ModuleType, late: list[tuple[float, float]], seconds: float | None
) -> None:
    course = course_of(report, late)
    found = report.inside_again_s(course, course.phases[1], 50.0)
    assert found == (None if seconds is None else pytest.approx(seconds, abs=0.05))


def test_a_phase_in_figures(report: ModuleType) -> None:
    course = course_of(report, [(4.0, 5.0), (12.0, 13.0)], failed=(6.0,))
    assert report.best_route(course) == "best"
    squeezed, again = (report.row_of(course, phase, 50.0, "best") for phase in course.phases[1:])
    assert (squeezed["requests"], squeezed["failed"], squeezed["late"], squeezed["switches"]) == (80, 1, 10, 1)
    assert squeezed["accuracy_mean"] == pytest.approx((10 * 0.7 + 69 * 0.9) / 79)
    assert squeezed["accuracy_in_time"] == pytest.approx(69 * 0.9 / 80)
    assert squeezed["used_bytes"] == 123
    assert again["up_again_s"] == pytest.approx(1.0)
    course.accuracies["better"] = 0.95
    assert report.row_of(course, course.phases[1], 50.0, "better")["up_again_s"] is None
