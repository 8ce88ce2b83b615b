"""Status: what the server says about itself, its budget and its routes."""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING

from restnet_runtime import __version__
from restnet_runtime.batching import Batcher
from restnet_runtime.controller import Controller
from restnet_runtime.executor import Executor
from restnet_runtime.front import outdone
from restnet_runtime.loader import Progress
from restnet_runtime.policy import Decision
from restnet_runtime.schemas import (
    BatchingAnswer,
    BudgetAnswer,
    BudgetLimits,
    BundleAnswer,
    DecisionAnswer,
    MemoryAnswer,
    ModelAnswer,
    PinAnswer,
    ProfileAnswer,
    QueueAnswer,
    ReadingAnswer,
    RouteAnswer,
    RouteCounts,
    RoutesAnswer,
    SessionsAnswer,
    StatusAnswer,
    SwitchAnswer,
    UpdateAnswer,
    UpdateStepAnswer,
)

if TYPE_CHECKING:
    from restnet_runtime.updates import Updates

_PACKAGES = ("fastapi", "numpy", "onnxruntime", "pillow", "uvicorn")


def describe_budget(controller: Controller) -> BudgetAnswer:
    """The standing budget, and what was decided under it."""
    status = controller.status()
    return BudgetAnswer(budget=BudgetLimits.of(status.budget), decision=_decision(status.decision))


def describe_pin(controller: Controller) -> PinAnswer:
    """The pinned route, if one is, and what was decided."""
    status = controller.status()
    return PinAnswer(pin=status.pin, decision=_decision(status.decision))


def describe_routes(executor: Executor, progress: Progress | None = None) -> RoutesAnswer:
    """The routes of the bundle, cheapest first. progress: of the loader, which knows which profiles can be believed."""
    loaded, current = executor.loaded, _current(executor)
    verdicts = _verdicts(executor) if progress is None else progress.verdicts
    routes = [
        RouteAnswer(
            name=route.name,
            precision=route.precision,
            macs=route.macs,
            params=route.params,
            weight_bytes=route.weight_bytes,
            accuracy=route.accuracy,
            on_front=route.on_front,
            on_front_here=verdicts[route.name] is None if route.name in verdicts else None,
            outdone=verdicts.get(route.name),
            loaded=route.name in loaded,
            current=route.name == current,
            profile=_profile(executor, route.name),
        )
        for route in sorted(executor.bundle.routes, key=lambda route: (route.macs, route.name))
    ]
    return RoutesAnswer(routes=routes)


def describe_server(
    executor: Executor,
    controller: Controller,
    queue: QueueAnswer,
    batcher: Batcher,
    progress: Progress | None = None,
    *,
    read_only: bool = False,
    model: str | None = None,
    models: Sequence[ModelAnswer] = (),
    update: UpdateAnswer | None = None,
) -> StatusAnswer:
    """What is served, under which budget, and how the device is doing. model, models: its name, and all that the server has."""
    bundle, status = executor.bundle, controller.status()
    loaded = [one.loaded_bytes for one in models if one.loaded_bytes is not None]
    return StatusAnswer(
        version=__version__,
        model=model,
        models=list(models),
        bundle=BundleAnswer(
            name=bundle.manifest.name,
            digest=bundle.digest,
            task=bundle.manifest.task,
            classes=len(bundle.manifest.classes),
            input_shape=bundle.manifest.input.shape,
        ),
        memory=MemoryAnswer(overhead_bytes=executor.overhead_bytes, loaded_bytes=sum(loaded)) if loaded else None,
        routes=RouteCounts(
            known=len(bundle.routes),
            loaded=list(executor.loaded),
            loading=progress.loading if progress else None,
            compiled=progress.compiled if progress else 0,
            failed_compiles=progress.failed_compiles if progress else 0,
            left_out=list(progress.left_out) if progress else [],
            outdone=progress.outdone if progress else {},
            failed=progress.failed if progress else {},
        ),
        sessions=SessionsAnswer(
            threads=executor.settings.threads,
            route_threads=executor.threads,
            spin_us=executor.settings.spin_us,
            providers=list(executor.settings.providers.names),
            levels=executor.levels,
            notes=list(executor.notes),
        ),
        current=_current(executor),
        budget=BudgetLimits.of(status.budget),
        decision=_decision(status.decision),
        wanted=status.wanted,
        pin=status.pin,
        reading=None if status.reading is None else ReadingAnswer(**asdict(status.reading)),
        switched=status.switched,
        switches=[SwitchAnswer(**asdict(switch)) for switch in status.switches],
        problem=status.problem,
        read_only=read_only,
        controlling=status.running,
        update=update,
        queue=queue,
        batching=_batching(batcher),
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    )


def describe_update(updates: "Updates", model: str) -> UpdateAnswer:
    """How updates of a model went."""
    running = updates.running(model)
    trial = None if running is None else running.trial
    steps = [UpdateStepAnswer(**asdict(step)) for step in updates.steps(model)]
    answered = None if trial is None else trial.answered
    return UpdateAnswer(path=str(updates.path(model)), running=running is not None, answered=answered, steps=steps)


def _verdicts(executor: Executor) -> dict[str, str | None]:
    """Where no loader judges: what the profiles say as they are."""
    profiles = [(route, executor.profile(route.name)) for route in executor.bundle.routes]
    known = [(route, profile) for route, profile in profiles if profile is not None]
    found = outdone(known)
    return {route.name: found[route.name].reason if route.name in found else None for route, _ in known}


def _current(executor: Executor) -> str | None:
    current = executor.current
    return None if current is None else current.name


def _batching(batcher: Batcher) -> BatchingAnswer:
    settings, counts = batcher.settings, batcher.counts()
    return BatchingAnswer(
        mode=settings.mode,
        max_batch=settings.max_batch,
        max_wait_ms=settings.max_wait_ms,
        requests=counts.requests,
        batched=counts.shared,
        runs=counts.runs,
        mean_batch=round(counts.requests / counts.runs, 2) if counts.runs else None,
    )


def _profile(executor: Executor, route: str) -> ProfileAnswer | None:
    profile = executor.profile(route)
    return None if profile is None else ProfileAnswer(**asdict(profile))


def _decision(decision: Decision | None) -> DecisionAnswer | None:
    if decision is None:
        return None
    limits = BudgetLimits.of(decision.limits)
    return DecisionAnswer(route=decision.route, feasible=decision.feasible, reason=decision.reason, limits=limits)
