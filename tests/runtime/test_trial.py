"""Entries and trials: which one runs a request, whatever is swapped meanwhile; and what is watched."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from restnet_runtime.api import create_app
from restnet_runtime.budget import Budget
from restnet_runtime.bundle_watch import BundleWatch, stamp_of
from restnet_runtime.controller import Controller
from restnet_runtime.errors import BusyError, CompileError, ExpiredError, InfeasibleError, InputError, UnitError
from restnet_runtime.executor import Executor
from restnet_runtime.models import Backend, Entry, Models
from restnet_runtime.pool import Pool
from restnet_runtime.reading import Reading
from restnet_runtime.settings import ServeSettings
from restnet_runtime.trial import Trial, TrialSettings


class SteadyDevice:
    def read(self) -> Reading:
        return Reading()


@pytest.fixture
def models(executor: Executor) -> Models:
    controller = Controller(executor, SteadyDevice())
    controller.tick()
    models: Models = create_app(Backend(executor, controller), ServeSettings()).state.models
    return models


def logits(entry: Entry, _: float) -> np.ndarray:
    """Really run."""
    return entry.backend.executor.run(np.zeros((1, 1, 8, 8), np.float32)).logits


@pytest.fixture
def on_trial(models: Models) -> tuple[Entry, Entry, Trial]:
    """The old entry, the new one that is on trial for three answers, and the trial."""
    new, old = models.make("shapes", models.default.backend), models.default
    new.trial = Trial(old, TrialSettings(3, 30.0), lambda: models.put(old))
    assert models.put(new) is old
    return old, new, new.trial


def fail_on(broken: Entry, error: Exception) -> Callable[[Entry, float], str]:
    def work(entry: Entry, _: float) -> str:
        if entry is broken:
            raise error
        return "answered"

    return work


def test_answers_end_a_trial_and_the_old_one_is_not_touched(models: Models, on_trial: tuple[Entry, Entry, Trial]) -> None:
    _, new, trial = on_trial
    for count in range(3):
        assert trial.answered == count
        assert new.run(logits, 0.0).shape == (1, 3)
    assert trial.wait()
    assert models.default is new
    assert trial.error is None


def test_request_that_fails_is_answered_by_the_old_one_which_serves_again(models: Models, on_trial: tuple[Entry, Entry, Trial]) -> None:
    old, new, trial = on_trial
    assert new.run(fail_on(new, CompileError("broken")), 0.0) == "answered"
    assert models.default is old  # at once, for the next request
    assert new.run(fail_on(new, ValueError("again")), 0.0) == "answered"  # one that had begun on the new one
    assert not trial.wait()
    assert trial.error == "broken"
    assert old.in_flight == 0


def test_where_the_old_one_fails_too_the_error_is_told(on_trial: tuple[Entry, Entry, Trial]) -> None:
    _, new, trial = on_trial

    def work(entry: Entry, _: float) -> None:
        raise CompileError(f"of {'new' if entry is new else 'old'}")

    with pytest.raises(CompileError, match="of old"):
        new.run(work, 0.0)
    assert trial.error == "of new"


@pytest.mark.parametrize("error", [InputError("shape"), UnitError("budget"), ExpiredError("late"), InfeasibleError("budget too small")])
def test_what_clients_and_operators_do_says_nothing_against_a_bundle(on_trial: tuple[Entry, Entry, Trial], error: Exception) -> None:
    _, new, trial = on_trial
    with pytest.raises(type(error)):
        new.run(fail_on(new, error), 0.0)
    assert trial.error is None
    assert trial.answered == 0


def test_bundle_without_a_loaded_route_has_failed(on_trial: tuple[Entry, Entry, Trial], executor: Executor) -> None:
    _, new, trial = on_trial
    executor.close()
    assert new.run(fail_on(new, InfeasibleError("no route is loaded yet")), 0.0) == "answered"
    assert trial.error == "no route is loaded yet"


def test_failure_after_the_trial_is_an_error_like_any_other(models: Models, on_trial: tuple[Entry, Entry, Trial]) -> None:
    _, new, trial = on_trial
    for _ in range(3):
        new.run(logits, 0.0)
    assert trial.wait()
    with pytest.raises(CompileError):
        new.run(fail_on(new, CompileError("late")), 0.0)
    assert models.default is new


def test_time_ends_a_trial_and_whoever_gives_up_does(models: Models) -> None:
    old = models.default
    assert Trial(old, TrialSettings(3, 0.01), lambda: None).wait()
    restored: list[bool] = []
    trial = Trial(old, TrialSettings(3, 60.0), lambda: restored.append(True))
    assert not trial.wait(lambda: True)
    assert restored == [True]
    assert trial.error == "the server ends"


def test_retired_entry_waits_for_its_requests_and_sends_later_ones_on(models: Models) -> None:
    old, new = models.default, models.make("shapes", models.default.backend)
    running = old.enter()
    assert running is old
    assert not old.retire(new, 0.01)
    assert old.enter() is new
    new.leave()
    threading.Timer(0.1, running.leave).start()
    started = time.monotonic()
    assert old.retire(new, 60.0)
    assert time.monotonic() - started < 50
    assert (old.in_flight, new.in_flight) == (0, 0)


def test_place_that_follows_another_comes_where_it_was() -> None:
    class Tenant:
        def __init__(self, name: str) -> None:
            self.name = name

    pool = Pool()
    places = {name: pool.place() for name in ("a", "b", "new")}
    for name, place in places.items():
        place.tenant = Tenant(name)  # type: ignore[assignment]
        pool.enter(place)
    places["new"].follow(places["a"])
    assert [one.name for one in pool.tenants] == ["new", "b", "a"]


def test_controller_knows_the_routes_of_its_bundle(executor: Executor) -> None:
    controller = Controller(executor, SteadyDevice(), Budget())
    assert [controller.knows(name) for name in ("large", "none", None)] == [True, False, True]


class Begun:
    """Stands for the updates of a server. busy: another one is under way."""

    def __init__(self, path: Path) -> None:
        self.begun: list[str] = []
        self.busy = False
        self._path = path

    def path(self, _: str) -> Path:
        return self._path

    def begin(self, name: str) -> None:
        if self.busy:
            raise BusyError("another")
        self.begun.append(name)


def test_watch_begins_once_for_each_bundle_that_has_come_to_rest(own_family: Callable[..., Path], tmp_path: Path) -> None:
    path = own_family()
    updates = Begun(path)
    watch = BundleWatch(updates, {"shapes": stamp_of(path)}, 60.0)  # type: ignore[arg-type]
    for _ in range(3):
        watch.look()
    assert updates.begun == []
    (path / "manifest.json").write_text("{}")
    watch.look()
    assert updates.begun == []  # it may still be written
    (path / "manifest.json").write_text("{ }")
    watch.look()
    assert updates.begun == []
    watch.look()
    watch.look()
    assert updates.begun == ["shapes"]
    path.rename(tmp_path / "away")
    assert stamp_of(path) is None
    watch.look()
    watch.look()
    (tmp_path / "away").rename(path)
    watch.look()
    watch.look()
    assert updates.begun == ["shapes"]  # the same again
    updates.busy = True
    (path / "manifest.json").write_text("{  }")
    for _ in range(3):
        watch.look()
    updates.busy = False
    watch.look()
    assert updates.begun == ["shapes", "shapes"]
