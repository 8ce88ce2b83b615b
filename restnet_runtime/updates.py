"""Updates: the bundles of a running server replaced, each in the background and between two requests.

    verifying   every file of the new bundle, its signature if one is required, and what clients rely on (`interface.py`)
    loading     compiled and loaded beside the old one, within the memory that the pool leaves; the old one makes room for it, no further
                than to its cheapest route
    trial       it serves; the old one is kept until it has answered some requests, or some time has passed (`trial.py`)
    accepted, returned (it failed: the old one serves again), refused, unchanged (it is the one that serves)

One at a time in a process: what it takes, processor and memory, is taken once.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from restnet_runtime.bundle import open_bundle
from restnet_runtime.controller import Controller
from restnet_runtime.distrust import Distrust
from restnet_runtime.engine import Engine
from restnet_runtime.engines import Engines
from restnet_runtime.errors import BusyError, NotLoadedError, RestnetError, UpdateError
from restnet_runtime.interface import breaks
from restnet_runtime.models import Backend, Entry, Models
from restnet_runtime.noise import noise
from restnet_runtime.trial import Trial, TrialSettings
from restnet_runtime.update_steps import OUTCOMES, State, UpdateStep

if TYPE_CHECKING:
    from restnet_runtime.budget import Budget
    from restnet_runtime.signatures import Keyring

log = logging.getLogger(__name__)

_LOOK_S = 0.05
_RESTING_S = 2.0
"""For so long there has to be no room before that is believed."""
_DRAIN_S = 120.0


@dataclass(frozen=True)
class UpdateSettings:
    """keys: of which one must have signed a bundle; load_s: how long a bundle may take to be ready."""

    trial: TrialSettings = field(default_factory=TrialSettings)
    keys: "Keyring | None" = None
    load_s: float = 3600.0


class Update:
    """One that is under way or over. `decided` is set once the new bundle serves, or will not."""

    def __init__(self, name: str, other_interface: bool) -> None:
        self.name, self.other_interface = name, other_interface
        self.decided = threading.Event()
        self.digest: str | None = None
        self.last: UpdateStep | None = None
        self.trial: Trial | None = None


class Updates:
    """Of the models of one server. Thread safe. `serve` before anything is begun; `close` ends what is under way."""

    def __init__(
        self,
        engines: Engines,
        paths: Mapping[str, Path],
        open_engine: "Callable[[str, Path, Budget, str | None], Engine]",
        settings: UpdateSettings | None = None,
        distrust: Distrust | None = None,
    ) -> None:
        """paths: of each model's bundle, read anew each time. open_engine: opens name, path, budget, pin in the pool of the others.

        distrust: told of each bundle that failed on trial, and of those that proved themselves
        """
        self._engines, self._paths, self._open = engines, dict(paths), open_engine
        self._settings, self._distrust = settings or UpdateSettings(), distrust
        self._models: Models | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()  # guards all below
        self._running: tuple[Update, threading.Thread] | None = None
        self._steps: dict[str, deque[UpdateStep]] = {name: deque(maxlen=32) for name in paths}
        self._outcomes: dict[str, dict[str, int]] = {name: dict.fromkeys(OUTCOMES, 0) for name in paths}
        self._number = 0

    def serve(self, models: Models) -> None:
        """What requests find their models in."""
        self._models = models

    def path(self, name: str) -> Path:
        return self._paths[name]

    def steps(self, name: str) -> tuple[UpdateStep, ...]:
        """The latest of a model, the oldest first."""
        with self._lock:
            return tuple(self._steps[name])

    def outcomes(self, name: str) -> dict[str, int]:
        """How many updates of a model ended how."""
        with self._lock:
            return dict(self._outcomes[name])

    def running(self, name: str) -> Update | None:
        """The update of a model that is under way."""
        with self._lock:
            return self._running[0] if self._running is not None and self._running[0].name == name else None

    def begin(self, name: str, *, other_interface: bool = False) -> Update:
        """Begin to replace a model's bundle by what lies at its path now. Raises `BusyError` while another update is under way."""
        update = Update(name, other_interface)
        thread = threading.Thread(target=self._run, args=(update,), name="restnet-update", daemon=True)
        with self._lock:
            if self._closing.is_set():
                raise BusyError("the server ends")
            if self._running is not None:
                raise BusyError(f"an update of {self._running[0].name} is under way: {_latest(self._steps[self._running[0].name])}")
            self._running = update, thread
        thread.start()
        return update

    def halt(self) -> None:
        """Begin nothing more, and break off what is under way; from any thread, also from a signal handler."""
        self._closing.set()

    def close(self) -> None:
        """Break off what is under way, and wait for it; the old bundle is then the one that serves."""
        self.halt()
        with self._lock:
            running = self._running
        if running is not None:
            running[1].join()

    def _run(self, update: Update) -> None:
        try:
            self._replace(update)
        except (RestnetError, OSError) as error:
            self._tell(update, "refused", str(error))
        except Exception as error:  # whatever it is, the old bundle serves on
            log.exception("the update of %s failed", update.name)
            self._tell(update, "refused", repr(error))
        finally:
            with self._lock:
                self._running = None
            update.decided.set()

    def _replace(self, update: Update) -> None:
        assert self._models is not None
        before, path = self._models.find(update.name), self._paths[update.name]
        old = before.backend
        self._tell(update, "verifying", f"{path} is read")
        bundle = open_bundle(path, keys=self._settings.keys)
        update.digest = bundle.digest
        if bundle.digest == old.executor.bundle.digest and old.executor.current is not None:
            self._tell(update, "unchanged", f"{path} is the bundle that serves")
            return
        broken = breaks(old.executor.bundle.manifest, bundle.manifest)
        if broken is not None and not update.other_interface:
            raise UpdateError(f"{path}: {broken}, and clients would not understand")
        names = [route.name for route in bundle.routes]
        pin = old.controller.pin if old.controller.pin in names else None
        self._tell(update, "loading", f"{len(names)} routes beside those that serve")
        engine = self._open(update.name, path, old.controller.budget, pin)
        served = False
        try:
            if engine.executor.bundle.digest != bundle.digest:
                raise UpdateError(f"{path}: was replaced once more while it was read")
            engine.start()
            self._await_ready(engine)
            _check_answers(engine)
            served = self._try_out(update, before, engine)
        finally:
            if not served:
                engine.stop()

    def _await_ready(self, engine: Engine) -> None:
        """Until the route that the budget asks for is loaded, or as good a one as there is room for."""
        began_s, rests_since_s = time.monotonic(), None
        while True:
            now_s, resting = time.monotonic(), engine.place.resting
            executor, progress = engine.executor, engine.loader.progress()
            rests_since_s = None if resting is None else now_s if rests_since_s is None else rests_since_s
            if self._closing.is_set():
                raise UpdateError("the server ends")
            if executor.current is not None and (progress.done or engine.controller.wanted in executor.loaded):
                return
            if rests_since_s is not None and now_s - rests_since_s >= _RESTING_S:
                raise UpdateError(f"{resting}; the bundle that serves was taken down to its cheapest route for it")
            if executor.current is None and resting is None and len(progress.failed) == progress.total:
                name, reason = next(iter(progress.failed.items()))
                raise UpdateError(f"no route of it can be loaded: {name}: {reason}")
            if now_s - began_s > self._settings.load_s:
                raise UpdateError(f"it was not ready within {self._settings.load_s:g} s")
            time.sleep(_LOOK_S)

    def _try_out(self, update: Update, before: Entry, engine: Engine) -> bool:
        """Let it serve, and the old one go, or serve again. Returns whether the new one serves."""
        models, trial_settings = self._models, self._settings.trial
        assert models is not None
        entry = models.make(update.name, Backend.of(engine))

        def restore() -> None:
            models.put(before)
            _carry(engine.controller, before.backend.controller)

        trial = update.trial = entry.trial = Trial(before, trial_settings, restore)
        _carry(before.backend.controller, engine.controller)
        models.put(entry)
        self._tell(update, "trial", f"it serves; {trial_settings.requests} answers or {trial_settings.seconds:g} s decide")
        update.decided.set()
        if not trial.wait(self._closing.is_set):
            if not entry.retire(before, _DRAIN_S):
                log.warning("requests still run on the bundle that failed")
            reason = f"after {trial.answered} answers: {trial.error}"
            if self._distrust is not None and trial.error is not None and update.digest is not None:
                self._distrust.note(update.digest, reason)
            self._tell(update, "returned", reason)
            return False
        entry.trial = None
        old_engine = self._engines.put(update.name, engine)
        engine.place.follow(old_engine.place)
        if not before.retire(entry, _DRAIN_S):
            log.warning("requests still run on the old bundle of %s", update.name)
        old_engine.stop()
        if self._distrust is not None and update.digest is not None:
            self._distrust.forget(update.digest)
        self._tell(update, "accepted", f"{trial.answered} requests answered; the old bundle is closed")
        return True

    def _tell(self, update: Update, state: State, reason: str) -> None:
        with self._lock:
            self._number += 1
            step = UpdateStep(self._number, time.time(), update.name, state, update.digest, reason)
            self._steps[update.name].append(step)
            if state in OUTCOMES:
                self._outcomes[update.name][state] += 1
        update.last = step
        facts = {"event": "update", "model": update.name, "state": state, "digest": update.digest, "reason": reason}
        level = logging.WARNING if state in ("returned", "refused") else logging.INFO
        log.log(level, "update of %s: %s: %s", update.name, state, reason, extra={"facts": facts})


def _check_answers(engine: Engine) -> None:
    """Run every loaded route once more on noise. Raises `CompileError` where one fails, `UpdateError` where it answers no numbers."""
    executor = engine.executor
    for name in executor.loaded:
        try:
            executor.warm(name)
            logits = executor.run(noise(executor.bundle), name).logits
        except NotLoadedError:  # released meanwhile
            continue
        if not np.isfinite(logits).all():
            raise UpdateError(f"the route {name!r} answers with {logits.ravel()[:3]}: not all of it are finite numbers")


def _carry(before: Controller, after: Controller) -> None:
    """What an operator has set stays, as far as the other bundle has such a route."""
    if after.budget != before.budget:
        after.budget = before.budget
    if after.pin != before.pin and after.knows(before.pin):
        after.pin = before.pin


def _latest(steps: "deque[UpdateStep]") -> str:
    return f"{steps[-1].state}: {steps[-1].reason}" if steps else "it begins"
