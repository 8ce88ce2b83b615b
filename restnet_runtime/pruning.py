"""Pruning: what the loader does without, because another route is better on this device (`front.py`)."""

import logging
from collections.abc import Callable, Collection

from restnet_runtime.executor import Executor
from restnet_runtime.front import Outdone, outdone

log = logging.getLogger(__name__)


class Pruner:
    """Knows the routes of an executor that another one outdoes here, those that an earlier start found included.

    A verdict holds as long as what was measured does: this start, and later ones with the same cache and threads. It ends when the better
    route is measured to be the slower one, and all of them when requests get another number of threads.

    on_found:  told after routes were found, so that none of them stays the current one; `None` sets none aside, but still tells which
    """

    def __init__(self, executor: Executor, on_found: Callable[[], object] | None) -> None:
        self._executor, self._on_found = executor, on_found
        self._threads = executor.settings.threads
        self._outdone: dict[str, Outdone] = {}
        self._judged: frozenset[str] = frozenset()

    def recall(self) -> None:
        """Begin with what earlier starts have found."""
        self._threads = self._executor.settings.threads
        found = self._executor.outdone_before()
        self._outdone = {name: Outdone(by, f"outdone by {by} here, as an earlier start measured") for name, by in found.items()}
        self._judged = frozenset((*found, *found.values()))

    def judge(self, names: Collection[str]) -> None:
        """Find those of these routes that another one of them outdoes, and end verdicts that hold no more.

        names: loaded ones whose profiles can be believed
        """
        if self._executor.stale:
            return
        if self._executor.settings.threads != self._threads:
            self.recall()
        ended = {name for name, one in self._outdone.items() if self._executor.refutes(name, one.by)}
        for name in ended:
            log.info("route %s is measured again: %s, by which it was outdone, is slower now", name, self._outdone[name].by)
        known = {name: one for name, one in self._outdone.items() if name not in ended}
        points = [point for point in self._executor.judgeable if point[0].name in names]
        found = {name: one for name, one in outdone(points).items() if name not in known}
        for name, one in found.items():
            log.info("route %s is %s", name, one.reason)
            if self._on_found is not None:
                self._executor.mark_outdone(name, one.by)
        self._outdone = {**known, **found}
        self._judged = (self._judged - ended) | {route.name for route, _ in points} | known.keys()
        if found and self._on_found is not None:
            self._on_found()

    def aside(self, but: Collection[str | None]) -> set[str]:
        """Names of the routes to do without. but: the current one, and what an operator has pinned."""
        return set(self._outdone).difference(but) if self._on_found is not None else set()

    def needed(self, aside: Collection[str], there: Collection[str]) -> set[str]:
        """Those of `aside` whose better is not among the routes that are `there`."""
        return {name for name in aside if self._better(name) not in there}

    def reasons(self) -> dict[str, str]:
        """Why, by name."""
        return {name: one.reason for name, one in self._outdone.items()}

    def verdicts(self) -> dict[str, str | None]:
        """Of all that were judged why they are outdone, `None` for those on the front of this device."""
        reasons = self.reasons()
        return {name: reasons.get(name) for name in self._judged | reasons.keys()}

    def _better(self, name: str) -> str:
        """The one that nothing outdoes: the better of the better, as long as there is one."""
        seen = {name}
        while name in self._outdone and self._outdone[name].by not in seen:
            name = self._outdone[name].by
            seen.add(name)
        return name
