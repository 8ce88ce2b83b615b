"""The executor: loading, switching between requests, and what it refuses."""

import hashlib
import json
import subprocess
import sys
import threading
from unittest import mock

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from restnet_runtime import executor as executor_module
from restnet_runtime.bundle import open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import BundleError, CompileError, InputError
from restnet_runtime.executor import Executor, preparation_order
from restnet_runtime.profile import RouteProfile
from restnet_runtime.sessions import SessionSettings, infer, plain_session

ROUTES = ("small", "small[0-1]>large[3-4]", "small[0-1]>large[2-4]", "large")
SETTINGS = SessionSettings(threads=1)
X = np.random.default_rng(4).standard_normal((2, 1, 8, 8)).astype(np.float32)


@pytest.fixture
def empty(family_bundle, cache_root):
    executor = Executor(family_bundle, Compiler.for_bundle(family_bundle, cache_root), SETTINGS)
    yield executor
    executor.close()


def test_before_anything_is_loaded(empty) -> None:
    assert (empty.current, empty.loaded, empty.profile("small")) == (None, (), None)
    with pytest.raises(CompileError, match="no route is loaded yet"):
        empty.run(X)
    with pytest.raises(CompileError, match="the route 'small' is not loaded; loaded are none"):
        empty.switch("small")


def test_the_first_loaded_route_becomes_current(empty) -> None:
    empty.load("large")
    empty.load("small")
    assert empty.current.name == "large"
    assert empty.loaded == ("large", "small")


def test_loading_twice_is_loading_once(empty) -> None:
    assert empty.load("small") is empty.load("small")


def test_answers_carry_their_route(executor, family_bundle) -> None:
    for name in ROUTES:
        answer = executor.run(X, name)
        assert answer.route == family_bundle.route(name)
        assert np.allclose(answer.logits, infer(plain_session(family_bundle, answer.route, SETTINGS), X), rtol=1e-4, atol=1e-5)
        assert answer.latency_ms > 0
    assert executor.run(X).route.name == executor.current.name == "small"


def test_a_switch_changes_the_next_answer(executor) -> None:
    before = executor.run(X)
    executor.switch("large")
    after = executor.run(X)
    assert (before.route.name, after.route.name, executor.current.name) == ("small", "large", "large")
    assert not np.allclose(before.logits, after.logits)


def test_what_is_unknown_or_not_loaded_is_refused(empty) -> None:
    empty.load("small")
    for call in (empty.switch, lambda name: empty.run(X, name)):
        with pytest.raises(CompileError, match="the route 'large' is not loaded; loaded are small"):
            call("large")
        with pytest.raises(BundleError, match="has no route 'huge'"):
            call("huge")
    with pytest.raises(BundleError, match="has no route 'huge'"):
        empty.load("huge")
    assert empty.current.name == "small"


@pytest.mark.parametrize(
    "x",
    [X.astype(np.float64), X[:, :, :4], X[0], np.zeros((2, 3, 8, 8), np.float32), np.float32(1)],
    ids=["float64", "too low", "no batch", "colour", "a number"],
)
def test_an_input_of_another_kind_is_refused(executor, x) -> None:
    with pytest.raises(InputError, match=r"give float32 \[batch, 1, 8, 8\]"):
        executor.run(np.asarray(x))
    executor.run(X)


def test_release(executor) -> None:
    with pytest.raises(CompileError, match="'small' is the current one and cannot be released: switch first"):
        executor.release("small")
    executor.switch("large")
    executor.release("small")
    executor.release("small")
    assert "small" not in executor.loaded
    with pytest.raises(CompileError, match="'small' is not loaded"):
        executor.switch("small")
    executor.load("small")
    assert executor.run(X, "small").route.name == "small"
    assert executor.current.name == "large"


