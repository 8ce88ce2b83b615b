"""What HTTP answers look like, as JSON; requests are in `bodies.py`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from restnet_runtime.budget import Budget


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class ErrorAnswer(_Answer):
    """Every answer that is not a success."""

    error: str


class ClassScore(_Answer):
    """One class and its probability."""

    name: Annotated[str, Field(alias="class")]
    index: int
    probability: float


class Prediction(ClassScore):
    """The most probable class, and the runners-up."""

    top: list[ClassScore]


class _Served(_Answer):
    route: Annotated[str, Field(description="which route answered, named by what it is made of")]
    macs: Annotated[int, Field(description="multiply-accumulates of the route, per input")]
    latency_ms: Annotated[float, Field(description="time in the network, without decoding and transport")]
    budget_met: Annotated[
        bool, Field(description="the route was chosen within the budget, and the time per input was within its latency limit")
    ]
    budget: Annotated[str | None, Field(description="the limits in force; only when they were not met")] = None
    reason: Annotated[str | None, Field(description="why not; only when the budget was not met")] = None


class PredictAnswer(_Served, Prediction):
    """Answer to one input."""


class BatchAnswer(_Served):
    """Answer to a batch, in the order of the inputs."""

    predictions: list[Prediction]


class BudgetLimits(_Answer):
    """A budget; null is no limit."""

    text: str
    macs: int | None
    latency_ms: float | None
    memory_bytes: int | None
    min_accuracy: float | None = None

    @classmethod
    def of(cls, budget: Budget) -> "BudgetLimits":
        return cls(
            text=str(budget),
            macs=budget.macs,
            latency_ms=budget.latency_ms,
            memory_bytes=budget.memory_bytes,
            min_accuracy=budget.min_accuracy,
        )


class DecisionAnswer(_Answer):
    """What the policy decided: the route, whether it fits, and why."""

    route: str
    feasible: bool
    reason: str
    limits: BudgetLimits


class BudgetAnswer(_Answer):
    """The standing budget and what was decided under it."""

    budget: BudgetLimits
    decision: DecisionAnswer | None


class PinAnswer(_Answer):
    """The pinned route, null where none is, and what was decided."""

    pin: str | None
    decision: DecisionAnswer | None


class ProfileAnswer(_Answer):
    """What a route costs on this device, measured here at batch 1."""

    latency_ms: float
    p95_ms: float
    memory_bytes: int
    threads: Annotated[int, Field(description="of one request; the latencies are for so many")]


class RouteAnswer(_Answer):
    """One route of the bundle; `profile` is there once the route is loaded."""

    name: str
    precision: Annotated[str, Field(description="fp32, int8, or both for a mixed route")]
    macs: int
    params: int
    weight_bytes: int
    accuracy: float | None
    on_front: Annotated[bool, Field(description="of its precision, over multiply-accumulates")]
    on_front_here: Annotated[
        bool | None, Field(description="no other route is as good here in every respect; null: not measured well enough to tell yet")
    ]
    outdone: Annotated[str | None, Field(description="why it is not on the front here")]
    loaded: bool
    current: bool
    profile: ProfileAnswer | None


class RoutesAnswer(_Answer):
    """The routes of the bundle, cheapest first."""

    routes: list[RouteAnswer]


class BundleAnswer(_Answer):
    """What is being served."""

    name: str
    digest: str
    task: str
    classes: int
    input_shape: tuple[int, int, int]


class RouteCounts(_Answer):
    """How many routes there are, and which of them can be switched to now."""

    known: int
    loaded: list[str]
    loading: Annotated[str | None, Field(description="being compiled or loaded now")]
    compiled: Annotated[int, Field(description="compiled since the start; the others came from the cache")]
    failed_compiles: Annotated[int, Field(description="compiles since the start of which no route came that could be loaded")]
    left_out: Annotated[list[str], Field(description="not loaded for want of memory")]
    outdone: Annotated[dict[str, str], Field(description="not kept loaded: another route is better here in every respect, and which")]
    failed: Annotated[dict[str, str], Field(description="routes that cannot be loaded here, and why")]


class SessionsAnswer(_Answer):
    """How routes are run here."""

    threads: Annotated[int, Field(description="of one request on a route that is not small, see route_threads")]
    route_threads: Annotated[dict[str, int], Field(description="of one request on each loaded route: a small route runs on one")]
    spin_us: Annotated[int, Field(description="how long an idle thread of a running request waits actively")]
    providers: Annotated[list[str], Field(description="execution providers of ONNX Runtime, the first one first")]
    levels: Annotated[
        dict[str, Literal["prepacked", "mapped", "plain"]],
        Field(description="how each loaded route holds its weights: packed and shared, shared, or its own"),
    ]
    notes: Annotated[list[str], Field(description="fallbacks, and what is missing or untested")]


class QueueAnswer(_Answer):
    """Requests being decoded, waiting or running, and what has arrived of bodies that are not complete."""

    in_flight: int
    max_in_flight: Annotated[int | None, Field(description="null: no limit")]
    workers: Annotated[int | None, Field(description="requests decoded and run at once; null: no limit")]
    receiving_bytes: int


class BatchingAnswer(_Answer):
    """Requests that share runs. Counted since the start, and only while the mode is not off."""

    mode: Literal["off", "on", "auto"]
    max_batch: int
    max_wait_ms: Annotated[float, Field(description="the longest that a request waits for others while the processor is free")]
    requests: int
    batched: Annotated[int, Field(description="of the requests, how many shared a run")]
    runs: int
    mean_batch: Annotated[float | None, Field(description="requests per run")]


class SwitchAnswer(_Answer):
    """One switch; at_s in seconds since the epoch, feasible: the route after it fitted."""

    at_s: float
    before: str
    after: str
    feasible: bool
    reason: str


class RouteLatencyAnswer(_Answer):
    """What requests of batch 1 took on one route in the last ten seconds, each with so many threads."""

    median_ms: float
    p95_ms: float
    requests: int
    threads: int


class ReadingAnswer(_Answer):
    """One sample of the device's state; null is what could not be read. Shares are 0..1, most of them of the time since the last sample."""

    memory_available_bytes: int | None
    own_memory_bytes: int | None
    others_memory_bytes: Annotated[int | None, Field(description="of what the process may take, reserved for its other models")] = None
    cpu_percent: float | None
    others_cpu_cores: Annotated[float | None, Field(description="cores that other processes of normal priority keep busy")]
    waiting_share: Annotated[float | None, Field(description="of the time that our threads could run, the share that they waited")]
    load_1m: float | None
    cpu_quota_cores: float | None
    quota_throttled_share: Annotated[float | None, Field(description="of the quota's periods, those in which it was used up")]
    quota_stopped_cores: Annotated[float | None, Field(description="cores' worth of time that threads were stopped by the quota")]
    pressure_cpu_share: Annotated[float | None, Field(description="of the time, when some task of the device was stalled (PSI)")]
    pressure_memory_share: float | None
    pressure_io_share: float | None
    group_pressure_cpu_share: Annotated[float | None, Field(description="the same of the own cgroup (v2)")]
    group_pressure_memory_share: float | None
    group_pressure_io_share: float | None
    temperature_c: Annotated[float | None, Field(description="of the hottest thermal zone")]
    temperature_zone: str | None
    temperature_headroom_c: Annotated[float | None, Field(description="to where a zone begins to slow the device down")]
    cpu_frequency_mhz: float | None
    cpu_frequency_share: Annotated[float | None, Field(description="of the highest frequency; low where cores are idle, too")]
    cpu_frequency_cap_share: Annotated[float | None, Field(description="highest frequency allowed now, of the highest there is")]
    battery_percent: float | None
    on_battery: bool | None
    power_w: Annotated[float | None, Field(description="what the whole device takes")]
    gpu_load_share: float | None
    throttled: Annotated[list[str] | None, Field(description="what slows the device or this process down now; empty: nothing")]
    throttled_since_boot: Annotated[list[str] | None, Field(description="what a Raspberry Pi's firmware has met since boot")]
    queue_depth: Annotated[int | None, Field(description="requests that waited or ran")]
    latencies: Annotated[dict[str, RouteLatencyAnswer] | None, Field(description="by route")]
    slowdown: Annotated[float | None, Field(description="recent latency over profiled latency")]
    slowdown_by_threads: Annotated[dict[int, float] | None, Field(description="the same by threads of a request, as seen or as it follows")]
    request_threads: Annotated[int | None, Field(description="of the requests that the slowdown is of")] = None
    tail: Annotated[float | None, Field(description="what 97 of 100 recent requests stay within, over their median")] = None
    credit: Annotated[float | None, Field(description="of the requests that may be late, the share that is saved: few were late")] = None
    ceilings: Annotated[dict[int, float] | None, Field(description="by seconds: what all but the slowest took, over profiled")] = None
    requests_per_s: Annotated[float | None, Field(description="requests that arrived lately")] = None
    gap_variation: Annotated[float | None, Field(description="of the gaps between them: 0 = a metronome, 1 = at random")] = None
    waiting_ms: Annotated[float | None, Field(description="how long the latest requests waited before they ran")] = None
    around_ms: Annotated[float | None, Field(description="what they take beside waiting and the network: decoding and the like")] = None
    beside_cpu_ms: Annotated[float | None, Field(description="processor time of a request beside its run")] = None
    stall_ms: Annotated[float | None, Field(description="how long runs stood still, where many were late by that alone")] = None


