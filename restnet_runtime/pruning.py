"""Pruning: what the loader does without, because another route is better on this device (`front.py`)."""

import logging
from collections.abc import Callable, Collection

from restnet_runtime.executor import Executor
from restnet_runtime.front import Outdone, outdone

log = logging.getLogger(__name__)


class Pruner:
    """Knows the routes of an executor that another one outdoes here, those that an earlier start found included.

    A verdict holds as long as what was measured does: this start, and later ones with the same cache and threads.

    on_found:  told after routes were found, so that none of them stays the current one; `None` prunes nothing
    """

    def __init__(self, executor: Executor, on_found: Callable[[], object] | None) -> None:
        self._executor, self._on_found = executor, on_found
        self._outdone: dict[str, Outdone] = {}

    def recall(self) -> None:
        """Begin with what earlier starts have found."""
        if self._on_found is not None:
            found = self._executor.outdone_before().items()
            self._outdone = {name: Outdone(by, f"outdone by {by} here, as an earlier start measured") for name, by in found}

    def judge(self, names: Collection[str]) -> None:
        """Find those of these routes that another one of them outdoes. names: loaded ones whose profiles can be believed."""
        if self._on_found is None:
            return
        known = self._outdone
        points = [point for point in self._executor.judgeable if point[0].name in names]
        found = {name: one for name, one in outdone(points).items() if name not in known}
        for name, one in found.items():
            log.info("route %s is %s", name, one.reason)
            self._executor.mark_outdone(name, one.by)
        if found:
            self._outdone = {**known, **found}
            self._on_found()

    def aside(self, but: Collection[str | None]) -> set[str]:
        """Names of the routes to do without. but: the current one, and what an operator has pinned."""
        return set(self._outdone).difference(but)

    def needed(self, aside: Collection[str], there: Collection[str]) -> set[str]:
        """Those of `aside` whose better is not among the routes that are `there`."""
        return {name for name in aside if self._better(name) not in there}

    def reasons(self) -> dict[str, str]:
        """Why, by name."""
        return {name: one.reason for name, one in self._outdone.items()}

    def _better(self, name: str) -> str:
        """The one that nothing outdoes: the better of the better, as long as there is one."""
        seen = {name}
        while name in self._outdone and self._outdone[name].by not in seen:
            name = self._outdone[name].by
            seen.add(name)
        return name