@pytest.mark.usefixtures("none_is_small")
def test_sessions_follow_new_settings_one_by_one_and_requests_go_on(executor) -> None:
    expected = {name: executor.run(X, name).logits for name in ROUTES}
    executor.switch("large")
    assert executor.stale == ()
    executor.settings = SessionSettings(threads=2)
    assert executor.stale == ("large", *ROUTES[:3])  # the current one first
    failures, done = [], threading.Event()

    def ask() -> None:
        while not done.is_set():
            for name in ROUTES:
                if not np.allclose(executor.run(X, name).logits, expected[name], rtol=1e-5, atol=1e-5):
                    failures.append(name)

    thread = threading.Thread(target=ask)
    thread.start()
    while executor.stale:
        executor.reload(executor.stale[0])
        assert executor.current.name == "large"
    done.set()
    thread.join()
    assert failures == []
    assert set(executor.loaded) == set(ROUTES)
    executor.reload("large")
    executor.release("small")
    executor.reload("small")
    assert "small" not in executor.loaded


def test_a_small_route_keeps_to_one_thread(executor) -> None:
    executor.settings = SessionSettings(threads=8)
    assert executor.stale == ()
    assert set(executor.threads.values()) == {1}
    assert executor.profile("small").threads == 1


@pytest.mark.usefixtures("none_is_small")
def test_threads_are_those_of_the_session_that_serves(executor) -> None:
    executor.settings = SessionSettings(threads=2)
    assert executor.threads == dict.fromkeys(executor.loaded, 1)
    executor.reload("small")
    assert executor.threads == {**dict.fromkeys(executor.loaded, 1), "small": 2}
    assert (executor.profile("small").threads, executor.profile("large").threads) == (2, 1)


@pytest.mark.usefixtures("none_is_small")
def test_a_reload_that_fails_leaves_what_serves(executor, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise CompileError("no session today")

    executor.settings = SessionSettings(threads=2)
    monkeypatch.setattr("restnet_runtime.levels.load_session", broken)
    monkeypatch.setattr("restnet_runtime.levels.joined_session", broken)
    with pytest.raises(CompileError, match="no session today"):
        executor.reload("small")
    assert executor.run(X).route.name == "small"
    assert "small" in executor.stale


def test_what_is_weighed_while_requests_run_is_weighed_again_when_none_do(family_bundle, tmp_path) -> None:
    """What other requests take is in the figures: they are used, but not kept for later starts."""
    executor = Executor(family_bundle, Compiler.for_bundle(family_bundle, tmp_path), SETTINGS)
    executor.load("small")
    done, running = threading.Event(), threading.Event()

    def ask() -> None:
        while not done.is_set():
            executor.run(X)
            running.set()

    thread = threading.Thread(target=ask)
    thread.start()
    running.wait(60)
    executor.load("large")
    done.set()
    thread.join()
    profiles = next(tmp_path.rglob("profiles.json"))
    assert executor.profile("large") is not None
    assert "large on 1 threads" not in profiles.read_text()
    executor.refine("large")
    assert "large on 1 threads" in profiles.read_text()


def test_routes_are_run_in_turns_and_a_profile_is_put_right(executor) -> None:
    quotients = executor.compare("large", "small")
    assert len(quotients) > 1
    assert min(quotients) > 0
    assert executor.compare("large", "gone") == []
    before = executor.profile("large")
    executor.correct("large", 4 * before.latency_ms)
    after = executor.profile("large")
    assert after.latency_ms == pytest.approx(4 * before.latency_ms)
    assert after.p95_ms == pytest.approx(4 * before.p95_ms)
    executor.refine("large", quiet=True)
    assert executor.profile("large").latency_ms < after.latency_ms
    executor.correct("gone", 1.0)


SETTLES = """
import sys
from pathlib import Path
import numpy as np
from restnet_runtime import levels
from restnet_runtime.bundle import open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import CompileError
from restnet_runtime.executor import Executor
from restnet_runtime.memory import footprint
from restnet_runtime.sessions import SessionSettings

level, load_session = sys.argv[3], levels.load_session

def load(compiled, settings):
    if level == "plain" or level != compiled.level:
        raise CompileError("not this one")
    return load_session(compiled, settings)

levels.load_session = load
bundle = open_bundle(Path(sys.argv[1]))
executor = Executor(bundle, Compiler.for_bundle(bundle, Path(sys.argv[2])), SessionSettings(threads=1))
executor.load("large")
assert executor.levels == {"large": level}
for batch in (1024, 700):  # 24 channels of 8x8 for 1,024 inputs are 6.3 MB, and a run holds two
    x = np.zeros((batch, 1, 8, 8), np.float32)
    executor.run(x[:1])
    assert not executor.settle(0.0), "nothing to give back"
    alone = footprint().anonymous_bytes
    for _ in range(2):  # what the first run of a size takes is of no use to the next, and not kept
        executor.run(x)
    assert not executor.settle(3600.0), "another may follow"
    held = footprint().anonymous_bytes - alone
    assert held > 5e6, held
    assert executor.settle(0.0)
    left = footprint().anonymous_bytes - alone
    assert left < 1e6, f"{left} of {held} bytes are left"
    assert not executor.settle(0.0)
executor.close()
"""


@pytest.mark.parametrize("level", ["prepacked", "mapped", "plain"])
def test_memory_of_batches_is_given_back_once_none_runs(family_bundle, tmp_path, level) -> None:
    """In a process of its own: in this one other tests have left room in the arena. How a route is held decides what lies there."""
    command = [sys.executable, "-c", SETTLES, str(family_bundle.path), str(tmp_path), level]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_answer_lies_outside_the_arena(executor) -> None:
    for batch in (1, 7, 7):
        assert executor.run(np.zeros((batch, 1, 8, 8), np.float32)).logits.flags.owndata
    turned = np.asfortranarray(np.random.default_rng(0).standard_normal((9, 1, 8, 8)).astype(np.float32))
    first, second = executor.run(turned).logits, executor.run(np.ascontiguousarray(turned)).logits
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)


