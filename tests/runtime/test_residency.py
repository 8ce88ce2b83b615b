"""Which routes stay loaded: the definition, and a real process that is held to a memory limit."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st

from restnet_export.writer import RouteSource, SegmentSource
from restnet_runtime.manifest import Anchor
from restnet_runtime.residency import Need, by_value, keep, together
from restnet_runtime.routes import Route

MB = 10**6


def route(name: str, macs: int, on_front: bool = True) -> Route:
    return Route(name, ("a",), ("fp32",), macs, 0, 0, 0.5, on_front)


def test_shared_weights_count_once() -> None:
    first, second = Need(frozenset({(0, 100), (100, 50)}), 7, 1000), Need(frozenset({(0, 100), (200, 30)}), 9, 2000)
    assert together([first]) == 157 + 1000
    assert together([first, second]) == 100 + 50 + 30 + 7 + 9 + 2000  # one arena: the larger of the two runs
    assert together([]) == 0


def test_the_current_route_then_the_way_down_then_its_neighbours() -> None:
    routes = [route("e", 5), route("a", 1), route("c", 3), route("d", 4), route("b", 2, on_front=False)]
    assert by_value(routes, "d") == ["d", "a", "c", "e", "b"]
    assert by_value(routes, None) == ["a", "c", "d", "e", "b"]
    assert by_value(routes, "c", "e") == ["c", "e", "a", "d", "b"]  # what is wanted before the way down, or it would never be loaded


needs = st.dictionaries(
    st.sampled_from("abcdef"),
    st.builds(Need, st.frozensets(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=4), st.integers(0, 30), st.integers(0, 30)),
    min_size=1,
)


@given(needs, st.integers(0, 50), st.integers(1, 300))
def test_what_is_kept_fits_and_the_first_always_stays(needs: dict[str, Need], overhead: int, limit: int) -> None:
    order = sorted(needs)
    kept = keep(order, needs, overhead, limit)
    assert kept[0] == order[0]
    assert kept == [name for name in order if name in kept]
    if len(kept) > 1:
        assert overhead + together(needs[name] for name in kept) <= limit
    assert keep(order, needs, overhead, None) == order


@given(needs, st.integers(0, 50), st.integers(1, 300))
def test_nothing_is_left_out_that_would_have_fitted(needs: dict[str, Need], overhead: int, limit: int) -> None:
    order = sorted(needs)
    kept = keep(order, needs, overhead, limit)
    for name in order:
        if name not in kept:
            earlier = [one for one in kept if one < name]
            assert overhead + together(needs[one] for one in [*earlier, name]) > limit


def gemm(name: str, anchor: str, rng: np.random.Generator, cin: int, cout: int, flatten: bool = False) -> SegmentSource:
    weight = rng.standard_normal((cin, cout)).astype(np.float32) / np.float32(cin**0.5)
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


def four_wide_anchors() -> dict[str, object]:
    """Four networks of 16 MB of weights each that share nothing."""
    rng = np.random.default_rng(0)
    anchors, segments, routes = [], [], []
    for index in range(4):
        name, width = f"wide-{index}", 2000 + 16 * index
        names = tuple(f"{name}.{block}" for block in range(3))
        segments += [
            gemm(names[0], name, rng, 64, width, flatten=True),
            gemm(names[1], name, rng, width, width),
            gemm(names[2], name, rng, width, 3),
        ]
        anchors.append(Anchor(name=name, segments=names))
        routes.append(RouteSource(name, names, 0.5 + index / 10))
    return {"anchors": tuple(anchors), "segments": tuple(segments), "routes": tuple(routes)}


HELD_TO_A_LIMIT = """
import json, sys, time
import numpy as np
from pathlib import Path
from restnet_runtime.budget import Budget
from restnet_runtime.engine import Engine
from restnet_runtime.memory import footprint

def wait_until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit("waited in vain")
        time.sleep(0.02)

