"""Compiled routes answer as plain sessions of the same joined graph do, at every batch size, and failures are errors of ours."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from restnet_runtime import optimising, packing
from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.catalog import LINKED, CompiledRoute
from restnet_runtime.compile import Compiler, cache_key, cpu_features
from restnet_runtime.errors import BundleError, CompileError
from restnet_runtime.heap import trim_heap
from restnet_runtime.memory import footprint
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


def test_progress_is_one_line_a_route(family_bundle, tmp_path, caplog) -> None:
    caplog.set_level("INFO", "restnet_runtime.compile")
    compiler = Compiler.for_bundle(family_bundle, tmp_path)
    for name in ("small", "large", "small"):
        compiler.compile(family_bundle.route(name))
    lines = [re.sub(r"[0-9.]+ s$", "N s", message) for message in caplog.messages]
    assert lines == ["compiled 1 of 4: small, N s", "compiled 2 of 4: large, N s"]


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


def packed_in(compiled: CompiledRoute) -> dict[str, list[str]]:
    """What each tensor's entry in a compiled graph says of packed blocks."""
    tensors = onnx.load_model(compiled.graph, load_external_data=False).graph.initializer
    entries = {tensor.name: [item.value for item in tensor.external_data if item.key.startswith("prepacked_")] for tensor in tensors}
    return {name: values for name, values in entries.items() if values}


def assert_same_answers(bundle: Bundle, compiled: dict[str, CompiledRoute]) -> None:
    for name, one in compiled.items():
        plain, session = plain_session(bundle, bundle.route(name), SETTINGS), load_session(one, SETTINGS)
        for batch in (1, 3, 8):
            x = np.random.default_rng(batch).standard_normal((batch, *bundle.manifest.input.shape)).astype(np.float32)
            assert np.allclose(infer(session, x), infer(plain, x), rtol=1e-5, atol=1e-4)


def compiled_all(compiler: Compiler) -> dict[str, CompiledRoute]:
    return {route.name: compiler.compile(route) for route in compiler.bundle.routes}


def test_packed_weights_are_made_once_and_shared(dense_bundle, tmp_path) -> None:
    """Routes share what is packed, a session reads only that when it runs, and what it was packed from is not on disk again."""
    compiler = Compiler.for_bundle(dense_bundle, tmp_path / "cache")
    whole, short = compiled_all(compiler).values()
    assert {whole.level, short.level} == {"prepacked"}
    (packed,) = packed_in(whole).values()  # all of it in the entry of one tensor
    assert len(packed) == 3, "ONNX Runtime no longer packs matrices ahead: look again at what is shared"
    assert set(short.touched) < set(whole.touched)
    assert all(address < LINKED for address, _ in whole.touched)
    assert sum(address >= LINKED for address, *_ in whole.extents) == 3, "all that went in lies in the bundle"
    (link,) = compiler.cache.path.glob("bundle-*.bin")
    assert link.samefile(dense_bundle.weights)
    (weights,) = compiler.cache.path.glob("weights-*.bin")
    assert weights.stat().st_size < whole.touched_bytes + 128 * 3 * 4 + 3 * 4096
    assert_same_answers(dense_bundle, {"dense": whole, "dense-short": short})


def test_sessions_find_what_is_packed(dense_bundle_of, tmp_path) -> None:
    """ONNX Runtime takes packed blocks that another tensor's entry names: sessions add no copy of a matrix of 16 MB."""
    bundle = dense_bundle_of(2048, 2048)
    compiled = Compiler.for_bundle(bundle, tmp_path / "cache").compile(bundle.route("dense"))
    sessions, x = [load_session(compiled, SETTINGS)], np.ones((1, 1, 8, 8), np.float32)
    infer(sessions[0], x)
    trim_heap()
    before = footprint().anonymous_bytes
    for _ in range(3):
        sessions.append(load_session(compiled, SETTINGS))
        infer(sessions[-1], x)
    trim_heap()
    assert footprint().anonymous_bytes - before < 16 * 2**20, "three sessions took more memory than one matrix has"


