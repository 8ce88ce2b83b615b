"""The shelf: caches under one root stay within their size, and none that a process has open is removed."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from restnet_runtime.bundle import Bundle
from restnet_runtime.cache import Cache
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import CompileError
from restnet_runtime.providers import NAMES, choose_providers
from restnet_runtime.sessions import SessionSettings, infer, load_session, plain_session
from restnet_runtime.shelf import Shelf


def filled(root: Path, name: str, size: int, used_s: float) -> Path:
    """A cache of `size` bytes, last opened that many seconds after the epoch, which nobody has open."""
    cache = Cache(root, {"name": name}, cap_bytes=10**9)
    with cache.locked() as held, held.writer() as writer:
        writer.place(memoryview(np.random.default_rng(size).bytes(size)))
        writer.commit("route", b"graph", [])
    path = cache.path
    del cache, held, writer
    os.utime(path / "in-use", (used_s, used_s))
    return path


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    new, old, middle = (filled(tmp_path, name, 10_000, used_s) for name, used_s in (("new", 300), ("old", 100), ("middle", 200)))
    shelf = Shelf(tmp_path, 25_000)
    assert 30_000 < shelf.used_bytes() < 33_000
    assert shelf.make_room() > 0
    assert (old.exists(), middle.exists(), new.exists()) == (False, True, True)
    assert 10_000 < shelf.make_room(10_000) < 15_000
    assert (middle.exists(), new.exists()) == (False, True)
    assert shelf.make_room(50_000) == 25_000, "what is left is the room, though it is too little"
    assert list(tmp_path.iterdir()) == []


def test_opening_makes_room_and_counts_as_use(tmp_path: Path) -> None:
    first, second = filled(tmp_path, "first", 10_000, 100), filled(tmp_path, "second", 10_000, 200)
    kept = Cache(tmp_path, {"name": "first"}, cap_bytes=15_000)
    assert kept.path == first
    assert first.exists()
    assert not second.exists()


HOLDER = """
import sys
from pathlib import Path
from restnet_runtime.cache import Cache
cache = Cache(Path(sys.argv[1]), {"name": sys.argv[2]})
print("open", flush=True)
sys.stdin.readline()
"""


def test_a_cache_that_a_living_process_has_open_stays(tmp_path: Path) -> None:
    path = filled(tmp_path, "held", 10_000, 100)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), "held"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    shelf = Shelf(tmp_path, 5_000)
    assert shelf.make_room() < 0
    assert path.exists()
    holder.kill()  # no matter how it ends
    holder.communicate()
    assert shelf.make_room() == 5_000
    assert not path.exists()


OPENER = """
import sys, time
from pathlib import Path
from restnet_runtime.cache import Cache
root, end = Path(sys.argv[1]), time.monotonic() + 1.5
turns = 0
while time.monotonic() < end:
    cache = Cache(root, {"name": "both"}, cap_bytes=1 if sys.argv[2] == "prune" else 10**9)
    if sys.argv[2] != "prune":
        with cache.locked() as held, held.writer() as writer:
            writer.place(memoryview(b"x" * 5000))
            made = writer.commit(sys.argv[3], b"graph", [])
        assert cache.get(sys.argv[3]) == made, "removed while it was open"
        del held, writer
    else:
        path = cache.path
        del cache
        Cache(root, {"name": "other"}, cap_bytes=1)
    turns += 1
print(turns)
"""


def test_opening_and_pruning_at_once(tmp_path: Path) -> None:
    """Two processes open and fill a cache again and again that two others would remove whenever it is not open."""
    command = [sys.executable, "-c", OPENER, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, job, f"route-{index}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for index, job in enumerate(("use", "prune") * 2)
    ]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, results
    assert all(int(out) > 1 for out, _ in results)


def test_files_of_others_stay(tmp_path: Path) -> None:
    mine = filled(tmp_path, "mine", 10_000, 100)
    (mine / "notes.txt").write_text("theirs")
    others = {tmp_path / "holiday", tmp_path / ("0" * 32), tmp_path / "0123"}
    for other in others:
        other.mkdir()
        (other / "weights-0.bin").write_bytes(bytes(10_000))
    Shelf(tmp_path, 0).make_room()
    assert all((other / "weights-0.bin").exists() for other in others), "only what this package marked as in use is a cache"
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


def with_engines(cache: Path, size: int) -> Path:
    """As TensorRT leaves them; returns one."""
    built = Path(choose_providers(["tensorrt"], [NAMES["tensorrt"]], cache, 1).options[0]["trt_engine_cache_path"])
    (built / "deeper").mkdir(parents=True)
    for path in (built / "route.engine", built / "deeper" / "route.profile"):
        path.write_bytes(bytes(size))
    return built / "route.engine"


def test_engines_that_a_provider_built_count_and_go_with_their_cache(tmp_path: Path) -> None:
    old, new = filled(tmp_path, "old", 10_000, 100), filled(tmp_path, "new", 10_000, 200)
    shelf = Shelf(tmp_path, 50_000)
    before = shelf.used_bytes()
    with_engines(old, 20_000)
    assert shelf.used_bytes() >= before + 40_000
    assert 30_000 < shelf.make_room() < 40_000
    assert not old.exists(), "with all that was in it"
    assert new.exists()


def test_a_damaged_cache_keeps_its_engines(tmp_path: Path) -> None:
    """They are built from the bundle's graphs, not from what was compiled."""
    cache = Cache(tmp_path, {"name": "damaged"})
    engine = with_engines(cache.path, 1000)
    (cache.path / "cache.json").write_text("not a catalog")
    assert cache.get("route") is None
    assert not (cache.path / "cache.json").exists()
    assert engine.exists()


