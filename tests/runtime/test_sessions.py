"""Sessions: what a second one costs, how a damaged graph is reported, and that threads can share one."""

import dataclasses
import itertools
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from onnx import helper

from restnet_export.writer import RouteSource, SegmentSource
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import CompileError
from restnet_runtime.manifest import Anchor
from restnet_runtime.sessions import SessionSettings, infer, load_session

SETTINGS = SessionSettings(threads=1)


@pytest.mark.parametrize("content", [b"", b"not a graph"], ids=["empty", "garbage"])
def test_a_graph_that_cannot_be_loaded_is_a_compile_error(family_bundle, tmp_path, content) -> None:
    compiled = Compiler.for_bundle(family_bundle, tmp_path).compile(family_bundle.route("small"))
    compiled.graph.write_bytes(content)
    with pytest.raises(CompileError, match=r"cannot load the compiled route 'small'"):
        load_session(compiled, SETTINGS)
    with pytest.raises(CompileError, match=r"cannot load the compiled route 'small'"):
        load_session(dataclasses.replace(compiled, graph=tmp_path / "missing.onnx"), SETTINGS)


def test_one_session_serves_many_threads(family_bundle, cache_root) -> None:
    session = load_session(Compiler.for_bundle(family_bundle, cache_root).compile(family_bundle.route("large")), SETTINGS)
    inputs = np.random.default_rng(3).standard_normal((4, 1, 1, 8, 8)).astype(np.float32)
    expected = [infer(session, x) for x in inputs]
    wrong = []

    def work(index: int) -> None:
        wrong.extend(run for run in range(200) if not np.array_equal(infer(session, inputs[index]), expected[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# In a process of its own, so that what other tests left in the arena does not blur the figures.
MEMORY = """
import gc, json, sys
from pathlib import Path
import numpy as np
from restnet_runtime.bundle import open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.memory import footprint
from restnet_runtime.sessions import SessionSettings, infer, load_session, plain_session

bundle, root, how = open_bundle(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
compiler = Compiler.for_bundle(bundle, root)
x = np.ones((1, *bundle.manifest.input.shape), np.float32)
kept, pss = [], []
for name in ["wide", "narrow", "wide", "wide", "wide"]:
    if how == "plain":
        session = plain_session(bundle, bundle.route(name), SessionSettings())
    else:
        session = load_session(compiler.compile(bundle.route(name)), SessionSettings())
    for _ in range(3):
        infer(session, x)
    kept.append(session)
    gc.collect()
    pss.append(footprint().pss_bytes)
print(json.dumps(pss))
"""


def wide_family() -> dict[str, object]:
    """An anchor whose middle holds 20 MB of weights, (1, 8, 8) -> 2240 -> 2240 -> 3, and a route without the middle."""

    def gemm(name, cin, cout, flatten=False):
        weight = np.random.default_rng(cin).standard_normal((cin, cout)).astype(np.float32) / cin**0.5
        shape = [1, 8, 8] if flatten else [cin]
        nodes = [helper.make_node("Flatten", ["x"], ["flat"])] if flatten else []
        nodes.append(helper.make_node("MatMul", ["flat" if flatten else "x", "w"], ["y"]))
        graph = helper.make_graph(
            nodes,
            "segment",
            [helper.make_tensor_value_info("x", 1, ["batch", *shape])],
            [helper.make_tensor_value_info("y", 1, ["batch", cout])],
            [helper.make_tensor("w", 1, weight.shape, weight.tobytes(), raw=True)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return SegmentSource(name, "block", "wide", "", tuple(shape), (cout,), weight.size, weight.size, model)

    segments = (gemm("wide.0", 64, 2240, flatten=True), gemm("wide.1", 2240, 2240), gemm("wide.2", 2240, 3))
    names = tuple(segment.name for segment in segments)
    return {
        "anchors": (Anchor(name="wide", segments=names),),
        "segments": segments,
        "routes": (RouteSource("wide", names, 0.9), RouteSource("narrow", (names[0], names[2]), 0.5)),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="PSS is read from /proc")
def test_further_sessions_of_a_route_cost_next_to_nothing(own_family, tmp_path) -> None:
    """20 MB of weights: each further compiled session adds less than a tenth of that, each plain session all of it."""
    path = own_family(**wide_family())
    weights_bytes = (path / "weights.bin").stat().st_size
    assert weights_bytes > 20e6

    def added(how: str) -> list[int]:
        command = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / "cache"), how]
        for _ in range(2):  # the second finds the cache warm: compiling leaves memory behind
            pss = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return [after - before for before, after in itertools.pairwise(pss)]

    assert max(added("compiled")) < 0.1 * weights_bytes
    assert min(added("plain")[-2:]) > 0.8 * weights_bytes
