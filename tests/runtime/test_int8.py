"""Routes in int8: compiled, switched and shared like any other, and equal to the last bit to a plain session of the same graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from restnet_runtime.bundle import Bundle
from restnet_runtime.cache import Cache
from restnet_runtime.catalog import LINKED
from restnet_runtime.compile import Compiler
from restnet_runtime.executor import Executor
from restnet_runtime.noise import noise
from restnet_runtime.precision import EVERY_FILTER
from restnet_runtime.sessions import SessionSettings, infer, joined_session, load_session, plain_session

SETTINGS = SessionSettings(threads=1)


@pytest.fixture(scope="module")
def compiler(int8_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """One that has sessions share all filters, as where memory is short."""
    return Compiler.for_bundle(int8_bundle, tmp_path_factory.mktemp("cache"), filters=EVERY_FILTER)


def operators(compiler: Compiler, name: str) -> set[str]:
    graph = onnx.load(compiler.compile(compiler.bundle.route(name)).graph, load_external_data=False).graph
    return {node.op_type for node in graph.node}


@pytest.mark.parametrize("batch", [1, 3])
def test_every_route_answers_as_a_plain_session_does(int8_bundle: Bundle, compiler: Compiler, batch: int) -> None:
    x = noise(int8_bundle, batch)
    for route in int8_bundle.routes:
        ours, plain = load_session(compiler.compile(route), SETTINGS), plain_session(int8_bundle, route, SETTINGS)
        if route.precision == "fp32":
            np.testing.assert_allclose(infer(ours, x), infer(plain, x), rtol=1e-4, atol=1e-4)
        else:
            np.testing.assert_array_equal(infer(ours, x), infer(plain, x), route.name)


def test_the_precisions_differ_and_agree(int8_bundle: Bundle, compiler: Compiler) -> None:
    x = noise(int8_bundle, 16)
    outputs = {name: infer(load_session(compiler.compile(int8_bundle.route(name)), SETTINGS), x) for name in ("large", "large@int8")}
    difference = np.abs(outputs["large"] - outputs["large@int8"]).max() / np.abs(outputs["large"]).max()
    assert 0 < difference < 0.5


def test_a_joined_route_is_quantised_inside(compiler: Compiler) -> None:
    found = operators(compiler, "large@int8")
    assert {"QLinearConv", "QuantizeLinear"} <= found
    assert "Conv" not in found
    assert {"Conv", "FusedConv"} & operators(compiler, "large"), "one where filters are laid out anew for x86, the other elsewhere"


def test_a_mixed_route_has_both_kinds(compiler: Compiler) -> None:
    assert {"QLinearConv"} < operators(compiler, "large@int8+fp32[large.0]") & {"QLinearConv", "Conv", "FusedConv"}


def test_filters_lie_in_the_bundle_once_and_packed_once(int8_bundle: Bundle, compiler: Compiler) -> None:
    whole = compiler.compile(int8_bundle.route("large@int8"))
    shared = compiler.compile(int8_bundle.route("small[0-1]>large[2-4]@int8"))
    mixed = compiler.compile(int8_bundle.route("large@int8+fp32[large.0]"))
    filters = {address for address, length, _ in whole.extents if length == 24 * 24 * 9}
    assert filters
    linked = {address for address in filters if address >= LINKED}
    packed = filters - linked | {address for address, length in whole.touched if length > 24 * 24 * 9}
    assert len(linked) == 3, "the int8 filters of three blocks are the bundle's own"
    assert packed
    assert not linked & {address for address, _ in whole.touched}, "a session reads these at load only"
    large = {extent for extent in whole.touched if extent[1] > 1024}
    assert large & shared.touched == {extent for extent in shared.touched if extent in large}
    assert len(large & shared.touched) >= 2, "blocks 2 and 3 in int8 are packed once for both routes"
    assert len(large & mixed.touched) >= 3


def test_a_session_more_holds_no_filters_of_its_own(int8_bundle: Bundle, compiler: Compiler) -> None:
    """Else each would hold them packed: the graph's zero points are inputs with a default, so that ONNX Runtime shares the packing."""
    graph = onnx.load(compiler.compile(int8_bundle.route("large@int8")).graph, load_external_data=False).graph
    given = {value.name for value in graph.input} - {"x"}
    zeros = {node.input[5] for node in graph.node if node.op_type == "QLinearConv"}
    assert zeros == given
    packed = [item.value for tensor in graph.initializer for item in tensor.external_data if item.key.startswith("prepacked_")]
    assert sum(value.startswith("QLinearConv") for value in packed) >= 3


