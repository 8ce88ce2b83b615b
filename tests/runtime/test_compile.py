"""Compiled routes answer as plain sessions of the same joined graph do, at every batch size, and failures are errors of ours."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from restnet_export.writer import RouteSource, SegmentSource
from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.compile import Compiler, cache_key, cpu_features
from restnet_runtime.errors import CompileError
from restnet_runtime.manifest import Anchor
from restnet_runtime.sessions import SessionSettings, infer, load_session, plain_session

ROUTES = ("small", "small[0-1]>large[3-4]", "small[0-1]>large[2-4]", "large")
SETTINGS = SessionSettings(threads=1)


@pytest.fixture(scope="module")
def compiler(family_bundle: Bundle, cache_root: Path) -> Compiler:
    return Compiler.for_bundle(family_bundle, cache_root)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ROUTES)
def test_compiled_route_equals_the_plain_session(family_bundle, compiler, name, threads) -> None:
    route, settings = family_bundle.route(name), SessionSettings(threads)
    plain, compiled = plain_session(family_bundle, route, settings), load_session(compiler.compile(route), settings)
    for batch in (1, 3, 8):
        x = np.random.default_rng(batch).standard_normal((batch, 1, 8, 8)).astype(np.float32)
        expected = infer(plain, x)
        assert expected.shape == (batch, 3)
        assert np.abs(infer(compiled, x) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_routes_differ(family_bundle, compiler) -> None:
    """The parity above would be worth little if all routes answered alike."""
    x = np.ones((1, 1, 8, 8), np.float32)
    answers = [infer(load_session(compiler.compile(family_bundle.route(name)), SETTINGS), x) for name in ROUTES]
    for index, answer in enumerate(answers):
        assert all(np.abs(answer - other).max() > 1e-3 for other in answers[index + 1 :])


def test_on_compile_is_called_only_when_something_is_compiled(family_bundle, tmp_path) -> None:
    made = []
    route = family_bundle.routes[0]
    first = Compiler.for_bundle(family_bundle, tmp_path).compile(route, made.append)
    again = Compiler.for_bundle(family_bundle, tmp_path).compile(route, made.append)
    assert made == [route]
    assert again == first


WARM = """
import sys
from pathlib import Path
from restnet_runtime.bundle import open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.sessions import SessionSettings, load_session

bundle = open_bundle(sys.argv[1])
compiler = Compiler.for_bundle(bundle, Path(sys.argv[2]))
made = []
for route in bundle.routes:
    load_session(compiler.compile(route, lambda route: made.append(route.name)), SessionSettings())
