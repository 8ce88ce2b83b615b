"""The HTTP interface: paths, status codes and documentation. What they answer comes from `service.py` and the controller."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from restnet_runtime import __version__
from restnet_runtime.api_docs import BUDGET_BODY, MODEL_PARAMETER, PIN_BODY, PREDICT_BODY, PREDICT_PARAMETERS
from restnet_runtime.bodies import BudgetRequest, PinRequest, read_json
from restnet_runtime.budget import Budget
from restnet_runtime.dashboard import add_pages
from restnet_runtime.error_answers import answer_errors
from restnet_runtime.errors import InputError
from restnet_runtime.events import Events
from restnet_runtime.guard import Guard
from restnet_runtime.inference import Verdict
from restnet_runtime.intake import TRY_AGAIN, Intake
from restnet_runtime.metrics import Metrics, add_metrics
from restnet_runtime.model_metrics import serving_of
from restnet_runtime.models import Backend, Entry, Models
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
from restnet_runtime.settings import BUDGET_HEADER, ServeSettings
from restnet_runtime.state_metrics import Device
from restnet_runtime.status import describe_budget, describe_pin, describe_routes, describe_server, describe_update
from restnet_runtime.tracing import FACTS, Tracing
from restnet_runtime.updates import Updates
from restnet_runtime.v2 import add_v2

_MEDIA_KINDS: dict[str, BodyKind] = {"multipart/form-data": "form", "application/json": "json", "application/x-npy": "npy"}
_UNTOLD_MEDIA = ("", "application/octet-stream", "application/x-www-form-urlencoded")
_ALLOWED_MEDIA = "multipart/form-data, image/*, application/json, application/x-npy, or application/octet-stream with an image or .npy file"
_Documented = dict[int | str, dict[str, Any]]
_ERRORS: _Documented = {code: {"model": ErrorAnswer} for code in (400, 401, 403, 404, 408, 413, 415, 422, 500, 503, 504)}
_MISSING: _Documented = {code: {"model": ErrorAnswer} for code in (404, 422)}
_DENIED: _Documented = {code: {"model": ErrorAnswer} for code in (401, 403)}
_STREAMED: _Documented = {200: {"content": {"text/event-stream": {}}}, 503: {"model": ErrorAnswer}, **_MISSING}
_OF_MODEL: dict[str, Any] = {"parameters": [MODEL_PARAMETER]}

T = TypeVar("T")


def create_app(
    backends: Backend | Mapping[str, Backend], settings: ServeSettings, tracer_provider: Any = None, updates: Updates | None = None
) -> FastAPI:
    """The application. It neither starts nor stops what serves: whoever wires that does.

    backends: of one model, which has its bundle's name, or of several by name; the first is the default
    tracer_provider: of OpenTelemetry, where requests are to be traced
    updates: what replaces the bundles of models while they are served; `None` where nothing does
    Its `state.models` are the `Models`.
    """
    if isinstance(backends, Backend):
        backends = {backends.executor.bundle.manifest.name: backends}
    intake, events = Intake(settings), Events()
    metrics = Metrics(lambda: Device(models.default.backend.controller.reading, events.listeners))
    models = Models(backends, settings, lambda name: partial(_count, metrics, name))
    if updates is not None:
        updates.serve(models)

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

    app.state.models, app.state.metrics = models, metrics
    for name in models.names:
        metrics.watch(partial(serving_of, models, name, intake, settings, updates))

    def failed(named: str | None, outcome: str, kind: str) -> None:
        metrics.failed(named if named in models.names else models.default.name, outcome, kind)

    app.add_middleware(Guard, access=settings.access, read_only=settings.read_only)
    if tracer_provider is not None:
        app.add_middleware(Tracing, provider=tracer_provider)
    app.add_middleware(Observing, failed=failed)

    def asked(request: Request) -> Entry:
        """The model that a request means: `?model=NAME`, else the default one."""
        named = request.query_params.getlist("model")
        if len(named) > 1:
            raise InputError(f"model is given {len(named)} times: name one of {', '.join(models.names)}")
        return models.find(named[0] if named else None)

    @app.post(
        "/predict",
        responses={200: {"model": PredictAnswer | BatchAnswer}, **_ERRORS},
        openapi_extra={"requestBody": PREDICT_BODY, "parameters": PREDICT_PARAMETERS},
    )
    async def predict(request: Request) -> Response:
        """Classify an image, or a batch of inputs."""
        model = asked(request)
        intake.refuse_unready(model)
        await intake.refuse_overload()
        deadline = intake.deadline(request)
        top_k, budget = _wishes(request)
        content_type = request.headers.get("content-type", "")
        body = await intake.receive(request)
        kind = body_kind(content_type, body)

        def answer(entry: Entry, arrived_s: float) -> PredictAnswer | BatchAnswer:
            return entry.service.predict(kind, content_type, body, top_k=top_k, budget=budget, arrived_s=arrived_s, deadline=deadline)

        answered = await intake.run(model, answer, deadline)
        traced = request.scope.get(FACTS)
        if traced is not None:
            traced.update(model=model.name, route=answered.route, run_ms=answered.latency_ms, budget_met=answered.budget_met)
        return _json(answered, exclude_none=True)

    @app.get("/budget", responses={200: {"model": BudgetAnswer}, **_MISSING}, openapi_extra=_OF_MODEL)
    def get_budget(request: Request) -> Response:
        """The standing budget, and what was decided under it."""
        return _json(describe_budget(asked(request).backend.controller))

    @app.put("/budget", responses={200: {"model": BudgetAnswer}, **_ERRORS}, openapi_extra={"requestBody": BUDGET_BODY, **_OF_MODEL})
    async def put_budget(request: Request) -> Response:
        """Replace the standing budget; the next requests are served under it."""
        name = asked(request).name
        limits = read_json(BudgetRequest, await intake.receive(request)).limits()
        controller = models.find(name).backend.controller  # looked up again: another bundle may have come with the body

        def replace() -> BudgetAnswer:
            controller.budget = limits
            return describe_budget(controller)

        return _json(await _off_loop(replace))

    @app.get("/pin", responses={200: {"model": PinAnswer}, **_MISSING}, openapi_extra=_OF_MODEL)
    def get_pin(request: Request) -> Response:
        """The route that all requests are to run on, if one was pinned."""
        return _json(describe_pin(asked(request).backend.controller))

    @app.put("/pin", responses={200: {"model": PinAnswer}, **_ERRORS}, openapi_extra={"requestBody": PIN_BODY, **_OF_MODEL})
    async def put_pin(request: Request) -> Response:
        """Keep to one route, whatever it costs. Where it is not loaded yet, the budget decides until it is."""
        name = asked(request).name
        route = read_json(PinRequest, await intake.receive(request)).route
        model = models.find(name)
        known = [one.name for one in model.backend.executor.bundle.routes]
        if route not in known:
            raise InputError(f"there is no route {route[:60]!r} in this bundle: /routes lists what there is")
        return _json(await _off_loop(partial(_pin, model, route)))

    @app.delete("/pin", responses={200: {"model": PinAnswer}, **_DENIED, **_MISSING}, openapi_extra=_OF_MODEL)
    async def delete_pin(request: Request) -> Response:
        """Let the budget decide again."""
        return _json(await _off_loop(partial(_pin, asked(request), None)))

    @app.get("/events", responses=_STREAMED, openapi_extra=_OF_MODEL)
    async def get_events(request: Request) -> Response:
        """Server-sent events: `decision` at first, then each `switch` with its reason, each `reading` of the device, each `update`."""
        name = asked(request).name
        if events.full:
            raise HTTPException(503, "as many listeners as are allowed are here already: try again", TRY_AGAIN)
        steps = (lambda: ()) if updates is None else partial(updates.steps, name)
        stream = events.stream(lambda: models.find(name).backend.controller, steps)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.get("/routes", responses={200: {"model": RoutesAnswer}, **_MISSING}, openapi_extra=_OF_MODEL)
    def get_routes(request: Request) -> Response:
        """The routes of the bundle, cheapest first."""
        backend = asked(request).backend
        return _json(describe_routes(backend.executor, backend.progress()))

    @app.get("/status", responses={200: {"model": StatusAnswer}, **_MISSING}, openapi_extra=_OF_MODEL)
    def get_status(request: Request) -> Response:
        """What is served, under which budget, and how the device is doing."""
        model = asked(request)
        backend, every = model.backend, [one.describe() for one in models]
        return _json(
            describe_server(
                backend.executor,
                backend.controller,
                intake.queue(),
                backend.batcher,
                backend.progress(),
                read_only=settings.read_only,
                model=model.name,
                models=every,
                update=None if updates is None else describe_update(updates, model.name),
            )
        )

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", responses={200: {"model": HealthAnswer}})
    async def healthz() -> Response:
        """The process answers."""
        return _json(HealthAnswer(status="ok"))

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", responses={200: {"model": HealthAnswer}, 503: {"model": ErrorAnswer}, **_MISSING}, openapi_extra=_OF_MODEL)
    async def readyz(request: Request) -> Response:
        """A route is loaded, so that predictions can be answered."""
        intake.refuse_unready(asked(request))
        return _json(HealthAnswer(status="ready"))

    add_v2(app, models, intake, updates)
    add_metrics(app, metrics)
    add_pages(app)
    return app


def _pin(model: Entry, route: str | None) -> PinAnswer:
    model.backend.controller.pin = route
    return describe_pin(model.backend.controller)


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
        elif name != "model":
            raise InputError(f"unknown query parameter {name[:60]!r}: allowed are top_k, budget, model")
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
