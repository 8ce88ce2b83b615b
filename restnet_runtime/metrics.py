"""Metrics: what Prometheus is told. Counted on the request path is only what would be lost; everything else is read when it is scraped."""

from collections.abc import Callable, Iterator
from functools import partial

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from starlette.concurrency import run_in_threadpool

from restnet_runtime.state_metrics import Device, Serving, describe, describe_device

BUCKETS_S = (25e-6, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency histograms: a route may take 15 microseconds or seconds."""
OUTCOMES = ("met", "missed", "refused", "overloaded", "invalid", "failed")
"""met: answered within the budget; missed: answered, over it; refused: no route was to answer; overloaded: too many at once;

invalid: what was sent cannot be used; failed: our fault.
"""


class Metrics:
    """One registry, of this server alone. Thread safe.

    Counters know models and routes by name and make a series at the first request: as many as the bundle has routes, never more.
    """

    def __init__(self, device: Callable[[], Device] = Device) -> None:
        """device: what is known of the device, asked at each scrape."""
        self._registry, self._counted = CollectorRegistry(), CollectorRegistry()
        self._serving: list[Callable[[], Serving]] = []
        self._device = device
        counter = partial(Counter, registry=self._counted)
        histogram = partial(Histogram, labelnames=("model", "route"), buckets=BUCKETS_S, registry=self._counted)
        self._requests = counter("restnet_requests_total", "Prediction requests by how they ended.", ("model", "outcome"))
        self._errors = counter("restnet_request_errors_total", "Prediction requests without an answer, by cause.", ("model", "kind"))
        self._inferences = counter("restnet_inferences_total", "Inputs answered: a batch of n counts n.", ("model", "route"))
        self._duration = histogram("restnet_request_duration_seconds", "From the complete body of a request to its answer.")
        self._run = histogram("restnet_run_duration_seconds", "Of the network alone; a run that requests share counts for each.")
        # By model and route: met, missed, inputs, and both times.
        self._routes: dict[tuple[str, str], tuple[Counter, Counter, Counter, Histogram, Histogram]] = {}
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def watch(self, serving: Callable[[], Serving]) -> None:
        """Tell of one model from now on. serving: asked at each scrape."""
        model = serving().model
        for outcome in OUTCOMES:
            self._requests.labels(model, outcome)  # zero until the first: a rate needs a beginning
        self._serving.append(serving)

    def answered(self, model: str, route: str, *, met: bool, inputs: int, run_s: float, total_s: float) -> None:
        """Count one answered request. For the request path: about 5 microseconds."""
        series = self._routes.get((model, route))
        if series is None:
            ended = self._requests.labels(model, "met"), self._requests.labels(model, "missed")
            times = self._duration.labels(model, route), self._run.labels(model, route)
            series = self._routes[model, route] = (*ended, self._inferences.labels(model, route), *times)
        within, over, inferences, duration, run = series
        (within if met else over).inc()
        inferences.inc(inputs)
        duration.observe(total_s)
        run.observe(run_s)

    def failed(self, model: str, outcome: str, kind: str) -> None:
        """Count one request that was not answered. outcome: of `OUTCOMES`; kind: one of few words."""
        self._requests.labels(model, outcome).inc()
        self._errors.labels(model, kind).inc()

    def collect(self) -> Iterator[Metric]:
        """Everything but what the process itself has, for the registry."""
        for metric in self._counted.collect():
            # When a series was made doubles their number, and process_start_time_seconds says nearly the same.
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
        yield from describe([serving() for serving in self._serving])
        yield from describe_device(self._device())

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """Everything as text, and its media type. accept: as the header has it; OpenMetrics to whoever asks for it."""
        encode, media = choose_encoder(accept)
        return encode(self._registry), media


def add_metrics(app: FastAPI, metrics: Metrics) -> None:
    """`GET /metrics`."""

    @app.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def get_metrics(request: Request) -> Response:
        """For Prometheus: requests, latencies by route, decisions, budget, and the device, in its text format or OpenMetrics."""
        text, media = await run_in_threadpool(metrics.expose, request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": media, "Cache-Control": "no-store"})
