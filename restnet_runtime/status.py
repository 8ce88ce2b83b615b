"""Status: what the server says about itself, its budget and its routes."""

import platform
from importlib.metadata import version

from restnet_runtime import __version__
from restnet_runtime.schemas import (
    BudgetAnswer,
    BudgetLimits,
    BundleAnswer,
    DecisionAnswer,
    QueueAnswer,
    RouteAnswer,
    RouteCounts,
    RoutesAnswer,
    StatusAnswer,
)
from restnet_runtime.service import ControllerLike, ExecutorLike

_PACKAGES = ("fastapi", "numpy", "onnxruntime", "pillow", "uvicorn")


def describe_budget(controller: ControllerLike) -> BudgetAnswer:
    """The standing budget, and what was decided under it."""
    return BudgetAnswer(budget=BudgetLimits.of(controller.budget), decision=_decision(controller))


def describe_routes(executor: ExecutorLike) -> RoutesAnswer:
    """The routes of the bundle, cheapest first."""
    loaded, current = executor.loaded, _current(executor)
    routes = [
        RouteAnswer(
            name=route.name,
            macs=route.macs,
            params=route.params,
            weight_bytes=route.weight_bytes,
            accuracy=route.accuracy,
            on_front=route.on_front,
            loaded=route.name in loaded,
            current=route.name == current,
        )
        for route in sorted(executor.bundle.routes, key=lambda route: (route.macs, route.name))
    ]
    return RoutesAnswer(routes=routes)


def describe_server(executor: ExecutorLike, controller: ControllerLike, queue: QueueAnswer) -> StatusAnswer:
    """What is served, under which budget, and how the device is doing."""
    bundle = executor.bundle
    return StatusAnswer(
        version=__version__,
        bundle=BundleAnswer(
            name=bundle.manifest.name,
            digest=bundle.digest,
            task=bundle.manifest.task,
            classes=len(bundle.manifest.classes),
            input_shape=bundle.manifest.input.shape,
        ),
        routes=RouteCounts(known=len(bundle.routes), loaded=list(executor.loaded)),
        current=_current(executor),
        budget=BudgetLimits.of(controller.budget),
        decision=_decision(controller),
        controller=controller.status(),
        queue=queue,
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    )


def _current(executor: ExecutorLike) -> str | None:
    return executor.current.name if executor.loaded else None


def _decision(controller: ControllerLike) -> DecisionAnswer | None:
    decision = controller.decision
    if decision is None:
        return None
    return DecisionAnswer(route=decision.route, feasible=decision.feasible, reason=decision.reason, limits=BudgetLimits.of(decision.limits))
