"""The loader: a thread that makes one route after the other ready, off the request path."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from restnet_runtime.errors import RestnetError
from restnet_runtime.executor import Executor
from restnet_runtime.routes import Route

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """total: routes to make ready. loading: the one being made ready. failed: what went wrong, by route."""

    total: int
    loaded: int
    loading: str | None
    compiled: int
    failed: dict[str, str]

    @property
    def done(self) -> bool:
        return self.loaded + len(self.failed) >= self.total


class Loader:
    """Loads `names` into `executor` in that order. A route that fails is reported and left out; the others go on."""

    def __init__(self, executor: Executor, names: Sequence[str], on_loaded: Callable[[str], None] | None = None) -> None:
        self._executor, self._names, self._on_loaded = executor, tuple(names), on_loaded
        self._loading: str | None = None
        self._compiled = 0
        self._failed: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.run, name="restnet-loader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the route that is being loaded now."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until every route is loaded or has failed."""
        self._thread.join(timeout_s)

    def progress(self) -> Progress:
        loaded = len(set(self._names) & set(self._executor.loaded))
        return Progress(len(self._names), loaded, self._loading, self._compiled, dict(self._failed))

    def run(self) -> None:
        """Load all, in this thread."""
        for name in self._names:
            if self._stop.is_set():
                break
            self._loading = name
            try:
                self._executor.load(name, self._count)
            except RestnetError as error:
                self._failed[name] = str(error)
                log.error("route %s cannot be loaded: %s", name, error)
            else:
                if self._on_loaded is not None:
                    self._on_loaded(name)
        self._loading = None
        log.info("%d of %d routes ready, %d of them compiled now", len(self._executor.loaded), len(self._names), self._compiled)

    def _count(self, route: Route) -> None:
        self._compiled += 1
        log.info("compiling %s", route.name)