def test_a_large_run_that_fails_is_not_under_way_any_more(executor, monkeypatch) -> None:
    def fails(*_args, **_options):
        raise MemoryError("no room")

    x = np.zeros((64, 1, 8, 8), np.float32)
    executor.settle(0.0)
    with monkeypatch.context() as patch:
        patch.setattr("restnet_runtime.executor.infer", fails)
        with pytest.raises(MemoryError):
            executor.run(x)
    assert executor._arena.large_bytes == 0
    assert executor.settle(0.0), "it may have left something"
    assert len(executor.run(x).logits) == 64


def test_what_a_run_beside_holds_stays_counted(executor) -> None:
    """One run holds its block while another, the first of its size, ends and lets the arena shrink."""
    x, release, begun = np.zeros((64, 1, 8, 8), np.float32), threading.Event(), threading.Event()
    original = executor_module.infer

    def slow(session, given, **options):
        if len(given) == 64 and not options.get("shrink"):
            begun.set()
            release.wait(10)
        return original(session, given, **options)

    executor.run(x)
    with mock.patch.object(executor_module, "infer", slow):
        beside = threading.Thread(target=executor.run, args=(x,))
        beside.start()
        assert begun.wait(10)
        executor.run(x[:5])
        held = executor._arena.large_bytes
        release.set()
        beside.join()
    assert held == 64 * executor.need(executor.current.name).activation_bytes
    executor.run(x[:6])
    assert executor._arena.large_bytes == 0


def test_close(executor) -> None:
    executor.close()
    assert (executor.current, executor.loaded) == (None, ())
    with pytest.raises(CompileError, match="no route is loaded yet"):
        executor.run(X)


