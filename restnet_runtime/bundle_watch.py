"""Watching: a bundle's path is looked at now and then, and another bundle there is taken. One `stat` a look, whatever the bundle's size."""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from restnet_runtime.errors import BusyError
from restnet_runtime.manifest import MANIFEST_FILE
from restnet_runtime.updates import Updates

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int, int]


def stamp_of(bundle: Path) -> Stamp | None:
    """What changes with the bundle: device, inode, time and size of its manifest, links followed; `None` while there is none."""
    try:
        found = (bundle / MANIFEST_FILE).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


class BundleWatch:
    """A thread of its own. A context manager."""

    def __init__(self, updates: Updates, known: Mapping[str, Stamp | None], interval_s: float) -> None:
        """known: of each model, as its bundle's path was before that was opened; what was put there since is taken at the first looks."""
        self._updates, self._interval_s = updates, interval_s
        self._known = dict(known)
        self._seen = dict(self._known)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="restnet-watch", daemon=True)

    def look(self) -> None:
        """Begin an update where another bundle lies, and lay there as it is at the last look: what is still written is left alone."""
        for name, known in self._known.items():
            now, before = stamp_of(self._updates.path(name)), self._seen[name]
            self._seen[name] = now
            if now is None or now == known or now != before:
                continue
            try:
                self._updates.begin(name)
            except BusyError:
                continue  # at a later look
            self._known[name] = now  # whatever comes of it: what was refused is not tried again and again

    def _loop(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self.look()
            except Exception:
                log.exception("looking at the bundles failed")

    def __enter__(self) -> "BundleWatch":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopping.set()
        self._thread.join()
