"""Service: one prediction from body to answer, without HTTP and without an event loop."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from restnet_runtime.budget import Budget
from restnet_runtime.bundle import Bundle
from restnet_runtime.errors import InfeasibleError
from restnet_runtime.payload import BodyKind, PayloadReader
from restnet_runtime.predictions import Scored, best_classes
from restnet_runtime.preprocess import Preprocessor
from restnet_runtime.routes import Route
from restnet_runtime.schemas import BatchAnswer, ClassScore, PredictAnswer, Prediction
from restnet_runtime.settings import ServeSettings
from restnet_runtime.units import format_ms


class AnswerLike(Protocol):
    """What the network gave: logits float32 (B, classes), the route that ran, and the time it took."""

    @property
    def logits(self) -> npt.NDArray[np.float32]: ...
    @property
    def route(self) -> Route: ...
    @property
    def latency_ms(self) -> float: ...


class ExecutorLike(Protocol):
    """What serving needs of `executor.Executor`."""

    @property
    def bundle(self) -> Bundle: ...
    @property
    def current(self) -> Route: ...
    @property
    def loaded(self) -> tuple[str, ...]: ...
    def run(self, x: npt.NDArray[np.float32], route: str | None = None) -> AnswerLike: ...


class DecisionLike(Protocol):
    """What serving needs of `policy.Decision`."""

    @property
    def route(self) -> str: ...
    @property
    def feasible(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    @property
    def limits(self) -> Budget: ...


class ControllerLike(Protocol):
    """What serving needs of `controller.Controller`. Setting `budget` decides again at once."""

    budget: Budget

    @property
    def decision(self) -> DecisionLike | None: ...
    def decide_request(self, budget: Budget) -> DecisionLike: ...
    def status(self) -> dict[str, Any]: ...


class PredictService:
    """Answers prediction requests. Thread safe; every call blocks, so call it off the event loop."""

    def __init__(self, executor: ExecutorLike, controller: ControllerLike, settings: ServeSettings) -> None:
        manifest = executor.bundle.manifest
        self._executor = executor
        self._controller = controller
        self._settings = settings
        self._classes = manifest.classes
        self._reader = PayloadReader(Preprocessor(manifest.preprocessing, manifest.input.shape, settings), settings.max_batch)

    def predict(
        self, kind: BodyKind, content_type: str, body: bytes, *, top_k: int | None = None, budget: Budget | None = None
    ) -> PredictAnswer | BatchAnswer:
        """Decode, decide, run, rank.

        budget and top_k are what came beside the body; the body's own budget narrows further, its own top_k goes first.
        Raises `RequestError` and its kin for what cannot be used, `UnitError` for a budget that cannot be read, and in
        strict mode `InfeasibleError` when no route fits.
        """
        payload = self._reader.read(kind, content_type, body)
        limits = payload.budget.narrowed(budget or Budget())
        decision = self._controller.decision if limits == Budget() else self._controller.decide_request(limits)
        if decision is not None and not decision.feasible and self._settings.strict:
            raise InfeasibleError(decision.reason)
        # The decision is read once: whatever is switched from here on, this request keeps its route.
        answer = self._executor.run(payload.inputs, route=None if decision is None else decision.route)
        served = {
            "route": answer.route.name,
            "macs": answer.route.macs,
            "latency_ms": answer.latency_ms,
            **_budget_fields(decision, answer.latency_ms, len(payload.inputs)),
        }
        best = best_classes(answer.logits, self._classes, payload.top_k or top_k or self._settings.top_k)
        if payload.single:
            return PredictAnswer(**served, **_prediction(best[0]))
        return BatchAnswer(**served, predictions=[Prediction(**_prediction(row)) for row in best])


def _budget_fields(decision: DecisionLike | None, latency_ms: float, inputs: int) -> dict[str, Any]:
    if decision is None:
        return {"budget_met": True}
    if not decision.feasible:
        return {"budget_met": False, "budget": str(decision.limits), "reason": decision.reason}
    limit, each = decision.limits.latency_ms, latency_ms / inputs
    if limit is not None and each > limit:
        return {
            "budget_met": False,
            "budget": str(decision.limits),
            "reason": f"it took {format_ms(each)} per input, and the limit is {format_ms(limit)}",
        }
    return {"budget_met": True}


def _prediction(best: list[Scored]) -> dict[str, Any]:
    top = [ClassScore(name=scored.name, index=scored.index, probability=scored.probability) for scored in best]
    return {**dict(top[0]), "top": top}
