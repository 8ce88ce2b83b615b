"""Inference: one request from prepared inputs to logits within its limits, which every interface shares."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from restnet_runtime.batching import Batched, Batcher
from restnet_runtime.budget import Budget
from restnet_runtime.controller import Controller
from restnet_runtime.deadline import Deadline
from restnet_runtime.errors import InfeasibleError
from restnet_runtime.executor import Executor
from restnet_runtime.policy import Decision
from restnet_runtime.units import format_ms

_HAND_OVER_MS = 1.0  # up to here a request has not waited for others, but for a thread to wake up


class Prepared(Protocol):
    """What a request carries once it is decoded.

    inputs:  float32 (B, C, H, W)
    budget:  narrows the standing one for this request
    """

    @property
    def inputs(self) -> npt.NDArray[np.float32]: ...
    @property
    def budget(self) -> Budget: ...


PreparedT = TypeVar("PreparedT", bound=Prepared)


@dataclass(frozen=True)
class Verdict:
    """Which route answered, and whether the budget was met.

    macs:        multiply-accumulates of the route, per input
    latency_ms:  of the network's run, with all that shared it
    budget, reason:  the limits in force, and why they were not met; `None` where they were
    """

    route: str
    macs: int
    latency_ms: float
    budget_met: bool
    budget: str | None = None
    reason: str | None = None


Answered = Callable[[Verdict, int, float], object]


class Inference:
    """Runs requests of one engine. Thread safe; every call blocks, so call it off an event loop."""

    def __init__(
        self, executor: Executor, controller: Controller, batcher: Batcher, *, strict: bool = False, answered: Answered | None = None
    ) -> None:
        """strict: refuse a request when no route fits the budget, rather than overrun it.

        answered: told of each request that was answered: its verdict, how many inputs it had, and seconds since it came
        """
        self._answered = answered
        self._executor = executor
        self._controller = controller
        self._batcher = batcher
        self._strict = strict

    def run(
        self,
        prepare: Callable[[], PreparedT],
        budget: Budget | None = None,
        arrived_s: float | None = None,
        deadline: Deadline | None = None,
    ) -> tuple[PreparedT, npt.NDArray[np.float32], Verdict]:
        """Decode by `prepare`, decide, run: what was decoded, the logits (B, classes), and the verdict.

        budget:     what came beside the body; that of `prepare` narrows further
        arrived_s:  when the request came, by `time.perf_counter`: what it has waited since counts towards its latency limit
        deadline:   `prepare` may narrow it
        Raises what `prepare` does, `ExpiredError` where the deadline passes before it runs, and in strict mode or under a floor of
        accuracy `InfeasibleError` when no route fits; in any mode while no route is loaded.
        """
        begun_s = time.perf_counter()
        arrived_s = begun_s if arrived_s is None else arrived_s
        waited_ms = (begun_s - arrived_s) * 1e3
        waited_ms = waited_ms if waited_ms >= _HAND_OVER_MS else 0.0
        if self._executor.current is None:
            raise InfeasibleError("no route is loaded yet")
        deadline = deadline or Deadline(arrived_s)
        deadline.check()
        with self._batcher.attend() as run:
            prepared = prepare()
            deadline.check()

            def answered(decision: Decision) -> Batched:
                if (self._strict or decision.refused) and not decision.feasible:
                    raise InfeasibleError(_refusal(decision))
                return run(prepared.inputs, decision.route, decision.limits.latency_ms, deadline.expires_s)

            limits = prepared.budget.narrowed(budget or Budget())
            decision, batched = self._controller.run_decided(limits, answered, waited_ms)
        answer, count = batched.answer, len(prepared.inputs)
        if count == batched.size == 1:  # what profiles are of
            around_ms = (time.perf_counter() - begun_s) * 1e3 - answer.latency_ms - batched.queued_ms
            self._controller.observe(answer.route.name, answer.latency_ms, around_ms)
        met, reason = _judge(decision, answer.latency_ms / count, batched.queued_ms + waited_ms)
        verdict = Verdict(
            answer.route.name,
            answer.route.macs,
            round(answer.latency_ms, 3),  # microseconds: more digits are noise
            met,
            None if met else str(decision.limits),
            reason,
        )
        if self._answered is not None:
            self._answered(verdict, count, time.perf_counter() - arrived_s)
        return prepared, answer.logits, verdict


def _refusal(decision: Decision) -> str:
    """Why no route fits. The decision's own reason says first that its route serves, which is not so here."""
    broken = decision.reason.partition(": ")[2]
    floor = " (below the floor of accuracy none is tried)" if decision.refused else ""
    return f"no route fits the budget ({decision.limits}): {decision.route} would have {broken}{floor}"


def _judge(decision: Decision, run_ms: float, queued_ms: float) -> tuple[bool, str | None]:
    """Whether the budget was met, as predicted and, for latency, as measured: per input, and with what was waited; and why not."""
    limit, latency_ms = decision.limits.latency_ms, run_ms + queued_ms
    if not decision.feasible:
        return False, decision.reason
    if limit is not None and latency_ms > limit:
        waiting = f" ({format_ms(queued_ms)} of it waiting)" if queued_ms >= 0.1 else ""
        return False, f"it took {format_ms(latency_ms)} per input{waiting}, and the limit is {format_ms(limit)}"
    return True, None