def test_it_switches_between_precisions(int8_bundle: Bundle, compiler: Compiler) -> None:
    executor = Executor(int8_bundle, compiler, SETTINGS)
    x = noise(int8_bundle)
    names = ["large", "large@int8", "small@int8", "large@int8+fp32[large.0]"]
    for name in names:
        executor.load(name)
    alone = {name: executor.run(x, name).logits for name in names}
    for name in [*names, *reversed(names)]:
        executor.switch(name)
        answer = executor.run(x)
        assert answer.route.precision == int8_bundle.route(name).precision
        np.testing.assert_array_equal(answer.logits, alone[name])
    assert set(executor.levels.values()) == {"prepacked"}
    executor.close()


def test_a_session_on_the_joined_graph_answers_the_same(int8_bundle: Bundle, compiler: Compiler) -> None:
    """What providers other than the CPU get."""
    route, x = int8_bundle.route("large@int8"), noise(int8_bundle)
    joined = infer(joined_session(int8_bundle, route, SETTINGS), x)
    np.testing.assert_array_equal(joined, infer(load_session(compiler.compile(route), SETTINGS), x))


def test_the_guess_of_what_a_route_needs_knows_precisions(int8_bundle: Bundle, compiler: Compiler) -> None:
    executor = Executor(int8_bundle, compiler, SETTINGS)
    before = executor.need("large@int8").touched
    executor.load("large")
    assert executor.need("large@int8").touched == before, "its weights are not those of the fp32 twin"
    assert sum(size for _, size in executor.need("small[0-1]>large[2-4]").touched) < sum(
        executor.bundle.segments[name].graphs["fp32"].weight_bytes for name in ("large.2", "large.3", "large.4")
    )
    executor.close()


def test_a_cache_is_found_again(int8_bundle: Bundle, compiler: Compiler) -> None:
    for route in int8_bundle.routes:
        compiler.compile(route)
    again = Compiler.for_bundle(int8_bundle, compiler.cache.path.parent, filters=EVERY_FILTER)
    assert isinstance(again.cache, Cache)
    seen: list[str] = []
    for route in int8_bundle.routes:
        again.compile(route, lambda route: seen.append(route.name))
    assert seen == []


@pytest.mark.parametrize("filters", [(), ("spatial",), ("pointwise",)])
def test_whatever_is_shared_the_answer_is_the_same(int8_bundle: Bundle, compiler: Compiler, tmp_path: Path, filters: tuple) -> None:
    other, x = Compiler.for_bundle(int8_bundle, tmp_path, filters=filters), noise(int8_bundle, 2)
    route = int8_bundle.route("small[0-1]>large[2-4]@int8")
    one, two = compiler.compile(route), other.compile(route)
    assert one.graph_sha256 != two.graph_sha256
    np.testing.assert_array_equal(infer(load_session(one, SETTINGS), x), infer(load_session(two, SETTINGS), x))
    graph = onnx.load(two.graph, load_external_data=False).graph
    assert (len(graph.input) > 1) == bool(filters)


def test_what_is_shared_is_told_to_the_process_that_compiles(int8_bundle: Bundle, tmp_path: Path) -> None:
    compiler = Compiler.for_bundle(int8_bundle, tmp_path, apart=True, filters=("spatial",))
    compiled = compiler.compile(int8_bundle.route("large@int8"))
    compiler.close()
    assert len(onnx.load(compiled.graph, load_external_data=False).graph.input) > 1
    assert compiler.cache.path != Compiler.for_bundle(int8_bundle, tmp_path, filters=()).cache.path
