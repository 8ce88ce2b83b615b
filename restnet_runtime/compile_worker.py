"""The compile worker itself: reads a job and then names of routes as lines of JSON, compiles them, answers as lines of JSON.

    -> {"bundle": ..., "digest": ..., "cache_root": ..., "level": ..., "cap_bytes": ...}
    -> {"route": NAME, "level": ..., "anew": ...}
    <- {"compiling": NAME}                                          only if it was not in the cache
    <- {"done": NAME}, or {"error": "BundleError", "where": ..., "reason": ...}, or {"error": "CompileError" or "RoomError", "message": ...}

It ends when its input ends, or when its parent does. Serving goes first: it gives way to other processes for processor time, and
offers itself when memory runs out.
"""

import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

_NICENESS = 10
_LOOK_S = 1.0


def main() -> int:
    """Serve one parent over standard input and output. Returns the exit status."""
    parent = os.getppid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides: it closes the pipe, or kills
    _give_way()
    # What libraries print must not come between the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    lines = _Lines(parent)
    try:
        job = lines.read()
        if job is not None:
            _serve(job, lines, answers)
    except BrokenPipeError:  # the parent has gone
        pass
    return 0


def _serve(job: dict[str, Any], lines: "_Lines", answers: int) -> None:
    # Here and not above: giving way comes before a hundred megabytes of libraries.
    from restnet_runtime.bundle import Bundle, open_bundle
    from restnet_runtime.compile import Compiler
    from restnet_runtime.errors import BundleError, CompileError

    def answer(**fields: str) -> None:
        os.write(answers, json.dumps(fields).encode() + b"\n")  # shorter than a pipe takes at once

    def opened() -> Bundle:
        bundle = open_bundle(job["bundle"], weights_later=True)
        if bundle.digest != job["digest"]:
            raise BundleError(job["bundle"], "has been replaced by another bundle since it was opened")
        return bundle

    compiler: Compiler | None = None
    while (request := lines.read()) is not None:
        name = request["route"]
        try:
            if compiler is None:
                options = {key: job[key] for key in ("level", "cap_bytes", "filters")}
                compiler = Compiler.for_bundle(opened(), Path(job["cache_root"]), **options)
            route = compiler.bundle.route(name)
            compiler.compile(route, lambda route: answer(compiling=route.name), request["level"], anew=request["anew"])
        except BundleError as error:
            answer(error="BundleError", where=error.where, reason=error.reason)
        except CompileError as error:
            answer(error=type(error).__name__, message=str(error))
        except MemoryError:
            answer(error="RoomError", message=f"the route {name!r} cannot be compiled: out of memory")
        else:
            answer(done=name)


class _Lines:
    """Lines of JSON from standard input, until it ends or the parent does: a fork of the parent may hold the other end open."""

    def __init__(self, parent: int) -> None:
        self._parent, self._rest = parent, b""

    def read(self) -> dict[str, Any] | None:
        while b"\n" not in self._rest:
            if not select.select([0], [], [], _LOOK_S)[0]:
                if os.getppid() != self._parent:
                    return None
                continue
            data = os.read(0, 2**16)
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


def _give_way() -> None:
    try:
        os.nice(_NICENESS)
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:  # not Linux as we know it: then it competes
        pass


if __name__ == "__main__":
    sys.exit(main())