print(len(made), "onnx" in sys.modules, "torch" in sys.modules)
"""


def test_another_process_finds_the_cache_warm_and_needs_no_onnx(family_bundle, compiler, cache_root) -> None:
    for route in family_bundle.routes:
        compiler.compile(route)
    command = [sys.executable, "-c", WARM, str(family_bundle.path), str(cache_root)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0 False False\n"


def test_key_names_all_that_a_compiled_route_depends_on(family_bundle, tmp_path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags : fpu sse2 avx2\n")
    key = cache_key(family_bundle, cpuinfo)
    assert set(key) == {"bundle", "onnxruntime", "build", "machine", "cpu", "providers", "level"}
    assert key["bundle"] == family_bundle.digest
    assert key["onnxruntime"] == ort.__version__
    cpuinfo.write_text("processor : 0\nflags : fpu sse2 avx2 avx512f\n")
    assert {name for name, value in cache_key(family_bundle, cpuinfo).items() if key[name] != value} == {"cpu"}


def test_processor_features(tmp_path) -> None:
    """x86 says `flags`, ARM `Features`; the order and the number of cores do not matter."""
    texts = {
        "x86": "processor\t: 0\nflags\t\t: fpu vme\nprocessor\t: 1\nflags\t\t: vme fpu\n",
        "one core": "processor\t: 0\nflags\t\t: vme fpu\n",
        "pi 4": "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\n",
        "pi 5": "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid asimddp\n",
    }
    digests = {}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        digests[name] = cpu_features(tmp_path / name)
    assert digests["x86"] == digests["one core"]
    assert len(set(digests.values())) == 3
    assert cpu_features(tmp_path / "missing") == "unknown"


def dense_bundle(own_family) -> Bundle:
    """(1, 8, 8) -> 64 -> 3 by matrix products, whose weights ONNX Runtime packs; two routes share both."""
    rng = np.random.default_rng(5)

    def dense(name: str, cin: int, cout: int, flatten: bool = False) -> SegmentSource:
        weight = rng.standard_normal((cin, cout)).astype(np.float32)
        shape = (1, 8, 8) if flatten else (cin,)
        nodes = [helper.make_node("Flatten", ["x"], ["flat"])] if flatten else []
        nodes.append(helper.make_node("MatMul", ["flat" if flatten else "x", "w"], ["y"]))
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", cout])],
            [numpy_helper.from_array(weight, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return SegmentSource(name, "block", "dense", "", shape, (cout,), weight.size, weight.size, model)

    segments = (dense("dense.0", 64, 128, flatten=True), dense("dense.1", 128, 128), dense("dense.2", 128, 3))
    names = tuple(segment.name for segment in segments)
    routes = (RouteSource("dense", names, 0.9), RouteSource("dense-short", (names[0], names[2]), 0.8))
    return open_bundle(own_family(anchors=(Anchor(name="dense", segments=names),), segments=segments, routes=routes))


def test_packed_weights_are_kept_shared_and_right(own_family, tmp_path) -> None:
    """A matrix is in the cache twice, as it was and packed; routes share both, and only the packed one is counted as read."""
    bundle = dense_bundle(own_family)
    compiler = Compiler.for_bundle(bundle, tmp_path / "cache")
    whole, short = (compiler.compile(route) for route in bundle.routes)
    kept = onnx.load_model(whole.graph, load_external_data=False)
    packed = {
        tensor.name: item.value for tensor in kept.graph.initializer for item in tensor.external_data if item.key.startswith("prepacked_")
    }
    assert len(packed) == 3, "ONNX Runtime no longer packs matrices ahead: look again at what is shared"
    assert set(short.extents) < set(whole.extents)
    assert short.touched_bytes < whole.touched_bytes < sum(length for _, length, _ in whole.extents)
    for route, compiled in zip(bundle.routes, (whole, short), strict=True):
        plain, session = plain_session(bundle, route, SETTINGS), load_session(compiled, SETTINGS)
        for batch in (1, 3, 8):
            x = np.random.default_rng(batch).standard_normal((batch, 1, 8, 8)).astype(np.float32)
            assert np.allclose(infer(session, x), infer(plain, x), rtol=1e-5, atol=1e-4)


def with_node(op_type: str, **attributes):
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].CopyFrom(helper.make_node(op_type, ["x"], [model.graph.node[0].output[0]], "bad", **attributes))

    return change


def damaged(own_family, change) -> Bundle:
    """A bundle whose manifest agrees with a graph that ONNX Runtime cannot use."""
    path = own_family()
    file = path / "segments/small.2.fp32.onnx"
    model = onnx.load_model(file)
    change(model)
    file.write_bytes(model.SerializeToString())
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"]["segments/small.2.fp32.onnx"] = {
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "bytes": file.stat().st_size,
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return open_bundle(path)


def test_a_graph_that_onnx_runtime_refuses_is_a_compile_error(own_family, tmp_path) -> None:
    bundle = damaged(own_family, with_node("NoSuchOperator"))
    compiler = Compiler.for_bundle(bundle, tmp_path / "cache")
    with pytest.raises(CompileError, match=r"cannot compile the route 'small'"):
        compiler.compile(bundle.route("small"))
    with pytest.raises(CompileError, match=r"cannot load the route 'small'"):
        plain_session(bundle, bundle.route("small"), SETTINGS)
    assert not list(compiler.cache.path.glob("tmp-*"))
    compiler.compile(bundle.route("large"))  # the others go on


def test_weights_that_vanish_after_opening_are_a_compile_error(own_family, tmp_path) -> None:
    bundle = open_bundle(own_family())
    bundle.weights.unlink()
    with pytest.raises(CompileError, match="cannot compile the route 'large'"):
        Compiler.for_bundle(bundle, tmp_path / "cache").compile(bundle.route("large"))
