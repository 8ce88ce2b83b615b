"""The models of a server: which bundle answers to which name, and what serves it. The one place that a bundle is swapped in.

A request takes its `Entry` and keeps it while it runs: what is put in its place meanwhile serves the next. Only where that entry was
retired before it began, or fails while it is on trial, another one runs it.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from restnet_runtime.batching import Batcher
from restnet_runtime.controller import Controller
from restnet_runtime.errors import ModelError
from restnet_runtime.executor import Executor
from restnet_runtime.inference import Answered
from restnet_runtime.loader import Progress
from restnet_runtime.pool import Place
from restnet_runtime.schemas import ModelAnswer
from restnet_runtime.service import PredictService
from restnet_runtime.settings import ServeSettings
from restnet_runtime.trial import Trial, is_fault
from restnet_runtime.v2_model import Model

if TYPE_CHECKING:
    from restnet_runtime.engine import Engine

T = TypeVar("T")
NOT_READY = "no route is loaded yet"


@dataclass(frozen=True)
class Backend:
    """What runs the routes of one bundle; whoever made it starts and stops it.

    batcher:   what runs requests together; by default each runs by itself
    progress:  how far its loader is
    place:     in the pool of the process
    """

    executor: Executor
    controller: Controller
    batcher: Batcher = None  # type: ignore[assignment]  # made below
    progress: Callable[[], Progress | None] = lambda: None
    place: Place | None = None

    @classmethod
    def of(cls, engine: "Engine") -> "Backend":
        return cls(engine.executor, engine.controller, engine.batcher, engine.loader.progress, engine.place)

    def __post_init__(self) -> None:
        if self.batcher is None:
            object.__setattr__(self, "batcher", Batcher(self.executor))


@dataclass(eq=False)
class Entry:
    """One model: a backend, and what answers for it on either set of paths.

    service, protocol:  of `/predict`, and of the Open Inference Protocol
    in_flight:          its requests that wait or run
    trial:              while it is on trial in place of an older one
    """

    name: str
    backend: Backend
    service: PredictService
    protocol: Model
    in_flight: int = field(default=0)
    trial: Trial | None = None
    _moved: "Entry | None" = field(default=None, repr=False)
    _gate: threading.Condition = field(default_factory=threading.Condition, repr=False)  # guards in_flight and _moved

    def enter(self) -> "Entry":
        """Begin a request, which `leave` ends: here, or where requests go since this was retired."""
        with self._gate:
            moved = self._moved
            if moved is None:
                self.in_flight += 1
                return self
        return moved.enter()

    def leave(self) -> None:
        with self._gate:
            self.in_flight -= 1
            self._gate.notify_all()

    def run(self, work: "Callable[[Entry, float], T]", arrived_s: float) -> T:
        """`work` on this entry, between `enter` and `leave`; where it fails and is on trial, on that which serves in its place then."""
        trial = self.trial
        if trial is None:
            return work(self, arrived_s)
        try:
            answer = work(self, arrived_s)
        except Exception as error:
            before = trial.note_failure(error) if is_fault(error, self.ready) else None
            if before is None:
                raise
            entry = before.enter()
            try:
                return entry.run(work, arrived_s)
            finally:
                entry.leave()
        trial.note_answer()
        return answer

    def retire(self, moved: "Entry", timeout_s: float) -> bool:
        """Send what comes here to `moved`, and wait for what runs. Returns whether nothing runs here any more."""
        with self._gate:
            self._moved = moved
            return self._gate.wait_for(lambda: self.in_flight == 0, timeout_s)

    @property
    def ready(self) -> bool:
        """Is at least one route loaded?"""
        return bool(self.backend.executor.loaded)

    @property
    def unready_reason(self) -> str:
        """Why it is not, for people."""
        place = self.backend.place
        return (None if place is None else place.resting) or NOT_READY

    @property
    def loaded_bytes(self) -> int | None:
        """What its loaded routes are predicted to add to the process; `None` where nobody loads them."""
        place = self.backend.place
        return None if place is None or place.tenant is None else place.tenant.loaded_bytes

    @property
    def reserved_bytes(self) -> int | None:
        """What it may take of the memory that the models share; `None` for one model, or without a limit."""
        return None if self.backend.place is None else self.backend.place.reserved_bytes

    def describe(self) -> ModelAnswer:
        """The model in a list of them."""
        executor, ready = self.backend.executor, self.ready
        return ModelAnswer(
            name=self.name,
            digest=executor.bundle.digest,
            ready=ready,
            reason=None if ready else self.unready_reason,
            current=None if executor.current is None else executor.current.name,
            in_flight=self.in_flight,
            loaded_bytes=self.loaded_bytes,
            reserved_bytes=self.reserved_bytes,
        )


class Models:
    """The models by name, in the order in which they were given; the first is the default. Looked up from the event loop and workers."""

    def __init__(self, backends: Mapping[str, Backend], settings: ServeSettings, answered: Callable[[str], Answered]) -> None:
        """answered: gives what is told of each answered request of a model, by its name."""
        if not backends:
            raise ModelError("no model is given: give at least one bundle")
        self._settings, self._answered = settings, answered
        self._entries = {name: self._enter(name, backend) for name, backend in backends.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    @property
    def default(self) -> Entry:
        """The model that is meant where none is named."""
        return next(iter(self._entries.values()))

    def find(self, name: str | None = None) -> Entry:
        """The model of that name, the default one without. Raises `ModelError` that lists the names."""
        if name is None:
            return self.default
        entry = self._entries.get(name)
        if entry is None:
            raise ModelError(f"there is no model {name[:60]!r} here: there is {', '.join(self._entries)}")
        return entry

    def make(self, name: str, backend: Backend) -> Entry:
        """An entry of a model, which serves nothing until it is put in."""
        return self._enter(name, backend)

    def put(self, entry: Entry) -> Entry:
        """Let another entry serve its model from the next request on; that which was there, whose requests may still run.

        Raises `ModelError` for a name that there is not.
        """
        before = self.find(entry.name)
        self._entries[entry.name] = entry  # one assignment: a request finds the one or the other
        return before

    def replace(self, name: str, backend: Backend) -> Entry:
        """`make` and `put` in one. Raises `ModelError` for a name that there is not."""
        self.find(name)
        return self.put(self.make(name, backend))

    def _enter(self, name: str, backend: Backend) -> Entry:
        answered, settings = self._answered(name), self._settings
        service = PredictService(backend.executor, backend.controller, settings, backend.batcher, answered)
        protocol = Model(name, backend.executor, backend.controller, settings, backend.batcher, answered)
        entry = Entry(name, backend, service, protocol)
        backend.controller.watch_queue(lambda: entry.in_flight)
        return entry

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)
