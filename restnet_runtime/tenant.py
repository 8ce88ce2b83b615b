"""A tenant: one model of a process as those see it who share the memory out: what it could use, what it has, how much it is asked."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from restnet_runtime.budget import Budget
from restnet_runtime.controller import Controller
from restnet_runtime.executor import Executor
from restnet_runtime.loader import Loader
from restnet_runtime.residency import lean, together
from restnet_runtime.routes import Route

if TYPE_CHECKING:
    from restnet_runtime.sharing import Offer, Option

_SMOOTHED_S = 20.0
"""Requests are counted over about so long: what is given for them takes a load to be used."""


class Tenant:
    """Asked by one thread at a time."""

    def __init__(self, name: str, executor: Executor, controller: Controller, loader: Loader) -> None:
        self.name = name
        self._executor, self._controller, self._loader = executor, controller, loader
        self._rate_per_s, self._rated_s = 0.0, -math.inf
        self._known: "tuple[object, tuple[Option, ...], int] | None" = None  # noqa: UP037

    @property
    def process_limit_bytes(self) -> int | None:
        """What the process may take, by this model's budget and readings; `None` where neither tells."""
        return self._controller.process_limit_bytes

    @property
    def budget_bytes(self) -> int | None:
        """The memory limit in its budget."""
        return self._controller.budget.memory_bytes

    @property
    def loaded_bytes(self) -> int:
        """What its loaded routes are predicted to add to the process."""
        return self._loader.loaded_bytes

    def rate_per_s(self, now_s: float) -> float:
        """Requests per second, smoothed; to be asked now and then. now_s: seconds that never step back."""
        reading = self._controller.reading
        seen = 0.0 if reading is None else reading.requests_per_s or 0.0
        weight = 1.0 - math.exp(-max(0.0, now_s - self._rated_s) / _SMOOTHED_S)
        self._rate_per_s += weight * (seen - self._rate_per_s)
        self._rated_s = now_s
        return self._rate_per_s

    def offer(self, weight: float, held: str | None) -> "Offer":
        """What it could use. weight, held: as `Offer` has them."""
        from restnet_runtime.sharing import Offer  # not above: a model alone shares with nobody, and is to start quickly

        budget, pin, without = self._controller.budget, self._controller.pin, self._loader.without
        known = self._executor.needs_version, budget, pin, without
        if self._known is None or self._known[0] != known:
            self._known = known, *self._options(budget, pin, without)
        return Offer(self._known[1], weight, self._known[2], held)

    def _options(self, budget: Budget, pin: str | None, without: frozenset[str]) -> "tuple[tuple[Option, ...], int]":
        """Its options, and what all its routes take together.

        What counts are constants (cost, accuracy, the profile): what is decided by them does not move with the weather.
        """
        from restnet_runtime.sharing import Option, thin

        routes = [route for route in self._executor.bundle.routes if route.name not in without] or list(self._executor.bundle.routes)
        needs = {route.name: self._executor.need(route.name) for route in routes}
        most_bytes = together(needs.values())
        pinned = [route for route in routes if route.name == pin]
        cheapest = (pinned or sorted(routes, key=lambda route: route.macs))[0]
        able = [] if pinned else [route for route in routes if self._able(route, budget)]
        down = lean(needs[cheapest.name])  # the way down stays loaded beside whatever serves
        accuracies = _accuracies(routes)
        options = [Option(cheapest.name, together([needs[cheapest.name]]), accuracies[cheapest.name])]
        options += [
            Option(route.name, together([needs[route.name], down]), accuracies[route.name]) for route in able if route is not cheapest
        ]
        return thin(options), most_bytes

    def _able(self, route: Route, budget: Budget) -> bool:
        profile = self._executor.profile(route.name)
        slow = budget.latency_ms is not None and profile is not None and profile.latency_ms > budget.latency_ms
        dear = budget.macs is not None and route.macs > budget.macs
        return not slow and not dear


def _accuracies(routes: Sequence[Route]) -> dict[str, float]:
    """By name; where one was not measured, all by their place in the order of cost."""
    known = {route.name: route.accuracy for route in routes if route.accuracy is not None}
    if len(known) == len(routes):
        return known
    ranked = sorted(routes, key=lambda route: route.macs)
    return {route.name: (place + 1) / len(ranked) for place, route in enumerate(ranked)}