def test_a_link_to_a_living_bundle_takes_no_room(dense_bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    compiler = Compiler.for_bundle(dense_bundle, root)
    compiler.compile(dense_bundle.route("dense"))
    (link,) = compiler.cache.path.glob("bundle-*.bin")
    with_bundle = Shelf(root).used_bytes()
    dense_bundle.weights.unlink()
    assert Shelf(root).used_bytes() - with_bundle == link.stat().st_size


def test_a_route_for_which_there_is_no_room_is_refused_and_the_others_stay(family_bundle: Bundle, tmp_path: Path) -> None:
    other = filled(tmp_path, "other", 200, 100)
    roomy = Compiler.for_bundle(family_bundle, tmp_path, cap_bytes=10**9)
    roomy.compile(family_bundle.route("small"))
    taken = Shelf(tmp_path).used_bytes()
    compiler = Compiler.for_bundle(family_bundle, tmp_path, cap_bytes=taken)
    before = {path.name: path.stat().st_size for path in compiler.cache.path.iterdir()}
    assert other.exists()
    with pytest.raises(CompileError, match=rf"the caches under {tmp_path} have room for .* more, .* are needed"):
        compiler.compile(family_bundle.route("large"))
    assert not other.exists(), "what nobody uses had to go first"
    after = {path.name: path.stat().st_size for path in compiler.cache.path.iterdir() if not path.name.startswith("bundle-")}
    assert after == before  # beside a link, which takes nothing
    fresh = Compiler.for_bundle(family_bundle, tmp_path, cap_bytes=taken)
    assert fresh.cache.look_up("small") is not None
    Compiler.for_bundle(family_bundle, tmp_path, cap_bytes=10**9).compile(family_bundle.route("large"))


def test_a_root_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    with pytest.raises(FileExistsError):
        Shelf(tmp_path / "dangling").claim("0" * 32)


@pytest.mark.parametrize(
    ("free", "cap"),
    [(10**12, 2 * 10**9), (4 * 10**9, 2 * 10**9), (10**9, (10**9 + 10_000) // 2), (0, 10_000 // 2)],
    ids=["plenty", "just enough", "half of what is left", "full"],
)
def test_the_default_is_what_the_disk_can_spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, cap: int) -> None:
    """Half of what is free and what the caches take already, which they could give back: a cache does not shrink as it fills the disk."""
    filled(tmp_path, "there", 10_000, 100)
    shelf, asked = Shelf(tmp_path), []
    besides = shelf.used_bytes() - 10_000  # the catalog and the graph

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=free)

    monkeypatch.setattr("restnet_runtime.shelf.shutil.disk_usage", usage)
    assert cap <= shelf.cap_bytes <= cap + besides
    assert asked == [tmp_path]
    assert Shelf(tmp_path, 123).cap_bytes == 123, "what is asked for goes before"


def test_a_full_disk_has_the_longest_unused_cache_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = filled(tmp_path, "old", 10_000, 100), filled(tmp_path, "new", 10_000, 200)
    monkeypatch.setattr("restnet_runtime.shelf.shutil.disk_usage", lambda _: SimpleNamespace(free=2000))
    Shelf(tmp_path).make_room()
    assert (old.exists(), new.exists()) == (False, True)


# No file may grow beyond the given bytes: writing fails as on a full disk.
FULL = """
import resource, sys
from pathlib import Path
from restnet_runtime.bundle import open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import CompileError
bundle = open_bundle(sys.argv[1])
compiler = Compiler.for_bundle(bundle, Path(sys.argv[2]))
compiler.compile(bundle.route("small"))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    compiler.compile(bundle.route("large"))
except CompileError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert compiler.cache.look_up("small") is not None
"""


@pytest.mark.parametrize("limit", [1_000, 20_000, 60_000])
def test_a_disk_that_is_full_is_one_error_and_nothing_is_lost(family_bundle: Bundle, tmp_path: Path, limit: int) -> None:
    command = [sys.executable, "-c", FULL, str(family_bundle.path), str(tmp_path / "cache"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the route 'large'" in done.stdout
    compiler = Compiler.for_bundle(family_bundle, tmp_path / "cache")
    assert compiler.cache.look_up("small") is not None
    assert not list(compiler.cache.path.glob("tmp-*")) + list(compiler.cache.path.glob(".*"))
    route = family_bundle.route("large")
    x, settings = np.ones((1, 1, 8, 8), np.float32), SessionSettings(threads=1)
    answer = infer(load_session(compiler.compile(route), settings), x)
    assert np.allclose(answer, infer(plain_session(family_bundle, route, settings), x), rtol=1e-4, atol=1e-5)


def test_a_cache_that_may_only_be_read_serves(family_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image that brings its cache along."""
    route = family_bundle.route("small")
    made = Compiler.for_bundle(family_bundle, tmp_path).compile(route)
    really = os.open

    def refuse(path: Path, flags: int, *rest: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system")
        return really(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    assert Compiler.for_bundle(family_bundle, tmp_path).compile(route) == made
