"""What is measured of a route, and how it is kept from one start to the next."""

import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest

from restnet_runtime.compile import Compiler
from restnet_runtime.errors import CompileError
from restnet_runtime.executor import Executor
from restnet_runtime.measured import FILE, GUESSED_SESSION_BYTES, Measured, MeasuredStore, measure, run_once
from restnet_runtime.profile import Timing
from restnet_runtime.sessions import SessionSettings, infer, load_session, plain_session

SETTINGS = SessionSettings(threads=1)
X = np.random.default_rng(4).standard_normal((1, 1, 8, 8)).astype(np.float32)
FOUND = Measured(Timing(1.5, 2.0), 3000, 4000)


def test_what_is_kept_is_found_by_route_and_way_of_running(tmp_path: Path) -> None:
    store = MeasuredStore(tmp_path)
    assert store.get("small", "1 threads") is None
    store.put("small", "1 threads", FOUND)
    other = Measured(Timing(9.0, 9.5), 1, 2)
    store.put("small", "2 threads", other)
    for one in (store, MeasuredStore(tmp_path)):
        assert one.get("small", "1 threads") == FOUND
        assert one.get("small", "2 threads") == other
        assert one.get("large", "1 threads") is None


def test_of_two_processes_each_adds_to_what_the_other_has_written(tmp_path: Path) -> None:
    one, other = MeasuredStore(tmp_path), MeasuredStore(tmp_path)
    assert other.get("small", "here") is None  # it has read the file, which was not there
    one.put("small", "here", FOUND)
    other.put("large", "here", FOUND)
    assert MeasuredStore(tmp_path).get("small", "here") == MeasuredStore(tmp_path).get("large", "here") == FOUND


def test_writers_at_once_leave_a_file_that_can_be_read(tmp_path: Path) -> None:
    stores = [MeasuredStore(tmp_path) for _ in range(4)]
    threads = [
        threading.Thread(target=lambda store=store, number=number: [store.put(f"{number}.{i}", "here", FOUND) for i in range(25)])
        for number, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = json.loads((tmp_path / FILE).read_bytes())
    assert all(MeasuredStore(tmp_path).get(key.removesuffix(" on here"), "here") == FOUND for key in kept)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


ENTRY = {"latency_ms": 1.5, "p95_ms": 2.0, "session_bytes": 3000, "activation_bytes": 4000}


def test_the_entry_of_these_tests_is_a_good_one(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"small on here": ENTRY}))
    assert MeasuredStore(tmp_path).get("small", "here") == FOUND


@pytest.mark.parametrize("content", [b"", b"[]", b"[1]", b"null", b"7", b"{", b"[" * 100_000, b"\xff\xfe", b'{"small on here": 5}'])
def test_a_spoilt_file_holds_nothing_and_is_written_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    store = MeasuredStore(tmp_path)
    assert store.get("small", "here") is None
    store.put("large", "here", FOUND)
    assert MeasuredStore(tmp_path).get("large", "here") == FOUND


@pytest.mark.parametrize(
    "change",
    [{key: value} for key in ENTRY for value in (None, "fast", [], -math.inf)]
    + [{"latency_ms": value} for value in (0, -1.0, math.inf, math.nan)]
    + [{"session_bytes": -1}, {"activation_bytes": -1}, {"session_bytes": math.inf}, {"activation_bytes": math.nan}],
)
def test_a_spoilt_entry_holds_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / FILE).write_text(json.dumps({"small on here": {**ENTRY, **change}, "large on here": ENTRY}))
    assert MeasuredStore(tmp_path).get("small", "here") is None
    assert MeasuredStore(tmp_path).get("large", "here") == FOUND


def test_what_cannot_be_kept_is_only_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).mkdir()
    store = MeasuredStore(tmp_path)
    store.put("small", "here", FOUND)
    assert "the profile of small cannot be kept" in caplog.text
    assert store.get("small", "here") == FOUND  # by this process
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_spoilt_profiles_are_measured_anew(family_bundle, tmp_path: Path) -> None:
    compiler = Compiler.for_bundle(family_bundle, tmp_path)
    file = compiler.cache.path / FILE
    file.write_text(json.dumps({"small on 1 threads": {**ENTRY, "latency_ms": "fast"}}))
    executor = Executor(family_bundle, compiler, SETTINGS)
    executor.load("small")
    profile = executor.profile("small")
    assert profile is not None
    assert profile.latency_ms > 0
    assert json.loads(file.read_bytes())["small on 1 threads"]["latency_ms"] == profile.latency_ms
    executor.close()


def test_a_route_that_answers_in_another_shape_is_refused(family_bundle, cache_root: Path) -> None:
    route = family_bundle.route("small")
    session = load_session(Compiler.for_bundle(family_bundle, cache_root).compile(route), SETTINGS)
    run_once(route, session, X, 3)
    with pytest.raises(CompileError, match=r"the route 'small' answers \(1, 3\) for 4 classes"):
        run_once(route, session, X, 4)
    with pytest.raises(CompileError, match="the route 'small' does not run: "):
        run_once(route, session, X[:, :, :4], 3)


def test_a_session_is_weighed_by_another_one(dense_bundle_of, tmp_path: Path) -> None:
    """Weights that are mapped are not the session's own; those of a plain session are."""
    bundle = dense_bundle_of(2048, 2048)
    route = bundle.route("dense")
    compiled = Compiler.for_bundle(bundle, tmp_path / "cache").compile(route)
    session, opened = load_session(compiled, SETTINGS), []

    def again():
        opened.append(1)
        return load_session(compiled, SETTINGS)

    found = measure(route, session, again, X, 3)
    assert opened == [1]
    assert 0 <= found.session_bytes < 8 * 2**20 < route.weight_bytes
    assert 0 < found.timing.latency_ms <= found.timing.p95_ms
    plain = measure(route, plain_session(bundle, route, SETTINGS), lambda: plain_session(bundle, route, SETTINGS), X, 3)
    assert plain.session_bytes > 0.9 * route.weight_bytes


def test_a_session_with_weights_of_its_own_is_not_doubled_to_weigh_it(family_bundle) -> None:
    route = family_bundle.route("large")
    session = plain_session(family_bundle, route, SETTINGS)
    found = measure(route, session, None, X, 3)
    assert (found.session_bytes, found.activation_bytes) == (route.weight_bytes + GUESSED_SESSION_BYTES, 0)
    assert infer(session, X).shape == (1, 3)
