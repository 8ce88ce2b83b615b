"""A resident: a loaded route, its session, and what a measurement of it depends on."""

from dataclasses import dataclass, field

import onnxruntime as ort

from restnet_runtime.catalog import LEVELS, CompiledRoute
from restnet_runtime.levels import Level
from restnet_runtime.routes import Route
from restnet_runtime.sessions import SessionSettings


@dataclass
class Resident:
    """A route that can be switched to now.

    compiled:  what its session has mapped; `None` for a session that holds weights of its own
    settings:  those that it was loaded with
    ran:       whether it has run, that is, whether its weights are in the process
    sizes:     of runs of several inputs that it has had
    """

    route: Route
    session: ort.InferenceSession
    compiled: CompiledRoute | None
    settings: SessionSettings
    ran: bool = False
    sizes: set[int] = field(default_factory=set)

    @property
    def level(self) -> Level:
        """`prepacked` or `mapped`, as it was compiled, or `plain`: weights of its own."""
        return "plain" if self.compiled is None else self.compiled.level

    @property
    def how(self) -> str:
        """All that a measurement of it depends on, beside the device."""
        return how(self.settings, self.level)


def how(settings: SessionSettings, level: Level = LEVELS[0]) -> str:
    """What measurements are kept under: how a route is run, on the level that it is loaded at."""
    parts = [f"{settings.threads} threads", *([] if level == LEVELS[0] else [level])]
    return ", ".join([*parts, *settings.providers.names[:-1]])