class ModelAnswer(_Answer):
    """One of the models that are served."""

    name: str
    digest: Annotated[str, Field(description="SHA-256 of its bundle's manifest")]
    ready: Annotated[bool, Field(description="at least one of its routes is loaded")]
    reason: Annotated[str | None, Field(description="why it is not ready")]
    current: Annotated[str | None, Field(description="the route that serves")]
    in_flight: Annotated[int, Field(description="its requests that wait or run")]
    loaded_bytes: Annotated[int | None, Field(description="what its loaded routes are predicted to add to the process")]
    reserved_bytes: Annotated[
        int | None, Field(description="what it may take of the memory that the models share; null: it is alone, or there is no limit")
    ]


class MemoryAnswer(_Answer):
    """What this process is predicted to take: without any route, and for the loaded routes of all models."""

    overhead_bytes: int
    loaded_bytes: int


class UpdateStepAnswer(_Answer):
    """One step of an update; at_s in seconds since the epoch, digest: of the new bundle."""

    number: int
    at_s: float
    model: str
    state: Literal["verifying", "loading", "trial", "accepted", "returned", "refused", "unchanged"]
    digest: str | None
    reason: str


class UpdateAnswer(_Answer):
    """How the bundle of a model is replaced while it is served."""

    path: Annotated[str, Field(description="where a new bundle is looked for")]
    running: Annotated[bool, Field(description="an update is under way")]
    answered: Annotated[int | None, Field(description="requests that a new bundle on trial has answered")]
    steps: Annotated[list[UpdateStepAnswer], Field(description="the latest, oldest first")]


