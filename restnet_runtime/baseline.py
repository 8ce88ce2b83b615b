"""The baseline: what this process takes without any route of any model, and how busy requests keep it."""

from collections.abc import Callable
from typing import NamedTuple

from restnet_runtime.heap import trim_heap
from restnet_runtime.memory import footprint
from restnet_runtime.turn import Turn


class Added(NamedTuple):
    """What the loaded routes of one model have added to the process. mapped_bytes: weights; own_bytes: what is backed by no file."""

    mapped_bytes: int
    own_bytes: int


class Baseline:
    """Measured anew whenever something is loaded or released: what the process has, less what the routes of all models add."""

    def __init__(self) -> None:
        idle = footprint()
        self.overhead_bytes = idle.pss_bytes
        """PSS of the process without any route, as `weigh` found it last."""
        self._shared_bytes = idle.pss_bytes - idle.anonymous_bytes
        self._handed_back = False
        self._models: dict[object, Callable[[], Added]] = {}

    def hold(self, model: object, added: Callable[[], Added]) -> None:
        """From now on a model has routes loaded. added: asked when another one is weighed."""
        self._models[model] = added

    def drop(self, model: object) -> None:
        """It has none any more."""
        self._models.pop(model, None)

    def hand_back(self) -> None:
        """Weights leave the process now, and come back page by page: what is mapped is not weighed any more."""
        self._handed_back = True

    def weigh(self, model: object, added: Added) -> None:
        """Measure. added: by the routes of this model; the others are asked."""
        trim_heap()
        others = [ask() for other, ask in tuple(self._models.items()) if other is not model]
        now = footprint()
        mapped, own = added.mapped_bytes + sum(one.mapped_bytes for one in others), added.own_bytes + sum(one.own_bytes for one in others)
        if not self._handed_back:
            self._shared_bytes = max(0, now.pss_bytes - now.anonymous_bytes - mapped)
        self.overhead_bytes = max(0, now.anonymous_bytes - own) + self._shared_bytes


class Activity:
    """Runs of requests of all models: how many began and ended, and the seconds that they took, all together.

    Two threads that count at once may lose one: then nothing is taken for quiet, and it is a mean that is asked for.
    """

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.busy_s = 0.0


class Common:
    """What the executors of one process share: its baseline, its activity, and the turn to load or release."""

    def __init__(self) -> None:
        self.baseline, self.activity, self.turn = Baseline(), Activity(), Turn()
