"""The compile worker, as its parent sees it: a process that compiles routes, started when the first is wanted, ended when idle.

What compiling takes in memory, and the `onnx` package, stay in that process; if the system runs out of memory, that process is
the one to go. One line of JSON each way, over its standard input and output: see `compile_worker.py`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from restnet_runtime.ending import started
from restnet_runtime.errors import BundleError, CompileError, KilledError, RoomError, StoppedError

IDLE_S = 10.0
_END_S = 5.0
# Whatever lies in the working directory is not imported.
_PROGRAM = (
    "import sys; sys.path = [place for place in sys.path if place]; from restnet_runtime.compile_worker import main; sys.exit(main())"
)

_ENVIRONMENT = {
    # glibc keeps freed blocks of megabytes unless it is told not to: 150 MB instead of 196 for ResNet-50.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


@dataclass(frozen=True)
class Job:
    """What a worker is told first: the bundle and its digest, and the rest as `Compiler.for_bundle` takes it."""

    bundle: str
    digest: str
    cache_root: str
    level: str
    cap_bytes: int | None
    filters: Sequence[str] | None = None


class CompileWorker:
    """Compiles routes of one job in a process of its own. Thread safe: one route at a time.

    idle_s: how long the process is kept for a next route
    """

    def __init__(self, job: Job, idle_s: float = IDLE_S) -> None:
        self._job, self._idle_s = job, idle_s
        self._lock = threading.Lock()  # guards the rest
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._aborted = False
        self._timer: threading.Timer | None = None
        self._finalizer: weakref.finalize[[subprocess.Popen[bytes], int], Any] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        process = self._process
        return process.pid if process is not None else None

    def compile(self, name: str, on_compile: Callable[[], None], level: str | None = None, anew: bool = False) -> None:
        """Have a route compiled into the cache; returns at once if it is there.

        on_compile: called when it really is compiled
        level:      for this route, if another than the job's
        anew:       also where it is there at a lesser level
        Raises the `BundleError` or `CompileError` that the worker met; `KilledError` if it was killed, `CompileError` if it just ended,
        `StoppedError` after `abort`.
        """
        self._notice_fork()
        with self._lock:
            self._cancel()
            try:
                self._ask(name, {"route": name, "level": level or self._job.level, "anew": anew}, on_compile)
            except BaseException as error:
                if not isinstance(error, BundleError | CompileError):
                    self._end(at_once=True)  # it may be in the midst of an answer
                raise
            finally:
                if self._process is not None:
                    timer = threading.Timer(self._idle_s, self._end_idle, (self._process,))
                    timer.daemon = True
                    self._timer = timer if started(timer) else None  # the program ends: `close` will end the process

    def abort(self) -> None:
        """Kill the process, whatever it is doing, and start none any more. Does not wait for a compile under way."""
        self._aborted = True
        process = self._process
        if process is not None and os.getpid() == self._owner:
            process.kill()

    def close(self) -> None:
        """End the process, if there is one; it is killed if it does not end by itself."""
        self._notice_fork()
        with self._lock:
            self._cancel()
            self._end()

    def _notice_fork(self) -> None:
        """In a fork of the process that made this, its worker is not ours to use or to end, and its lock may be held for ever."""
        if os.getpid() == self._owner:
            return
        self._owner, self._lock, self._timer = os.getpid(), threading.Lock(), None
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process.returncode = 0  # or its destructor would look for a child that this process does not have
            self._forget()

    def _ask(self, name: str, request: dict[str, Any], on_compile: Callable[[], None]) -> None:
        before = self._process
        process = self._started(name)
        answer = self._receive(process) if self._send(process, request) else None
        if answer is None and process is before:
            self._end()  # it was killed while it was idle: that says nothing about this route
            process = self._started(name)
            answer = self._receive(process) if self._send(process, request) else None
        while True:
            if answer is None:
                raise self._death(name)
            if "compiling" in answer:
                on_compile()
            elif "done" in answer:
                return
            elif answer.get("error") == "BundleError":
                raise BundleError(answer["where"], answer["reason"])
            else:
                raise (RoomError if answer.get("error") == "RoomError" else CompileError)(answer["message"])
            answer = self._receive(process)

    def _started(self, name: str) -> subprocess.Popen[bytes]:
        if self._aborted:
            raise _stopped(name)
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        # The package that runs here, however it was found.
        package = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the server, which then ends this one
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
            )
        except OSError as error:
            raise CompileError(f"no process can be started to compile in: {error}") from error
        self._process = process
        self._finalizer = weakref.finalize(self, _finish, process, self._owner)
        self._send(process, asdict(self._job))
        return process

    def _send(self, process: subprocess.Popen[bytes], message: dict[str, Any]) -> bool:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            return False
        return True

    def _receive(self, process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
        assert process.stdout is not None
        try:
            answer = json.loads(process.stdout.readline())
        except ValueError:  # the end of the stream, or of a line that never ended
            return None
        return answer if isinstance(answer, dict) else None

    def _death(self, name: str) -> CompileError:
        """What ended the process, as an error."""
        assert self._process is not None
        process = self._process
        self._end()
        if self._aborted:
            return _stopped(name)
        error = KilledError if process.returncode == -signal.SIGKILL else CompileError
        return error(f"the process that compiled the route {name!r} {_how(process.returncode)}")

    def _end_idle(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            if self._process is process and self._timer is threading.current_thread():
                self._timer = None
                self._end()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, at_once: bool = False) -> None:
        if self._process is not None:
            _finish(self._process, self._owner, at_once)
            self._forget()

    def _forget(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()
        self._process = self._finalizer = None


def _stopped(name: str) -> StoppedError:
    return StoppedError(f"compiling has been stopped: the route {name!r} is not compiled")


def _finish(process: subprocess.Popen[bytes], owner: int, at_once: bool = False) -> None:
    """Close the pipes, which ends the process, and wait for it."""
    if os.getpid() != owner:
        return
    assert process.stdin is not None
    assert process.stdout is not None
    if at_once:
        process.kill()
    with suppress(OSError):  # it did not read the last of it
        process.stdin.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}" + (", probably out of memory" if -status == signal.SIGKILL else "")
