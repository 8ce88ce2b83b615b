"""Ahead: sessions that are opened while the one before them is, so that a start uses more than one core.

ONNX Runtime loads a session without the interpreter's lock, and checking a cache reads files without it.
"""

import threading
from collections.abc import Callable, Collection

import onnxruntime as ort

from restnet_runtime.catalog import CompiledRoute
from restnet_runtime.ending import started
from restnet_runtime.levels import SessionOpener
from restnet_runtime.routes import Route
from restnet_runtime.sessions import SessionSettings

Opened = tuple[CompiledRoute | None, ort.InferenceSession]


class _Opening:
    """One session that is being opened in a thread of its own; where none can be started any more, once it is asked for."""

    def __init__(self, settings: SessionSettings, work: Callable[[], Opened]) -> None:
        self.settings, self._work = settings, work
        self._opened: Opened | None = None
        self._error: Exception | None = None
        thread = threading.Thread(target=self._run, name="restnet-opener", daemon=True)
        self._thread = thread if started(thread) else None

    def _run(self) -> None:
        try:
            self._opened = self._work()
        except Exception as error:
            self._error = error

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def result(self) -> Opened:
        """What was opened, once it is; raises what opening raised."""
        if self._thread is None:
            self._run()
        self.wait()
        if self._opened is None:
            raise self._error or AssertionError("an opening ends with a session or an error")
        return self._opened


class OpenAhead:
    """Opens sessions as `SessionOpener` does, some of them before they are asked for. For one thread at a time."""

    def __init__(self, opener: SessionOpener) -> None:
        self._opener = opener
        self._begun: dict[str, _Opening] = {}

    def begin(self, route: Route, settings: SessionSettings, on_compile: Callable[[Route], None] | None = None) -> None:
        """Open a session of that route now, in another thread; `open` hands it out. What it takes is memory of the process from now on."""
        if route.name not in self._begun:
            self._begun[route.name] = _Opening(settings, lambda: self._opener.open(route, settings, on_compile))

    def open(self, route: Route, settings: SessionSettings, on_compile: Callable[[Route], None] | None = None) -> Opened:
        """The session that was begun with these settings, or a new one. Raises what `SessionOpener.open` does."""
        begun = self._begun.pop(route.name, None)
        if begun is not None and begun.settings == settings:
            return begun.result()
        if begun is not None:
            begun.wait()
        return self._opener.open(route, settings, on_compile)

    def drop(self, but: Collection[str] = ()) -> None:
        """Let go of what was begun and not handed out, except for routes named in `but`. Waits for those under way."""
        for name in [name for name in self._begun if name not in but]:
            self._begun.pop(name).wait()