class StatusAnswer(_Answer):
    """Everything that an operator asks first. Of one model, but for what the device, the queue and `models` tell."""

    version: str
    model: Annotated[str | None, Field(description="the name that it is served under; null beside no server")]
    models: Annotated[list[ModelAnswer], Field(description="all that this server serves, the default one first")]
    bundle: BundleAnswer
    memory: Annotated[MemoryAnswer | None, Field(description="null where nobody loads routes")]
    routes: RouteCounts
    sessions: SessionsAnswer
    current: str | None
    budget: BudgetLimits
    decision: DecisionAnswer | None
    wanted: Annotated[str | None, Field(description="the route that would be chosen were every route loaded")]
    reading: ReadingAnswer | None
    pin: Annotated[str | None, Field(description="the route that an operator wants whatever it costs")]
    switched: Annotated[int, Field(description="switches since the start")]
    switches: Annotated[list[SwitchAnswer], Field(description="the latest, oldest first")]
    problem: Annotated[str | None, Field(description="what went wrong when the device was read or a route switched last")]
    read_only: Annotated[bool, Field(description="budget and pin cannot be changed over HTTP")] = False
    controlling: Annotated[bool, Field(description="the budget is being watched")]
    update: Annotated[UpdateAnswer | None, Field(description="null: bundles are not replaced while they are served")] = None
    queue: QueueAnswer
    batching: BatchingAnswer
    versions: dict[str, str]


class HealthAnswer(_Answer):
    """The process answers; `ready`: it has a route to answer with."""

    status: Literal["ok", "ready"]
