"""Levels: where this ONNX Runtime cannot hold weights in the best way, the next one serves, with the same answers and visibly."""

from pathlib import Path

import numpy as np
import pytest

from restnet_runtime.compile import IMPROVE_TRIES, Compiler, need_bytes
from restnet_runtime.errors import CompileError, RoomError
from restnet_runtime.executor import Executor
from restnet_runtime.loader import Loader
from restnet_runtime.sessions import SessionSettings, infer, load_session, plain_session

SETTINGS = SessionSettings(threads=1)
X = np.random.default_rng(6).standard_normal((3, 1, 8, 8)).astype(np.float32)


def refuse(monkeypatch: pytest.MonkeyPatch, *levels: str) -> None:
    """An ONNX Runtime that loads no compiled route of these levels."""

    def load(compiled, settings):
        if compiled.level in levels:
            raise CompileError(f"no {compiled.level} weights here")
        return load_session(compiled, settings)

    monkeypatch.setattr("restnet_runtime.levels.load_session", load)


@pytest.mark.parametrize(
    ("refused", "level"),
    [((), "prepacked"), (("prepacked",), "mapped"), (("prepacked", "mapped"), "plain")],
    ids=["all", "mapped", "plain"],
)
def test_the_best_level_that_works_serves(family_bundle, tmp_path, monkeypatch, refused, level) -> None:
    refuse(monkeypatch, *refused)
    compiler = Compiler.for_bundle(family_bundle, tmp_path)
    executor = Executor(family_bundle, compiler, SETTINGS)
    for route in family_bundle.routes:
        executor.load(route.name)
        expected = infer(plain_session(family_bundle, route, SETTINGS), X)
        np.testing.assert_allclose(executor.run(X, route.name).logits, expected, rtol=1e-5, atol=1e-5)
    assert set(executor.levels.values()) == {level}
    assert bool(executor.notes) == bool(refused)
    for one in refused:
        assert any(f"the level {one} does not work for small: no {one} weights here" in note for note in executor.notes) == (
            one == refused[-1]
        )
    assert executor.profile("small").memory_bytes > 0
    compiler.close()


def test_weights_go_back_from_the_cache_that_each_level_has(family_bundle, tmp_path, monkeypatch) -> None:
    """Addresses count within one cache: those of a route at a lesser level must not be taken for the current route's."""

    def load(compiled, settings):
        if compiled.name == "large" and compiled.level == "prepacked":
            raise CompileError("not this one")
        return load_session(compiled, settings)

    monkeypatch.setattr("restnet_runtime.levels.load_session", load)
    given: dict[Path, set] = {}
    monkeypatch.setattr("restnet_runtime.executor.hand_back", lambda file, extents, _: len(given.setdefault(file, set(extents))))
    compiler = Compiler.for_bundle(family_bundle, tmp_path)
    executor = Executor(family_bundle, compiler, SETTINGS)
    for name in ("small", "large"):
        executor.load(name)
    executor.switch("small")
    assert executor.levels == {"small": "prepacked", "large": "mapped"}
    executor.hand_back()
    small, large = compiler.cache.get("small"), compiler.lesser().cache.get("large")
    for file, extents in large.located(large.touched).items():
        assert given[file] >= set(extents) - set(small.located(small.touched).get(file, ()))
    for file, extents in small.located(small.touched).items():
        assert not given[file] & set(extents)
    executor.close()
    compiler.close()


def test_what_was_measured_at_one_level_is_not_taken_for_another(family_bundle, tmp_path, monkeypatch) -> None:
    compiler = Compiler.for_bundle(family_bundle, tmp_path)
    Executor(family_bundle, compiler, SETTINGS).load("small")
    refuse(monkeypatch, "prepacked")
    Executor(family_bundle, compiler, SETTINGS).load("small")
    kept = (compiler.cache.path / "profiles.json").read_text()
    assert '"small on 1 threads"' in kept
    assert '"small on 1 threads, mapped"' in kept


def test_without_room_nothing_larger_is_tried(family_bundle, tmp_path) -> None:
    """A cache that may hold almost nothing: the route fails, and no session with weights of its own takes its place."""
    executor = Executor(family_bundle, Compiler.for_bundle(family_bundle, tmp_path, cap_bytes=1), SETTINGS)
    with pytest.raises(RoomError, match="have room for"):
        executor.load("large")
    assert executor.loaded == ()


@pytest.fixture
def cramped(level_sizes, tmp_path):
    """A root of caches, and a size for them that has room for the route `large` as it is and not for its packed weights too."""
    return tmp_path / "cramped", sum(level_sizes) // 2


def test_a_level_lowered_for_want_of_room_says_so_at_every_start(family_bundle, cramped) -> None:
    root, cap_bytes = cramped
    for _ in range(2):
        executor = Executor(family_bundle, Compiler.for_bundle(family_bundle, root, cap_bytes=cap_bytes), SETTINGS)
        executor.load("large")
        assert executor.levels == {"large": "mapped"}
        (note,) = executor.notes
        assert note.startswith(f"large could only be compiled to the level mapped: the caches under {root} have room for ")
        executor.close()


def test_with_room_at_a_later_start_it_is_compiled_anew(family_bundle, cramped) -> None:
    root, cap_bytes = cramped
    route = family_bundle.route("large")
    expected = infer(plain_session(family_bundle, route, SETTINGS), X)
    first = Executor(family_bundle, Compiler.for_bundle(family_bundle, root, cap_bytes=cap_bytes), SETTINGS)
    Loader(first, ["large"]).run()
    assert first.improvable == (), "not at the start that had no room"
    executor = Executor(family_bundle, Compiler.for_bundle(family_bundle, root), SETTINGS)
    available = [need_bytes(route) - 1]
    loader = Loader(executor, ["large"], available=lambda: available[0])
    loader.run()
    loader._look()
    assert (executor.levels, executor.improvable, loader.progress().compiled) == ({"large": "mapped"}, ("large",), 0)
    available[0] += 1
    loader._look()
    assert (executor.levels, executor.improvable, loader.progress().compiled) == ({"large": "prepacked"}, (), 1)
    assert executor.notes == ()
    np.testing.assert_allclose(executor.run(X, "large").logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(first.run(X, "large").logits, expected, rtol=1e-5, atol=1e-5)


def test_it_is_tried_again_a_few_times_and_never_more(family_bundle, cramped, caplog) -> None:
    root, cap_bytes = cramped
    Compiler.for_bundle(family_bundle, root, cap_bytes=cap_bytes).compile(family_bundle.route("large"))
    for start in range(IMPROVE_TRIES + 2):
        executor = Executor(family_bundle, Compiler.for_bundle(family_bundle, root, cap_bytes=cap_bytes), SETTINGS)
        loader = Loader(executor, ["large"])
        loader.run()
        caplog.clear()
        for _ in range(3):
            loader._look()
        tried = start < IMPROVE_TRIES
        assert (loader.progress().failed_compiles, loader.progress().failed) == (int(tried), {})
        assert caplog.text.count("route large stays as it is: the caches under") == tried
        assert executor.levels == {"large": "mapped"}
        assert executor.run(X).logits.shape == (3, 3)
    assert f"(tried again at {IMPROVE_TRIES} later starts)" in executor.notes[0]
