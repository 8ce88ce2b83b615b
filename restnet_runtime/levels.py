"""Levels: the session of a route, its weights held in the best way that works here. See docs/decisions/0008-levels-and-providers.md."""

import logging
from collections.abc import Callable
from typing import Literal

import onnxruntime as ort

from restnet_runtime.bundle import Bundle, check_weights
from restnet_runtime.catalog import LEVELS, CompiledRoute
from restnet_runtime.compile import Compiler
from restnet_runtime.errors import CompileError, RoomError
from restnet_runtime.providers import missing_note
from restnet_runtime.routes import Route
from restnet_runtime.sessions import SessionSettings, joined_session, load_session, providers_of

log = logging.getLogger(__name__)

Level = Literal["prepacked", "mapped", "plain"]


class SessionOpener:
    """Opens sessions on routes of one bundle: on compiled routes, or where that does not work on joined graphs."""

    def __init__(self, bundle: Bundle, compiler: Compiler) -> None:
        self._bundle, self._compiler = bundle, compiler
        self._weights_checked = bundle.weights_checked
        self._notes: dict[str, str] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Why routes are not at the best level, and which providers did not start."""
        return tuple(dict.fromkeys(self._notes.values()))

    def is_compiled(self, route: Route) -> bool:
        """Is there a compiled route in the cache, of the best level, as far as is known without checking it?"""
        return route.name in self._compiler.cache.names()

    def open(
        self, route: Route, settings: SessionSettings, on_compile: Callable[[Route], None] | None = None
    ) -> tuple[CompiledRoute | None, ort.InferenceSession]:
        """The compiled route and a session on it, or `None` and one with weights of its own.

        on_compile: called before the route is really compiled
        Raises `BundleError` for a bad graph or bad weights, `RoomError` where there is no room to compile, and `CompileError` when
        ONNX Runtime cannot load the route at all.
        """
        if not settings.providers.cpu_only:
            session = self._joined(route, settings)
            self._note(route, missing_note(settings.providers.names, providers_of(session)))
            return None, session
        compiler: Compiler | None = self._compiler
        while compiler is not None:
            try:
                compiled, session = _compiled(compiler, route, settings, on_compile)
            except RoomError:
                raise
            except CompileError as error:
                self._note(route, f"the level {compiler.level} does not work for {route.name}: {error}")
                try:
                    compiler = compiler.lesser()
                except CompileError:  # nothing can be written where the cache is
                    compiler = None
            else:
                if compiled.level == LEVELS[0]:
                    self._notes.pop(route.name, None)
                elif compiled.level != compiler.level:
                    self._note(route, _why_lower(compiled))
                return compiled, session
        return None, self._joined(route, settings)

    def improvable(self, compiled: CompiledRoute) -> bool:
        """Whether there was no room to compile a loaded route any better at an earlier start, and it is to be tried again."""
        return self._compiler.improvable(compiled)

    def improve(self, route: Route, on_compile: Callable[[Route], None] | None = None) -> bool:
        """Compile such a route anew; whether `open` gives a better one now. Raises `BundleError` and `CompileError`."""
        return self._compiler.improve(route, on_compile)

    def _joined(self, route: Route, settings: SessionSettings) -> ort.InferenceSession:
        if not self._weights_checked:
            check_weights(self._bundle)  # a compiler does that for itself
            self._weights_checked = True
        return joined_session(self._bundle, route, settings)

    def _note(self, route: Route, note: str | None) -> None:
        if note is not None and self._notes.get(route.name) != note:
            self._notes[route.name] = note
            log.warning("%s", note)


def _why_lower(compiled: CompiledRoute) -> str:
    why = "" if compiled.shortage is None else f": {compiled.shortage.reason}"
    tries = "" if compiled.shortage is None or not compiled.shortage.tries else f" (tried again at {compiled.shortage.tries} later starts)"
    return f"{compiled.name} could only be compiled to the level {compiled.level}{why}{tries}"


def _compiled(
    compiler: Compiler, route: Route, settings: SessionSettings, on_compile: Callable[[Route], None] | None
) -> tuple[CompiledRoute, ort.InferenceSession]:
    for attempt in (1, 2):
        compiled = compiler.compile(route, on_compile)
        try:
            return compiled, load_session(compiled, settings)
        except CompileError:
            if attempt == 2 or compiled.graph.exists():
                raise
            # another process found the cache damaged and dropped it just now
    raise AssertionError("the second attempt returns or raises")
