"""The HTTP interface: paths, status codes and documentation. What they answer comes from `service.py` and the controller."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from restnet_runtime import __version__
from restnet_runtime.api_docs import BUDGET_BODY, PIN_BODY, PREDICT_BODY, PREDICT_PARAMETERS
from restnet_runtime.batching import Batcher
from restnet_runtime.bodies import BudgetRequest, PinRequest, read_json
from restnet_runtime.budget import Budget
from restnet_runtime.controller import Controller
from restnet_runtime.dashboard import add_pages
from restnet_runtime.error_answers import answer_errors
from restnet_runtime.errors import InputError
from restnet_runtime.events import Events
from restnet_runtime.executor import Executor
from restnet_runtime.guard import Guard
from restnet_runtime.inference import Verdict
from restnet_runtime.intake import TRY_AGAIN, Intake
from restnet_runtime.loader import Progress
from restnet_runtime.metrics import Metrics, add_metrics
from restnet_runtime.npy import MAGIC
from restnet_runtime.observing import Observing
from restnet_runtime.payload import BodyKind, parse_top_k
from restnet_runtime.preprocess import looks_like_image
from restnet_runtime.schemas import (
    BatchAnswer,
    BudgetAnswer,
    ErrorAnswer,
    HealthAnswer,
    PinAnswer,
    PredictAnswer,
    RoutesAnswer,
    StatusAnswer,
)
from restnet_runtime.service import PredictService
from restnet_runtime.settings import BUDGET_HEADER, ServeSettings
from restnet_runtime.state_metrics import Device, Serving
from restnet_runtime.status import describe_budget, describe_pin, describe_routes, describe_server
from restnet_runtime.tracing import FACTS, Tracing
from restnet_runtime.v2 import add_v2
from restnet_runtime.v2_model import Model

_MEDIA_KINDS: dict[str, BodyKind] = {"multipart/form-data": "form", "application/json": "json", "application/x-npy": "npy"}
_UNTOLD_MEDIA = ("", "application/octet-stream", "application/x-www-form-urlencoded")
_ALLOWED_MEDIA = "multipart/form-data, image/*, application/json, application/x-npy, or application/octet-stream with an image or .npy file"
_ERRORS: dict[int | str, dict[str, Any]] = {code: {"model": ErrorAnswer} for code in (400, 401, 403, 408, 413, 415, 422, 500, 503, 504)}

T = TypeVar("T")


def create_app(
    executor: Executor,
    controller: Controller,
    settings: ServeSettings,
    progress: Callable[[], Progress] | None = None,
    batcher: Batcher | None = None,
    tracer_provider: Any = None,
) -> FastAPI:
    """The application. It neither starts nor stops `executor` and `controller`: whoever wires them does.

    progress: how far the loader is, for `/status`
    batcher:  what runs requests together; by default each runs by itself
    tracer_provider: of OpenTelemetry, where requests are to be traced
    """
    batcher = batcher or Batcher(executor)
    intake = Intake(executor, controller, settings)
    events = Events(controller)
    model = executor.bundle.manifest.name
    metrics = Metrics(lambda: Device(controller.reading, events.listeners))
    counted = partial(_count, metrics, model)
    service = PredictService(executor, controller, settings, batcher, counted)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        events.close()
        intake.close()

    app = FastAPI(
        title="ReStNet Runtime",
        summary="The best accuracy that this device can afford right now.",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        # The interactive pages load scripts from elsewhere, and a device may have no way there.
        docs_url=None,
        redoc_url=None,
        **_without_telemetry(),
    )
    answer_errors(app)
    app.state.events = events
    app.state.intake = intake

    def serving() -> Serving:
        queue = intake.queue()
        profiles = {route.name: executor.profile(route.name) for route in executor.bundle.routes}
        return Serving(
            model=model,
            digest=executor.bundle.digest,
            routes=executor.bundle.routes,
            profiles={name: profile for name, profile in profiles.items() if profile is not None},
            loaded=executor.loaded,
            current=executor.current.name if executor.current else None,
            status=controller.status(),
            progress=progress() if progress else None,
            batches=batcher.counts(),
            requests=queue.in_flight,
            most_requests=settings.max_in_flight,
            receiving_bytes=queue.receiving_bytes,
        )

    app.state.metrics = metrics
    metrics.watch(serving)
    app.add_middleware(Guard, access=settings.access, read_only=settings.read_only)
    if tracer_provider is not None:
        app.add_middleware(Tracing, provider=tracer_provider)
    app.add_middleware(Observing, failed=partial(metrics.failed, model))

    @app.post(
        "/predict",
        responses={200: {"model": PredictAnswer | BatchAnswer}, **_ERRORS},
        openapi_extra={"requestBody": PREDICT_BODY, "parameters": PREDICT_PARAMETERS},
    )
    async def predict(request: Request) -> Response:
        """Classify an image, or a batch of inputs."""
        intake.refuse_unready()
        intake.refuse_overload()
        deadline = intake.deadline(request)
        top_k, budget = _wishes(request)
        content_type = request.headers.get("content-type", "")
        body = await intake.receive(request)
        kind = body_kind(content_type, body)

        def answer(arrived_s: float) -> PredictAnswer | BatchAnswer:
            return service.predict(kind, content_type, body, top_k=top_k, budget=budget, arrived_s=arrived_s, deadline=deadline)

        answered = await intake.run(answer, deadline)
        traced = request.scope.get(FACTS)
        if traced is not None:
            traced.update(route=answered.route, run_ms=answered.latency_ms, budget_met=answered.budget_met)
        return _json(answered, exclude_none=True)

    @app.get("/budget", responses={200: {"model": BudgetAnswer}})
    def get_budget() -> Response:
        """The standing budget, and what was decided under it."""
        return _json(describe_budget(controller))

    @app.put("/budget", responses={200: {"model": BudgetAnswer}, **_ERRORS}, openapi_extra={"requestBody": BUDGET_BODY})
    async def put_budget(request: Request) -> Response:
        """Replace the standing budget; the next requests are served under it."""
        limits = read_json(BudgetRequest, await intake.receive(request)).limits()

        def replace() -> BudgetAnswer:
            controller.budget = limits
            return describe_budget(controller)

        return _json(await _off_loop(replace))

    @app.get("/pin", responses={200: {"model": PinAnswer}})
    def get_pin() -> Response:
        """The route that all requests are to run on, if one was pinned."""
        return _json(describe_pin(controller))

    @app.put("/pin", responses={200: {"model": PinAnswer}, **_ERRORS}, openapi_extra={"requestBody": PIN_BODY})
    async def put_pin(request: Request) -> Response:
        """Keep to one route, whatever it costs. Where it is not loaded yet, the budget decides until it is."""
        route = read_json(PinRequest, await intake.receive(request)).route
        known = [one.name for one in executor.bundle.routes]
        if route not in known:
            raise InputError(f"there is no route {route[:60]!r} in this bundle: /routes lists what there is")
        return _json(await _off_loop(partial(_pin, route)))

    @app.delete("/pin", responses={200: {"model": PinAnswer}, 401: {"model": ErrorAnswer}, 403: {"model": ErrorAnswer}})
    async def delete_pin() -> Response:
        """Let the budget decide again."""
        return _json(await _off_loop(partial(_pin, None)))

    def _pin(route: str | None) -> PinAnswer:
        controller.pin = route
        return describe_pin(controller)

    @app.get("/events", responses={200: {"content": {"text/event-stream": {}}}, 503: {"model": ErrorAnswer}})
    async def get_events() -> Response:
        """Server-sent events: `decision` at first, then each `switch` with its reason, and each `reading` of the device."""
        if events.full:
            raise HTTPException(503, "as many listeners as are allowed are here already: try again", TRY_AGAIN)
        return StreamingResponse(events.stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.get("/routes", responses={200: {"model": RoutesAnswer}})
    def get_routes() -> Response:
        """The routes of the bundle, cheapest first."""
        return _json(describe_routes(executor, progress() if progress else None))

    @app.get("/status", responses={200: {"model": StatusAnswer}})
    def get_status() -> Response:
        """What is served, under which budget, and how the device is doing."""
        loading = progress() if progress else None
        return _json(describe_server(executor, controller, intake.queue(), batcher, loading, read_only=settings.read_only))

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", responses={200: {"model": HealthAnswer}})
    async def healthz() -> Response:
        """The process answers."""
        return _json(HealthAnswer(status="ok"))

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", responses={200: {"model": HealthAnswer}, 503: {"model": ErrorAnswer}})
    async def readyz() -> Response:
        """A route is loaded, so that predictions can be answered."""
        intake.refuse_unready()
        return _json(HealthAnswer(status="ready"))

    add_v2(app, [Model(executor, controller, settings, batcher, counted)], intake)
    add_metrics(app, metrics)
    add_pages(app)
    return app


def _count(metrics: Metrics, model: str, verdict: Verdict, inputs: int, total_s: float) -> None:
    metrics.answered(model, verdict.route, met=verdict.budget_met, inputs=inputs, run_s=verdict.latency_ms / 1e3, total_s=total_s)


def body_kind(content_type: str, body: bytes) -> BodyKind:
    """What the body is by its content type, or by its first bytes where the type does not tell. Raises HTTP 400 and 415."""
    if not body:
        raise HTTPException(400, f"the body is empty: send {_ALLOWED_MEDIA}")
    media = content_type.partition(";")[0].strip().lower()
    if media in _MEDIA_KINDS:
        return _MEDIA_KINDS[media]
    if media.startswith("image/"):
        return "image"
    if media in _UNTOLD_MEDIA and body.startswith(MAGIC):
        return "npy"
    if media in _UNTOLD_MEDIA and looks_like_image(body):
        return "image"
    what = f"Content-Type {media[:60]!r}" if media else "a body without Content-Type"
    raise HTTPException(415, f"{what} starting {body[:8]!r} is not taken here: send {_ALLOWED_MEDIA}")


def _wishes(request: Request) -> tuple[int | None, Budget]:
    """`top_k` and the limits that came in the query and the header."""
    top_k, budget = None, Budget()
    for name, value in request.query_params.multi_items():
        if name == "top_k":
            top_k = parse_top_k(value)
        elif name == "budget":
            budget = budget.narrowed(Budget.parse(value))
        else:
            raise InputError(f"unknown query parameter {name[:60]!r}: allowed are top_k, budget")
    for value in request.headers.getlist(BUDGET_HEADER):
        budget = budget.narrowed(Budget.parse(value))
    return top_k, budget


def _json(answer: BaseModel, *, exclude_none: bool = False) -> Response:
    return Response(answer.model_dump_json(by_alias=True, exclude_none=exclude_none), media_type="application/json")


async def _off_loop(work: Callable[[], T]) -> T:
    """Run what may block beside the prediction workers, so that it does not wait for them."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


def _without_telemetry() -> dict[str, Any]:
    """Newer versions of FastAPI can report to elsewhere when the environment says so. This server reports nothing to anyone."""
    if "telemetry" not in inspect.signature(FastAPI.__init__).parameters:
        return {}
    parts = ("tracing", "metrics", "logs", "operation_spans", "auto_configure")
    return {"telemetry": dict.fromkeys(parts, False)}
