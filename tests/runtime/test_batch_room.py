"""How many inputs a run may have within the memory limit: the sum, and a real process that is held to a limit while it batches."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from restnet_export.writer import RouteSource, SegmentSource
from restnet_runtime.batch_room import BatchRoom, inputs_that_fit
from restnet_runtime.manifest import Anchor
from restnet_runtime.residency import Need

MB = 10**6
NOTHING = frozenset[tuple[int, int]]()


@pytest.mark.parametrize(
    ("activation", "arena", "free", "at_once", "inputs"),
    [
        (4, 4, 28, 1, 4),  # two batches of four inputs of four bytes
        (4, 4, 27, 1, 3),
        (4, 4, 20, 2, 2),
        (4, 20, 4, 1, 3),  # what a larger route runs in serves a smaller one too
        (4, 4, 0, 1, 1),
        (4, 4, -100, 1, 1),  # above the limit: single runs go on, and others see to it
        (4, 4, 28, 0, 4),
    ],
)
def test_inputs_share_what_is_free(activation, arena, free, at_once, inputs) -> None:
    assert inputs_that_fit(activation, arena, free, at_once) == inputs


def test_what_is_not_known_limits_nothing() -> None:
    assert inputs_that_fit(0, 10, 0, 1) == sys.maxsize


@given(st.integers(1, 100), st.integers(0, 1000), st.integers(-1000, 10**6), st.integers(1, 4))
def test_the_batches_that_are_allowed_fit(activation, arena, free, at_once) -> None:
    inputs = inputs_that_fit(activation, arena, free, at_once)
    assert inputs >= 1
    if inputs > 1:
        assert inputs * (at_once + 1) * activation <= arena + free
    assert (inputs + 1) * (at_once + 1) * activation > arena + free


class Loaded:
    """Two routes of 10 bytes each beside 100 of the process, with activations of 4 and 8 bytes per input."""

    loaded: tuple[str, ...] = ("small", "large")
    overhead_bytes = 100

    def need(self, name: str) -> Need:
        return Need(NOTHING, 10, {"small": 4, "large": 8}[name])


def test_the_limit_and_what_is_loaded_decide_and_both_may_change() -> None:
    now_s, limit, loaded = [0.0], [None], Loaded()
    room = BatchRoom(loaded, lambda: limit[0], lambda: 1, lambda: now_s[0])
    assert room("large") == sys.maxsize
    limit[0] = 100 + 2 * 10 + 8 + 40
    now_s[0] += 1
    assert (room("large"), room("small")) == (3, 6)
    loaded.loaded = ("small",)
    now_s[0] += 1
    assert (room("small"), room("large")) == ((8 + 40 + 10) // 8, (8 + 40 + 10) // 16)


def wide_runs() -> dict[str, object]:
    """One network of next to no weights, whose runs take 8 MB per input."""
    weight = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    repeats, shape = np.array([1, 16384], np.int64), np.array([0, 16384, 64], np.int64)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Tile", ["flat", "repeats"], ["wide"]),
        helper.make_node("Sigmoid", ["wide"], ["curved"]),
        helper.make_node("Reshape", ["curved", "shape"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["y"]),
    ]
    tensors = {"w": weight, "repeats": repeats, "shape": shape, "axes": np.array([1], np.int64)}
    graph = helper.make_graph(
        nodes,
        "segment",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    segment = SegmentSource("wide.0", "block", "wide", "", (1, 8, 8), (3,), 10**7, weight.size, model)
    return {
        "anchors": (Anchor(name="wide", segments=("wide.0",)),),
        "segments": (segment,),
        "routes": (RouteSource("wide", ("wide.0",), 0.5),),
    }


HELD_TO_A_LIMIT = """
import json, sys, threading
import numpy as np
from pathlib import Path
from restnet_runtime.batch_plan import BatchSettings
from restnet_runtime.budget import Budget
from restnet_runtime.engine import Engine
from restnet_runtime.memory import footprint

settings = BatchSettings("on", 500.0, 8)
with Engine.open(sys.argv[1], cache_root=Path(sys.argv[2]), threads=64, interval_s=60.0, batching=settings) as engine:
    engine.loader.join(60)
    executor = engine.executor
    x = np.random.default_rng(0).standard_normal((16, 1, 1, 8, 8)).astype(np.float32)
    expected = [executor.run(one, "wide").logits for one in x]
    executor.weigh()
    per_input = executor.need("wide").activation_bytes
    base = executor.overhead_bytes + executor.need("wide").session_bytes + per_input
    limit = base + int(sys.argv[3]) * per_input
    engine.controller.budget = Budget(memory_bytes=limit)
    import time; time.sleep(1)  # until it is looked at again
    peaks, sizes, wrong = [0], set(), []

    def ask(number):
        for i in range(8):
            batched = engine.batcher.run(x[(number + i) % 16], "wide")
            sizes.add(batched.size)
            peaks.append(footprint().pss_bytes)  # what the arena took stays in it
            if not np.allclose(batched.answer.logits, expected[(number + i) % 16], rtol=1e-4, atol=1e-5):
                wrong.append(i)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    executor.weigh()
    overhead = executor.overhead_bytes + executor.need("wide").session_bytes + per_input
print(json.dumps({"per_input": per_input, "limit": limit, "peak": max(peaks), "largest": max(sizes), "wrong": wrong,
                  "base": base, "base_after": overhead}))
"""


@pytest.mark.parametrize(("more_inputs", "largest"), [(7, 4), (100, 8)])
def test_batches_keep_within_the_memory_limit(own_family: Callable[..., Path], tmp_path: Path, more_inputs: int, largest: int) -> None:
    """Eight clients in a process of its own. With room for eight inputs batches of four, because there may be two; with more, of eight."""
    command = [sys.executable, "-c", HELD_TO_A_LIMIT, str(own_family(**wide_runs())), str(tmp_path / "cache"), str(more_inputs)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["wrong"] == []
    assert seen["largest"] == largest
    assert 7 * MB < seen["per_input"] < 12 * MB
    assert seen["peak"] < seen["limit"]
    if largest == 8:
        assert seen["peak"] > seen["base"] + 6 * seen["per_input"], "without a limit on them batches would have broken the other one"
    # What batches left in the arena is not taken for the process's own, or they would allow themselves less and less.
    assert abs(seen["base_after"] - seen["base"]) < 2 * seen["per_input"]


def test_who_asks_while_another_looks_for_the_first_time_is_limited_too() -> None:
    class OneRoute:
        loaded = ("a",)
        overhead_bytes = 0

        def need(self, _name: str, /) -> Need:
            return Need(frozenset(), 0, 10)

    found: list[int] = []

    def limit() -> int:
        if not found:
            found.append(0)
            found.append(room("a"))  # as another thread does, in the midst of the look
        return 100

    room = BatchRoom(OneRoute(), limit, lambda: 1, lambda: 0.0)
    assert [room("a"), *found[1:]] == [5, 5]
