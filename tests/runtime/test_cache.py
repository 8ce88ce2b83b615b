"""The compiled cache: shared tensors, damage of every kind, several processes, and processes that are killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restnet_runtime.bundle import Bundle
from restnet_runtime.cache import Cache
from restnet_runtime.catalog import FORMAT, LINKED, DamagedCacheError
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import CompileError
from restnet_runtime.sessions import SessionSettings, infer, load_session, plain_session

SETTINGS = SessionSettings(threads=1)
X = np.random.default_rng(2).standard_normal((2, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(family_bundle: Bundle) -> dict[str, np.ndarray]:
    return {route.name: infer(plain_session(family_bundle, route, SETTINGS), X) for route in family_bundle.routes}


@pytest.fixture
def compiled(family_bundle: Bundle, tmp_path: Path) -> Path:
    """A cache of its own with every route compiled; the directory of its key."""
    compiler = Compiler.for_bundle(family_bundle, tmp_path)
    for route in family_bundle.routes:
        compiler.compile(route)
    return compiler.cache.path


def start(bundle: Bundle, root: Path, expected: dict[str, np.ndarray]) -> list[str]:
    """What a fresh start does: compile or find every route and check its answers; returns what had to be compiled."""
    compiler, made = Compiler.for_bundle(bundle, root), []
    for route in bundle.routes:
        session = load_session(compiler.compile(route, lambda route: made.append(route.name)), SETTINGS)
        assert np.allclose(infer(session, X), expected[route.name], rtol=1e-4, atol=1e-5), route.name
    return made


def test_a_second_start_compiles_nothing(family_bundle, compiled, expected) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in compiled.iterdir()}
    assert start(family_bundle, compiled.parent, expected) == []
    assert {path.name: path.stat().st_mtime_ns for path in compiled.iterdir()} == {
        **before,
        "in-use": (compiled / "in-use").stat().st_mtime_ns,
    }


def test_files_of_a_cache(compiled) -> None:
    names = sorted(path.name.split("-")[0] for path in compiled.iterdir())
    assert names == ["cache.json", "in", "lock", "route", "route", "route", "route", "weights"]


def test_tensors_of_routes_are_stored_once(family_bundle, tmp_path) -> None:
    """`large` has three heavy tensors; both stitched routes run subsets of its blocks and add next to nothing."""
    compiler = Compiler.for_bundle(family_bundle, tmp_path)
    weights_bytes = {}
    for name in ("large", "small[0-1]>large[2-4]", "small[0-1]>large[3-4]"):
        compiler.compile(family_bundle.route(name))
        (file,) = compiler.cache.path.glob("weights-*.bin")
        weights_bytes[name] = file.stat().st_size
    alone, both, three = weights_bytes.values()
    assert alone >= 3 * 24 * 24 * 9 * 4
    assert three - alone < 0.1 * alone
    assert alone <= both <= three


def test_touched_bytes_leave_out_what_is_prepacked(family_bundle, tmp_path) -> None:
    route = Compiler.for_bundle(family_bundle, tmp_path).compile(family_bundle.route("large"))
    assert 3 * 24 * 24 * 9 * 4 <= route.touched_bytes <= sum(length for _, length, _ in route.extents)


def weights_of(path: Path) -> Path:
    (file,) = path.glob("weights-*.bin")
    return file


def flip(path: Path, at: int) -> None:
    """In a copy that takes the place of the file: what is mapped, and what it is a link to, stays whole."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.unlink()
    path.write_bytes(data)


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        document = catalog_of(path)
        change(document)
        data = json.dumps(document).encode()
        (path / "cache.json").write_bytes(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)

    return damage


def catalog_of(path: Path) -> dict:
    return json.loads((path / "cache.json").read_bytes().partition(b"\n")[2])