def test_requests_keep_their_route_while_others_switch(executor) -> None:
    """Four threads ask while a fifth switches thousands of times: every answer is that of the route it names."""
    expected = {name: executor.run(X, name).logits for name in ROUTES}
    wrong, seen, done = [], set(), threading.Event()

    def ask() -> None:
        while not done.is_set():
            answer = executor.run(X)
            seen.add(answer.route.name)
            if not np.array_equal(answer.logits, expected[answer.route.name]):
                wrong.append(answer.route.name)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    turns = 0
    while turns < 4000 or seen != set(ROUTES):
        executor.switch(ROUTES[turns % len(ROUTES)])
        turns += 1
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_requests_finish_on_a_route_that_is_released(executor) -> None:
    """Switching away, releasing and loading again under requests loses none of them."""
    failures, done = [], threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                executor.run(X)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        executor.switch("large")
        executor.release("small")
        executor.load("small")
        executor.switch("small")
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.usefixtures("none_is_small")
def test_profiles_are_measured_and_remembered(family_bundle, tmp_path) -> None:
    """A second start does not measure again: it finds what the first one kept."""
    compiler = Compiler.for_bundle(family_bundle, tmp_path)

    def profile_of(settings: SessionSettings, name: str = "large") -> RouteProfile | None:
        executor = Executor(family_bundle, compiler, settings)
        executor.load(name)
        return executor.profile(name)

    first = profile_of(SETTINGS)
    assert isinstance(first, RouteProfile)
    assert 0 < first.latency_ms <= first.p95_ms
    assert first.memory_bytes > 1e6
    file = compiler.cache.path / "profiles.json"
    kept = json.loads(file.read_bytes())
    assert list(kept) == ["large on 1 threads"]
    kept["large on 1 threads"]["latency_ms"] = 123.0
    file.write_text(json.dumps(kept))
    assert profile_of(SETTINGS).latency_ms == 123.0
    assert profile_of(SessionSettings(threads=2)).latency_ms != 123.0
    assert set(json.loads(file.read_bytes())) == {"large on 1 threads", "large on 2 threads"}


def transposed(model: onnx.ModelProto) -> None:
    """ONNX Runtime loads this head and fails when it runs."""
    model.graph.node[0].CopyFrom(helper.make_node("Transpose", ["x"], [model.graph.node[0].output[0]], "bad", perm=[0, 1]))


def five_logits(model: onnx.ModelProto) -> None:
    """A head that answers with more numbers than it declares."""
    model.graph.node[-1].output[0] = "logits"
    model.graph.initializer.append(helper.make_tensor("more", TensorProto.INT64, [4], [0, 0, 0, 2]))
    model.graph.node.append(helper.make_node("Pad", ["logits", "more"], ["y"], "pad"))


@pytest.mark.parametrize(
    ("change", "message"),
    [(transposed, "the route 'small' does not run: "), (five_logits, r"the route 'small' answers \(1, 5\) for 3 classes")],
    ids=["fails when run", "wrong number of classes"],
)
def test_a_graph_that_lies_is_found_out_when_it_is_loaded(own_family, tmp_path, change, message) -> None:
    path, name = own_family(), "segments/small.2.fp32.onnx"
    model = onnx.load_model(path / name)
    change(model)
    (path / name).write_bytes(model.SerializeToString())
    manifest = json.loads((path / "manifest.json").read_bytes())
    data = (path / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    bundle = open_bundle(path)
    executor = Executor(bundle, Compiler.for_bundle(bundle, tmp_path / "cache"), SETTINGS)
    with pytest.raises(CompileError, match=message):
        executor.load("small")
    assert executor.loaded == ()
    executor.load("large")
    assert executor.run(X).route.name == "large"


def test_routes_are_prepared_front_first_and_cheap_first(family_bundle, own_family, family_source) -> None:
    assert preparation_order(family_bundle) == list(ROUTES)
    import dataclasses

    worse = tuple(dataclasses.replace(route, accuracy=0.5 if ">" in route.name else route.accuracy) for route in family_source.routes)
    assert preparation_order(open_bundle(own_family(routes=worse))) == ["small", "large", *ROUTES[1:3]]
