"""Levels: where this ONNX Runtime cannot hold weights in the best way, the next one serves, with the same answers and visibly."""

import numpy as np
import pytest

from restnet_runtime.compile import Compiler
from restnet_runtime.errors import CompileError, RoomError
from restnet_runtime.executor import Executor
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
