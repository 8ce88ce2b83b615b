"""A trial: a model's new bundle serves while the old one is kept, until it has answered enough, or has failed once."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from restnet_runtime.errors import ExpiredError, InfeasibleError, RequestError, UnitError

if TYPE_CHECKING:
    from restnet_runtime.models import Entry

_CLIENTS = (RequestError, UnitError, ExpiredError)
"""What went wrong because of the request: it says nothing about the bundle."""


@dataclass(frozen=True)
class TrialSettings:
    """requests: that the new bundle has to answer; seconds: after which it is trusted even if fewer came."""

    requests: int = 20
    seconds: float = 60.0


class Trial:
    """Thread safe. The requests of the new bundle report here; whoever began it waits for the end."""

    def __init__(self, before: "Entry", settings: TrialSettings, restore: Callable[[], object]) -> None:
        """restore: lets `before` serve again; called once, by the request that fails."""
        self._before, self._settings, self._restore = before, settings, restore
        self._over = threading.Event()
        self._lock = threading.Lock()  # guards all below
        self._answered = 0
        self._accepted = False
        self._error: str | None = None

    @property
    def answered(self) -> int:
        """Requests that the new bundle has answered."""
        return self._answered

    @property
    def error(self) -> str | None:
        """Why the old bundle serves again; `None` while it does not."""
        return self._error

    def note_answer(self) -> None:
        with self._lock:
            self._answered += 1
            if self._answered >= self._settings.requests:
                self._over.set()

    def note_failure(self, error: Exception) -> "Entry | None":
        """What serves instead, once more with the same request; `None` where that is nothing: the trial was passed before."""
        with self._lock:
            if self._accepted:
                return None
            if self._error is None:
                self._error = str(error) or repr(error)
                self._restore()
                self._over.set()
            return self._before

    def wait(self, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Whether it was passed. given_up: looked at meanwhile; once it is true the old bundle serves again."""
        left_s = self._settings.seconds
        while left_s > 0 and not self._over.wait(min(left_s, 0.25)):
            left_s -= 0.25
            if given_up():
                self.note_failure(InfeasibleError("the server ends"))
        with self._lock:
            self._accepted = self._error is None
            return self._accepted


def is_fault(error: Exception, ready: bool) -> bool:
    """Does an error speak against the bundle? ready: one of its routes is loaded."""
    if isinstance(error, InfeasibleError):
        return not ready  # a budget that no route fits is the operator's
    return not isinstance(error, _CLIENTS)