def in_weights(path: Path) -> None:
    """A flipped byte in the largest thing that every route of `large` reads."""
    document = catalog_of(path)
    tensors = {address: length for address, length, _ in document["tensors"]}
    address = max((one for one in document["routes"]["large"]["extents"] if one < LINKED), key=tensors.__getitem__)
    flip(weights_of(path), address + tensors[address] // 2)


def in_graph(path: Path) -> None:
    graph = path / catalog_of(path)["routes"]["small"]["graph"]
    flip(graph, graph.stat().st_size // 2)


def in_catalog(path: Path) -> None:
    flip(path / "cache.json", (path / "cache.json").stat().st_size // 2)


def outside(path: Path) -> None:
    secret = path.parent / "secret.bin"
    secret.write_bytes(weights_of(path).read_bytes())
    edit(lambda document: document.update(weights="../secret.bin"))(path)


def garbage(data: bytes) -> Callable[[Path], object]:
    return lambda path: (path / "cache.json").write_bytes(data)


def a_directory(path: Path) -> None:
    (path / "cache.json").unlink()
    (path / "cache.json").mkdir()


DAMAGE = {
    "flipped byte in weights": in_weights,
    "flipped byte in a graph": in_graph,
    "flipped byte in the catalog": in_catalog,
    "truncated weights": lambda path: os.truncate(weights_of(path), weights_of(path).stat().st_size // 2),
    "empty weights": lambda path: os.truncate(weights_of(path), 0),
    "weights missing": lambda path: weights_of(path).unlink(),
    "graphs missing": lambda path: [file.unlink() for file in path.glob("route-*.onnx")],
    "not JSON": garbage(b"\0\0\0\0"),
    "empty": garbage(b""),
    "a list": garbage(b"[]"),
    "null": garbage(b"null"),
    "nesting": garbage(b"[" * 100_000),
    "no fields": garbage(b"{}"),
    "a directory": a_directory,
    "foreign key": edit(lambda document: document["key"].update(cpu="another")),
    "newer format": edit(lambda document: document.update(format=FORMAT + 1)),
    "weights elsewhere": outside,
    "absolute weights": edit(lambda document: document.update(weights="/etc/passwd")),
    "graph elsewhere": edit(lambda document: document["routes"]["small"].update(graph="../route.onnx")),
    "name of a number": edit(lambda document: document.update(weights=7)),
    "infinite size": edit(lambda document: document.update(weights_bytes=float("inf"))),
    "extents past the end": edit(lambda document: document["tensors"][0].__setitem__(0, 2**49)),
    "extents of nothing": edit(lambda document: document["routes"]["small"].update(extents=[2**70])),
    "level of nothing": edit(lambda document: document["routes"]["small"].update(level="best")),
    "extents of text": edit(lambda document: document["routes"]["small"].update(extents=["abc"])),
    "route of nothing": edit(lambda document: document["routes"].update(small=None)),
    "graph of another route": edit(lambda document: document["routes"].update(small={**document["routes"]["large"], "graph_sha256": ""})),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_repaired(family_bundle, compiled, expected, damage) -> None:
    """Whatever happened to the files: every start answers rightly, and soon one compiles nothing."""
    damage(compiled)
    made = start(family_bundle, compiled.parent, expected)
    assert made
    start(family_bundle, compiled.parent, expected)  # routes used before the damage was met went with the rest
    assert start(family_bundle, compiled.parent, expected) == []
    assert not (compiled.parent / "route.onnx").exists()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 10), where=st.floats(0, 1, exclude_max=True))
def test_any_other_byte_never_answers_wrongly(family_bundle, compiled, expected, which, where) -> None:
    files = sorted(path for path in compiled.iterdir() if path.suffix in (".json", ".bin", ".onnx"))
    target = files[which % len(files)]
    flip(target, int(where * target.stat().st_size))
    start(family_bundle, compiled.parent, expected)


def test_damaged_tensors_are_not_shared(family_bundle, tmp_path, expected) -> None:
    """A tensor that went bad after one route was compiled must not be taken for the next that has the same."""
    compiler = Compiler.for_bundle(family_bundle, tmp_path)
    compiler.compile(family_bundle.route("large"))
    in_weights(compiler.cache.path)
    name = "small[0-1]>large[2-4]"
    for _ in range(2):
        route = Compiler.for_bundle(family_bundle, tmp_path).compile(family_bundle.route(name))
        assert np.allclose(infer(load_session(route, SETTINGS), X), expected[name], rtol=1e-4, atol=1e-5)


def test_sessions_outlive_a_rebuild(family_bundle, compiled, expected) -> None:
    compiler = Compiler.for_bundle(family_bundle, compiled.parent)
    sessions = {route.name: load_session(compiler.compile(route), SETTINGS) for route in family_bundle.routes}
    old = weights_of(compiled).name
    in_graph(compiled)
    assert start(family_bundle, compiled.parent, expected)
    assert weights_of(compiled).name != old
    for name, session in sessions.items():
        assert np.allclose(infer(session, X), expected[name], rtol=1e-4, atol=1e-5)


def test_a_cache_for_another_device_is_another_directory(tmp_path) -> None:
    one, other = Cache(tmp_path, {"cpu": "a"}), Cache(tmp_path, {"cpu": "b"})
    assert one.path != other.path
    assert one.path.parent == other.path.parent == tmp_path


def test_what_a_killed_process_left_is_removed(family_bundle, tmp_path) -> None:
    compiler = Compiler.for_bundle(family_bundle, tmp_path)
    path = compiler.cache.path
    (path / "tmp-1-abc").mkdir()
    (path / "tmp-1-abc" / "route.bin").write_bytes(b"0" * 100)
    for name in ("weights-0123456789abcdef.bin", "route-0-0.onnx", ".cache.json.1.abc", ".route-0-0.onnx.1.abc"):
        (path / name).write_bytes(b"0" * 100)
    (path / "profiles.json").write_text("{}")
    compiler.compile(family_bundle.routes[0])
    names = sorted(path.name.split("-")[0] for path in path.iterdir())
    assert names == ["cache.json", "in", "lock", "profiles.json", "route", "weights"]


def test_looking_up_changes_nothing(compiled, family_bundle) -> None:
    in_graph(compiled)
    cache = Compiler.for_bundle(family_bundle, compiled.parent).cache
    before = sorted(compiled.iterdir())
    with pytest.raises(DamagedCacheError, match="has changed"):
        cache.look_up("small")
    assert sorted(compiled.iterdir()) == before


def test_a_cache_that_cannot_be_made_is_a_compile_error(family_bundle, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CompileError, match="no cache can be made under"):
        Compiler.for_bundle(family_bundle, tmp_path / "file")
    compiler = Compiler.for_bundle(family_bundle, tmp_path)
    (compiler.cache.path / "lock").mkdir()
    with pytest.raises(CompileError, match="cannot be used for the route 'small'"):
        compiler.compile(family_bundle.route("small"))


# Each process compiles and answers; `slow` makes every placed tensor take a while, so that a kill meets it in the midst.
PROGRAM = """
import sys, time
import numpy as np
from pathlib import Path
from restnet_runtime.bundle import open_bundle
from restnet_runtime.cache_writer import CacheWriter
from restnet_runtime.compile import Compiler
from restnet_runtime.sessions import SessionSettings, infer, load_session

bundle, root, out, slow = open_bundle(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "slow"
if slow:
    place = CacheWriter.place
    def slowly(self, data):
        print("placing", flush=True)
        time.sleep(0.2)
        return place(self, data)
    CacheWriter.place = slowly
compiler = Compiler.for_bundle(bundle, root)
print("ready", flush=True)
sys.stdin.readline()
x = np.load(out + ".x.npy")
answers = {}
made = 0
def count(route):
    global made
    made += 1
for route in bundle.routes:
    answers[route.name] = infer(load_session(compiler.compile(route, count), SessionSettings(threads=1)), x)
np.savez(out, **answers)
print(made, flush=True)
"""


def process(bundle: Bundle, root: Path, out: Path, speed: str = "fast") -> subprocess.Popen:
    np.save(f"{out}.x.npy", X)
    started = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(bundle.path), str(root), str(out), speed],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout.readline() == "ready\n"
    return started


def test_processes_that_start_at_once_share_one_sound_cache(family_bundle, tmp_path, expected) -> None:
    processes = [process(family_bundle, tmp_path / "cache", tmp_path / f"answers-{index}.npz") for index in range(2)]
    for one in processes:
        one.stdin.write("go\n")
        one.stdin.flush()
    made = [int(one.communicate(timeout=60)[0]) for one in processes]
    assert [one.returncode for one in processes] == [0, 0]
    assert sum(made) == len(family_bundle.routes), "every route was compiled once, by one of them"
    for index in range(2):
        with np.load(tmp_path / f"answers-{index}.npz") as answers:
            for name, logits in expected.items():
                assert np.allclose(answers[name], logits, rtol=1e-4, atol=1e-5)
    assert start(family_bundle, tmp_path / "cache", expected) == []


def test_a_process_killed_while_it_compiles_harms_nothing(family_bundle, tmp_path, expected) -> None:
    victim = process(family_bundle, tmp_path / "cache", tmp_path / "answers.npz", "slow")
    victim.stdin.write("go\n")
    victim.stdin.flush()
    placings = [victim.stdout.readline() for _ in range(8)]
    victim.send_signal(signal.SIGKILL)
    assert placings == ["placing\n"] * 8
    victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL
    (path,) = (tmp_path / "cache").iterdir()
    assert list(path.glob("tmp-*")), "it was killed in the midst of a route"
    assert start(family_bundle, tmp_path / "cache", expected)
    assert not list(path.glob("tmp-*"))
    assert len(list(path.glob("weights-*.bin"))) == 1
    assert start(family_bundle, tmp_path / "cache", expected) == []


def test_threads_that_compile_the_same_route_compile_it_once(family_bundle, tmp_path) -> None:
    compiler, made, results = Compiler.for_bundle(family_bundle, tmp_path), [], []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        results.append(compiler.compile(family_bundle.routes[0], made.append))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert results == results[:1] * 4
