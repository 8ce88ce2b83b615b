"""What a controller moves and reads, as protocols: the executor and the sensors, or what stands in for them on a virtual clock."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.routes import Route


class RouteSource(Protocol):
    """What the controller needs of a bundle."""

    @property
    def routes(self) -> Sequence[Route]: ...


class Switchable(Protocol):
    """What the controller needs of `executor.Executor`. All of it is quick and safe from any thread."""

    @property
    def bundle(self) -> RouteSource: ...
    @property
    def current(self) -> Route | None: ...
    @property
    def loaded(self) -> tuple[str, ...]: ...
    def profile(self, name: str, /) -> RouteProfile | None: ...
    def switch(self, name: str, /) -> None: ...


class ReadingSource(Protocol):
    """What the controller needs of `sensors.Sensors`."""

    def read(self) -> Reading: ...


class MemoryShare(Protocol):
    """What a model of several in a process may take of its memory. All of it is quick and safe from any thread."""

    @property
    def model(self) -> str | None:
        """The name of the model, where there are others."""

    @property
    def others_bytes(self) -> int | None:
        """Reserved for the other models now; `None` while there is no other."""

    @property
    def budget_bytes(self) -> int | None:
        """The lowest memory limit in the budgets of all models: it is of the process, whichever it was put at."""

    @property
    def limit_bytes(self) -> int | None:
        """What the process may take with routes of this model alone; `None` for no limit."""

    def renew(self) -> None:
        """What the model may serve by has changed: what is shared is divided anew before it is asked for again."""


@runtime_checkable
class Glancing(Protocol):
    """What such a source may have besides: a quick look at what can change from one moment to the next."""

    def glance(self, last: Reading, /) -> Reading: ...
