"""The compile worker: a real process that compiles, gives way, fails as the compiler does, and never outlives its use."""

import fcntl
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.catalog import Shortage
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import BundleError, CompileError, KilledError, StoppedError
from restnet_runtime.sessions import SessionSettings, infer, load_session, plain_session
from restnet_runtime.worker import CompileWorker, Job

SETTINGS = SessionSettings(threads=1)


@pytest.fixture
def compiler(family_bundle: Bundle, tmp_path: Path) -> Iterator[Compiler]:
    compiler = Compiler.for_bundle(family_bundle, tmp_path / "cache", apart=True)
    yield compiler
    compiler.close()


def until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def worker_of(compiler: Compiler) -> CompileWorker:
    assert compiler.worker is not None
    return compiler.worker


def gone(pid: int) -> bool:
    """Ended and waited for: not even a zombie is left."""
    return not psutil.pid_exists(pid)


@contextmanager
def stuck(compiler: Compiler, name: str) -> Iterator[tuple[psutil.Process, list[Exception]]]:
    """A worker in the midst of a compile: it waits for the cache's lock, which is held until the end of the block."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            compiler.compile(compiler.bundle.route(name))
        except Exception as error:
            errors.append(error)

    with (compiler.cache.path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=run)
        thread.start()
        until(lambda: worker_of(compiler).pid is not None)
        process = psutil.Process(worker_of(compiler).pid)
        until(lambda: any(file.path == lock.name for file in process.open_files()))
        yield process, errors
    thread.join()


def test_routes_are_compiled_by_one_process_that_is_not_this_one(compiler: Compiler) -> None:
    made, pids = [], set()
    for route in compiler.bundle.routes:
        compiled = compiler.compile(route, made.append)
        pids.add(worker_of(compiler).pid)
        x = np.ones((2, 1, 8, 8), np.float32)
        expected = infer(plain_session(compiler.bundle, route, SETTINGS), x)
        assert np.allclose(infer(load_session(compiled, SETTINGS), x), expected, rtol=1e-4, atol=1e-5)
    assert made == list(compiler.bundle.routes)
    (pid,) = pids
    assert pid not in (None, os.getpid())
    compiler.close()
    assert gone(pid)


def test_what_is_cached_needs_no_process(family_bundle: Bundle, cache_root: Path) -> None:
    Compiler.for_bundle(family_bundle, cache_root).compile(family_bundle.routes[0])
    compiler, made = Compiler.for_bundle(family_bundle, cache_root, apart=True), []
    compiler.compile(family_bundle.routes[0], made.append)
    assert worker_of(compiler).pid is None
    assert not made


PARENT = """
import os, sys, time
from pathlib import Path
from restnet_runtime.bundle import open_bundle
from restnet_runtime.compile import Compiler

bundle = open_bundle(sys.argv[1])
compiler = Compiler.for_bundle(bundle, Path(sys.argv[2]), apart=True)
compiler.compile(bundle.routes[0])
print("onnx" in sys.modules, compiler.worker.pid, flush=True)
if os.fork() == 0:
    kept = [os.dup(pipe.fileno()) for pipe in (compiler.worker._process.stdin, compiler.worker._process.stdout)]
    compiler.compile(bundle.routes[1])  # with a worker of its own
    print("fork", compiler.worker.pid, flush=True)
    time.sleep(30)  # holds a copy of every pipe of the first one
