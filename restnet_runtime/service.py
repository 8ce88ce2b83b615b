"""Service: one prediction from body to answer, without HTTP and without an event loop."""

import time
from typing import Any

from restnet_runtime.batching import Batched, Batcher
from restnet_runtime.budget import Budget
from restnet_runtime.controller import Controller
from restnet_runtime.errors import InfeasibleError
from restnet_runtime.executor import Executor
from restnet_runtime.payload import BodyKind, PayloadReader
from restnet_runtime.policy import Decision
from restnet_runtime.predictions import Scored, best_classes
from restnet_runtime.preprocess import Preprocessor
from restnet_runtime.schemas import BatchAnswer, ClassScore, PredictAnswer, Prediction
from restnet_runtime.settings import ServeSettings
from restnet_runtime.units import format_ms

_HAND_OVER_MS = 1.0  # up to here a request has not waited for others, but for a thread to wake up


class PredictService:
    """Answers prediction requests. Thread safe; every call blocks, so call it off the event loop."""

    def __init__(self, executor: Executor, controller: Controller, settings: ServeSettings, batcher: Batcher | None = None) -> None:
        """batcher: what runs requests together; by default each runs by itself."""
        manifest = executor.bundle.manifest
        self._executor = executor
        self._batcher = batcher or Batcher(executor)
        self._controller = controller
        self._settings = settings
        self._classes = manifest.classes
        preprocessor = Preprocessor(manifest.preprocessing, manifest.input.shape, max_pixels=settings.max_pixels)
        self._reader = PayloadReader(preprocessor, settings.max_batch)

    def predict(
        self,
        kind: BodyKind,
        content_type: str,
        body: bytes,
        *,
        top_k: int | None = None,
        budget: Budget | None = None,
        arrived_s: float | None = None,
    ) -> PredictAnswer | BatchAnswer:
        """Decode, decide, run, rank.

        budget and top_k are what came beside the body; the body's own budget narrows further, its own top_k goes first.
        arrived_s: when it came, by `time.perf_counter`: what it has waited since counts towards its latency limit.
        Raises `RequestError` and its kin for what cannot be used, `UnitError` for a budget that cannot be read, and in
        strict mode or under a floor of accuracy `InfeasibleError` when no route fits; in any mode while no route is loaded.
        """
        begun_s = time.perf_counter()
        waited_ms = 0.0 if arrived_s is None else (begun_s - arrived_s) * 1e3
        waited_ms = waited_ms if waited_ms >= _HAND_OVER_MS else 0.0
        if self._executor.current is None:
            raise InfeasibleError("no route is loaded yet")
        with self._batcher.attend() as run:
            payload = self._reader.read(kind, content_type, body)

            def answered(decision: Decision) -> Batched:
                if (self._settings.strict or decision.refused) and not decision.feasible:
                    raise InfeasibleError(_refusal(decision))
                return run(payload.inputs, decision.route, decision.limits.latency_ms)

            limits = payload.budget.narrowed(budget or Budget())
            decision, batched = self._controller.run_decided(limits, answered, waited_ms)
        answer = batched.answer
        if len(payload.inputs) == batched.size == 1:  # what profiles are of
            around_ms = (time.perf_counter() - begun_s) * 1e3 - answer.latency_ms - batched.queued_ms
            self._controller.observe(answer.route.name, answer.latency_ms, around_ms)
        served = {
            "route": answer.route.name,
            "macs": answer.route.macs,
            "latency_ms": round(answer.latency_ms, 3),  # microseconds: more digits are noise
            **_budget_fields(decision, answer.latency_ms / len(payload.inputs), batched.queued_ms + waited_ms),
        }
        best = best_classes(answer.logits, self._classes, payload.top_k or top_k or self._settings.top_k)
        if payload.single:
            return PredictAnswer(**served, **_prediction(best[0]))
        return BatchAnswer(**served, predictions=[Prediction(**_prediction(row)) for row in best])


def _refusal(decision: Decision) -> str:
    """Why no route fits. The decision's own reason says first that its route serves, which is not so here."""
    broken = decision.reason.partition(": ")[2]
    floor = " (below the floor of accuracy none is tried)" if decision.refused else ""
    return f"no route fits the budget ({decision.limits}): {decision.route} would have {broken}{floor}"


def _budget_fields(decision: Decision, run_ms: float, queued_ms: float) -> dict[str, Any]:
    """Whether the budget was met, as predicted and, for latency, as measured: per input, and with what was waited."""
    limit, latency_ms = decision.limits.latency_ms, run_ms + queued_ms
    if not decision.feasible:
        reason = decision.reason
    elif limit is not None and latency_ms > limit:
        waiting = f" ({format_ms(queued_ms)} of it waiting)" if queued_ms >= 0.1 else ""
        reason = f"it took {format_ms(latency_ms)} per input{waiting}, and the limit is {format_ms(limit)}"
    else:
        return {"budget_met": True}
    return {"budget_met": False, "budget": str(decision.limits), "reason": reason}


def _prediction(best: list[Scored]) -> dict[str, Any]:
    top = [ClassScore(name=scored.name, index=scored.index, probability=round(scored.probability, 6)) for scored in best]
    return {**dict(top[0]), "top": top}