x = np.zeros((1, 1, 8, 8), np.float32)
with Engine.open(sys.argv[1], cache_root=Path(sys.argv[2]), threads=1, interval_s=0.05) as engine:
    executor = engine.executor
    engine.loader.join(60)
    loaded = len(executor.loaded)
    for name in executor.loaded:
        executor.run(x, name)
    full = footprint().pss_bytes
    executor.weigh()
    limit = executor.overhead_bytes + 40_000_000
    engine.controller.budget = Budget(memory_bytes=limit)
    wait_until(lambda: set(executor.loaded) == {"wide-0", executor.current.name} and footprint().pss_bytes < limit)
    held, kept, current = footprint().pss_bytes, executor.loaded, executor.current.name
    engine.controller.budget = Budget()
    wait_until(lambda: len(executor.loaded) == 4 and not engine.loader.progress().left_out)
print(json.dumps({"loaded": loaded, "full": full, "limit": limit, "held": held, "kept": kept, "current": current}))
"""


def test_a_memory_budget_unloads_and_room_loads_again(own_family: Callable[..., Path], tmp_path: Path) -> None:
    """The limit decides how many are loaded, and memory really follows; in a process of its own, whose memory is all the engine's."""
    path = own_family(**four_wide_anchors())
    done = subprocess.run([sys.executable, "-c", HELD_TO_A_LIMIT, str(path), str(tmp_path / "cache")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["loaded"] == 4
    assert seen["current"] in seen["kept"]
    assert set(seen["kept"]) <= {"wide-0", seen["current"]}
    assert seen["held"] < seen["limit"]
    assert seen["full"] - seen["held"] > 25 * MB


FIGURES = """
import json, sys
import numpy as np
from pathlib import Path
from restnet_runtime.bundle import open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.executor import Executor, preparation_order
from restnet_runtime.memory import footprint
from restnet_runtime.residency import together
from restnet_runtime.sessions import SessionSettings

bundle = open_bundle(sys.argv[1])
executor = Executor(bundle, Compiler.for_bundle(bundle, Path(sys.argv[2])), SessionSettings(threads=1))
x = np.random.default_rng(0).standard_normal((1, 1, 8, 8)).astype(np.float32)
for name in preparation_order(bundle):
    executor.load(name)
expected = {name: executor.run(x, name).logits.tolist() for name in executor.loaded}
executor.weigh()
full = footprint().pss_bytes
needs = {name: executor.need(name) for name in executor.loaded}
predicted_full = executor.overhead_bytes + together(needs.values())

given = executor.hand_back()
lean = footprint().pss_bytes
again = {name: executor.run(x, name).logits.tolist() for name in executor.loaded}
returned = footprint().pss_bytes

released = []
current = executor.current.name
for name in executor.loaded:
    if name != current:
        before = footprint().pss_bytes
        promised = together(needs[one] for one in executor.loaded) - together(needs[one] for one in executor.loaded if one != name)
        executor.release(name)
        released.append((promised, before - footprint().pss_bytes))
executor.run(x)
alone = {"predicted": executor.profile(current).memory_bytes, "measured": footprint().pss_bytes}
print(json.dumps({"full": full, "predicted_full": predicted_full, "given": given, "lean": lean, "returned": returned,
                  "same": again == expected, "released": released, "alone": alone}))
"""


def test_memory_is_what_was_predicted_and_comes_back_when_promised(own_family: Callable[..., Path], tmp_path: Path) -> None:
    """A process of its own with four networks of 16 MB: predictions, weights handed back and used again, and releases, all by PSS."""
    command = [sys.executable, "-c", FIGURES, str(own_family(**four_wide_anchors())), str(tmp_path / "cache")]
    for _ in range(2):  # the second time from a warm cache, as a device starts
        seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert abs(seen["predicted_full"] / seen["full"] - 1) < 0.15
    assert abs(seen["alone"]["predicted"] / seen["alone"]["measured"] - 1) < 0.15
    assert seen["given"] > 45 * MB  # the weights of three networks
    assert abs((seen["full"] - seen["lean"]) / seen["given"] - 1) < 0.15
    assert seen["same"]
    assert seen["returned"] - seen["lean"] > 40 * MB
    for promised, fell in seen["released"]:
        assert promised > 15 * MB
        assert abs(fell / promised - 1) < 0.15