time.sleep(30)
"""


def test_it_ends_with_its_parent_even_if_a_fork_holds_the_pipes(family_path: Path, tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(family_path), str(tmp_path / "cache")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    onnx, pid = parent.stdout.readline().split()
    assert onnx == "False", "what compiling imports is in the worker alone"
    worker = psutil.Process(int(pid))
    word, other = parent.stdout.readline().split()
    assert (word, other == pid) == ("fork", False)
    fork, other_worker = psutil.Process(int(other)).parent(), psutil.Process(int(other))
    parent.kill()
    parent.wait()
    worker.wait(20)
    assert fork is not None
    assert fork.is_running()
    fork.kill()
    other_worker.wait(20)
    parent.stdout.close()


def test_it_gives_way(compiler: Compiler) -> None:
    """Serving goes first; and when memory runs out, this process is the one to go."""
    with stuck(compiler, "small") as (process, _):
        assert process.nice() == min(19, psutil.Process().nice() + 10)
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "1000\n"


def test_killed_it_is_an_error_and_the_next_route_starts_another(compiler: Compiler) -> None:
    with stuck(compiler, "small") as (process, errors):
        process.send_signal(signal.SIGKILL)
        until(lambda: worker_of(compiler).pid not in (None, process.pid))  # which tries with less memory, and fares no better
        second = psutil.Process(worker_of(compiler).pid)
        second.send_signal(signal.SIGKILL)
        until(lambda: errors)
    assert isinstance(errors[0], KilledError)
    assert str(errors[0]) == "the process that compiled the route 'small' was ended by SIGKILL, probably out of memory"
    assert gone(process.pid)
    assert gone(second.pid)
    assert compiler.compile(compiler.bundle.route("small")).level == "prepacked"


def test_killed_once_the_route_is_made_with_less_memory(compiler: Compiler) -> None:
    with stuck(compiler, "large") as (process, errors):
        process.send_signal(signal.SIGKILL)
    assert not errors
    route = compiler.bundle.route("large")
    compiled = compiler.compile(route)
    assert compiled.level == "mapped"
    reason = "the process that compiled the route 'large' was ended by SIGKILL, probably out of memory"
    assert compiled.shortage == Shortage(reason)
    assert not compiler.improvable(compiled), "not at this start"
    x = np.ones((2, 1, 8, 8), np.float32)
    expected = infer(plain_session(compiler.bundle, route, SETTINGS), x)
    assert np.allclose(infer(load_session(compiled, SETTINGS), x), expected, rtol=1e-4, atol=1e-5)
    assert compiler.compile(compiler.bundle.route("small")).level == "prepacked"
    later = Compiler.for_bundle(compiler.bundle, compiler.cache.shelf.root, apart=True)
    assert later.improve(route)
    better = later.compile(route)
    assert (better.level, better.shortage) == ("prepacked", None)
    assert np.allclose(infer(load_session(better, SETTINGS), x), expected, rtol=1e-4, atol=1e-5)
    assert np.allclose(infer(load_session(compiled, SETTINGS), x), expected, rtol=1e-4, atol=1e-5), "who had it before keeps it"
    later.close()


def test_signals_to_the_whole_group_are_for_its_parent(compiler: Compiler) -> None:
    """Ctrl-C in a terminal, or a service manager that tells every process of a service to end."""
    with stuck(compiler, "small") as (process, errors):
        assert os.getsid(process.pid) != os.getsid(0)
        for number in (signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
    assert errors == []
    assert compiler.cache.look_up("small") is not None


def test_aborted_a_compile_ends_at_once_and_none_begins(compiler: Compiler) -> None:
    with stuck(compiler, "small") as (process, errors):
        compiler.abort()
        until(lambda: errors)
    assert isinstance(errors[0], StoppedError)
    assert str(errors[0]) == "compiling has been stopped: the route 'small' is not compiled"
    assert gone(process.pid)
    with pytest.raises(StoppedError, match="compiling has been stopped: the route 'large'"):
        compiler.compile(compiler.bundle.route("large"))
    compiler.abort()


def test_killed_while_idle_it_is_replaced(compiler: Compiler) -> None:
    compiler.compile(compiler.bundle.route("small"))
    pid = worker_of(compiler).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    compiler.compile(compiler.bundle.route("large"))
    assert worker_of(compiler).pid not in (None, pid)
    assert gone(pid)


def test_idle_it_ends(family_bundle: Bundle, tmp_path: Path) -> None:
    worker = CompileWorker(Job(str(family_bundle.path), family_bundle.digest, str(tmp_path), "prepacked", None), idle_s=0.05)
    worker.compile("small", lambda: None)
    pid = worker.pid
    until(lambda: worker.pid is None)
    assert pid is None or gone(pid)
    worker.compile("large", lambda: None)
    worker.close()


def test_forgotten_it_ends(family_bundle: Bundle, tmp_path: Path) -> None:
    """No warning about a process or a pipe that was left behind: warnings are errors here."""
    compiler = Compiler.for_bundle(family_bundle, tmp_path, apart=True)
    compiler.compile(family_bundle.routes[0])
    pid = worker_of(compiler).pid
    assert pid is not None
    worker_of(compiler)._cancel()  # the timer of the idle time holds on to it
    del compiler
    gc.collect()
    until(lambda: gone(pid))


def test_errors_arrive_as_they_are(own_family: Callable[..., Path], tmp_path: Path) -> None:
    path = own_family()
    bundle = open_bundle(path)
    graph = path / "segments/small.1.fp32.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    errors = []
    for apart in (False, True):
        compiler = Compiler.for_bundle(bundle, tmp_path / f"cache-{apart}", apart=apart)
        with pytest.raises(BundleError) as caught:
            compiler.compile(bundle.route("small"))
        compiler.close()
        errors.append((str(caught.value), caught.value.where, caught.value.reason))
    assert errors[0] == errors[1]
    assert errors[0][1] == "segments/small.1.fp32.onnx"


def test_another_bundle_in_its_place_is_refused(own_family: Callable[..., Path], tmp_path: Path) -> None:
    path = own_family()
    bundle = open_bundle(path)
    manifest = path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    compiler = Compiler.for_bundle(bundle, tmp_path / "cache", apart=True)
    with pytest.raises(BundleError, match="has been replaced by another bundle"):
        compiler.compile(bundle.route("small"))
    compiler.close()


def test_compile_errors_arrive_as_they_are(compiler: Compiler) -> None:
    (compiler.cache.path / "lock").mkdir()
    with pytest.raises(CompileError, match=r"cannot be used for the route 'small': \[Errno 21\] Is a directory"):
        compiler.compile(compiler.bundle.route("small"))


def test_a_process_that_cannot_start_is_an_error(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(CompileError, match="no process can be started to compile in"):
        compiler.compile(compiler.bundle.route("small"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CompileError, match="the process that compiled the route 'small' ended with status 1"):
        compiler.compile(compiler.bundle.route("small"))
