"""Service: one prediction from body to answer, without HTTP and without an event loop."""

from typing import Any

from restnet_runtime.batching import Batcher
from restnet_runtime.budget import Budget
from restnet_runtime.controller import Controller
from restnet_runtime.deadline import Deadline
from restnet_runtime.executor import Executor
from restnet_runtime.inference import Answered, Inference
from restnet_runtime.payload import BodyKind, PayloadReader
from restnet_runtime.predictions import Scored, best_classes
from restnet_runtime.preprocess import Preprocessor
from restnet_runtime.schemas import BatchAnswer, ClassScore, PredictAnswer, Prediction
from restnet_runtime.settings import ServeSettings


class PredictService:
    """Answers prediction requests. Thread safe; every call blocks, so call it off the event loop."""

    def __init__(
        self,
        executor: Executor,
        controller: Controller,
        settings: ServeSettings,
        batcher: Batcher | None = None,
        answered: Answered | None = None,
    ) -> None:
        """batcher: what runs requests together; by default each runs by itself. answered: as `Inference` has it."""
        manifest = executor.bundle.manifest
        self._inference = Inference(executor, controller, batcher or Batcher(executor), strict=settings.strict, answered=answered)
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
        deadline: Deadline | None = None,
    ) -> PredictAnswer | BatchAnswer:
        """Decode, decide, run, rank.

        budget and top_k are what came beside the body; the body's own budget narrows further, its own top_k goes first.
        arrived_s: when it came, by `time.perf_counter`: what it has waited since counts towards its latency limit.
        deadline: as `Inference.run` has it
        Raises `RequestError` and its kin for what cannot be used, `UnitError` for a budget that cannot be read, and in
        strict mode or under a floor of accuracy `InfeasibleError` when no route fits; in any mode while no route is loaded.
        """
        payload, logits, verdict = self._inference.run(lambda: self._reader.read(kind, content_type, body), budget, arrived_s, deadline)
        best = best_classes(logits, self._classes, payload.top_k or top_k or self._settings.top_k)
        if payload.single:
            return PredictAnswer(**vars(verdict), **_prediction(best[0]))
        return BatchAnswer(**vars(verdict), predictions=[Prediction(**_prediction(row)) for row in best])


def _prediction(best: list[Scored]) -> dict[str, Any]:
    top = [ClassScore(name=scored.name, index=scored.index, probability=round(scored.probability, 6)) for scored in best]
    return {**dict(top[0]), "top": top}