def test_without_a_link_weights_are_copied(dense_bundle, tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    compiler = Compiler.for_bundle(dense_bundle, tmp_path / "cache")
    compiled = compiled_all(compiler)
    assert not list(compiler.cache.path.glob("bundle-*.bin"))
    assert all(address < LINKED for one in compiled.values() for address, *_ in one.extents)
    assert_same_answers(dense_bundle, compiled)


def test_raw_level(dense_bundle, tmp_path) -> None:
    """Asked for weights as they are: nothing is packed, all of them are read from the bundle, and answers are the same."""
    compiler = Compiler.for_bundle(dense_bundle, tmp_path, level="mapped")
    compiled = compiled_all(compiler)
    assert {one.level for one in compiled.values()} == {"mapped"}
    assert all(address >= LINKED for one in compiled.values() for address, _ in one.touched)
    assert not packed_in(compiled["dense"])
    assert_same_answers(dense_bundle, compiled)
    assert Compiler.for_bundle(dense_bundle, tmp_path).cache.path != compiler.cache.path
    with pytest.raises(CompileError, match="the level 'best' is unknown"):
        Compiler.for_bundle(dense_bundle, tmp_path, level="best")


def test_a_version_that_saves_nothing_packed_is_seen(dense_bundle, tmp_path, monkeypatch) -> None:
    save = packing.save_model

    def older(model: bytes, graph: Path, entries: dict[str, str], level: object) -> None:
        save(model, graph, {key: value for key, value in entries.items() if "prepacked" not in key}, level)

    monkeypatch.setattr(packing, "save_model", older)
    compiled = compiled_all(Compiler.for_bundle(dense_bundle, tmp_path))
    assert {one.level for one in compiled.values()} == {"mapped"}
    monkeypatch.undo()
    assert_same_answers(dense_bundle, compiled)


def test_both_ways_of_optimising_give_the_same(family_bundle, cache_root, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(optimising, "_STREAM_FROM_BYTES", 0)
    streamed = compiled_all(Compiler.for_bundle(family_bundle, tmp_path))
    inline = compiled_all(Compiler.for_bundle(family_bundle, cache_root))
    assert_same_answers(family_bundle, streamed)
    for name, one in streamed.items():
        assert sorted(length for _, length, _ in one.extents) == sorted(length for _, length, _ in inline[name].extents)


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


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x40]))


@pytest.mark.parametrize("apart", [False, True])
def test_damaged_weights_are_found_before_anything_is_compiled_from_them(own_family, tmp_path, apart) -> None:
    path = own_family()
    flip(path / "weights.bin", 5000)
    bundle = open_bundle(path, weights_later=True)
    compiler = Compiler.for_bundle(bundle, tmp_path / "cache", apart=apart)
    with pytest.raises(BundleError, match=r"^weights.bin: has SHA-256 ") as caught:
        compiler.compile(bundle.route("large"))
    compiler.close()
    assert caught.value.where == "weights.bin"


def test_damage_of_the_bundle_is_found_by_a_warm_start_too(dense_bundle, tmp_path) -> None:
    """What routes read of the bundle's own weights is checked like the rest."""
    compiled_all(Compiler.for_bundle(dense_bundle, tmp_path / "cache"))
    again = Compiler.for_bundle(open_bundle(dense_bundle.path, weights_later=True), tmp_path / "cache")
    assert compiled_all(again)
    flip(dense_bundle.weights, 4096)
    later = Compiler.for_bundle(open_bundle(dense_bundle.path, weights_later=True), tmp_path / "cache")
    with pytest.raises(BundleError, match=r"^weights.bin: has SHA-256 "):
        later.compile(dense_bundle.route("dense"))


def test_weights_that_vanish_after_opening_are_a_compile_error(own_family, tmp_path) -> None:
    bundle = open_bundle(own_family())
    bundle.weights.unlink()
    with pytest.raises(CompileError, match="cannot compile the route 'large'"):
        Compiler.for_bundle(bundle, tmp_path / "cache").compile(bundle.route("large"))
