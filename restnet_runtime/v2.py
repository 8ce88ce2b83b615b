"""The Open Inference Protocol (KServe V2) over HTTP: paths and status codes. What a model is, and how it answers, is in `v2_model.py`."""

import asyncio
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic_core import from_json

from restnet_runtime import __version__
from restnet_runtime.budget import Budget
from restnet_runtime.encodings import ENCODINGS
from restnet_runtime.errors import BusyError, RequestError, TooLongError, UnitError
from restnet_runtime.intake import TRY_AGAIN, Intake
from restnet_runtime.models import Entry, Models
from restnet_runtime.nesting import check_nesting
from restnet_runtime.schemas import ErrorAnswer
from restnet_runtime.settings import BUDGET_HEADER
from restnet_runtime.tracing import FACTS
from restnet_runtime.updates import Updates
from restnet_runtime.v2_docs import INFER_BODY, INFER_RESPONSE
from restnet_runtime.v2_model import VERSION, Posted
from restnet_runtime.v2_response import HEADER_LENGTH

SERVER = {
    "name": "restnet-runtime",
    "version": __version__,
    "extensions": ["binary_tensor_data", "classification", "model_repository", "parameters"],
}
_FIXED = "the bundles of this server are not replaced while it runs"
# By name and not as a model: FastAPI would take a millisecond for each, on each path, and a device starts slowly enough.
_ERROR = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorAnswer.__name__}"}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": HTTPStatus(code).phrase, "content": _ERROR} for code in (400, 404, 408, 413, 415, 500, 503, 504)
}


def add_v2(app: FastAPI, models: Models, intake: Intake, updates: Updates | None = None) -> None:
    """Add the paths below /v2. Errors are `{"error": "..."}`: what a client sent wrong is 400, a model that there is not 404.

    updates: what replaces bundles; `None` where nothing does
    """

    def find(model_name: str, model_version: str = VERSION) -> Entry:
        model = models.find(model_name)
        if model_version != VERSION:
            raise HTTPException(404, f"the model {model_name} has no version {model_version[:60]!r}: it has {VERSION}")
        return model

    async def server(_: Request) -> Response:
        """What this server is, and which extensions of the protocol it has."""
        return JSONResponse(SERVER)

    async def live(_: Request) -> Response:
        """The process answers."""
        return JSONResponse({"live": True})

    async def ready(_: Request) -> Response:
        """Every model can answer; 400 where one cannot."""
        unready = [model for model in models if not model.ready]
        if unready:
            raise HTTPException(400, ", ".join(f"{model.name}: {model.unready_reason}" for model in unready))
        return JSONResponse({"ready": True})

    async def metadata(request: Request) -> Response:
        """Inputs and outputs of a model."""
        return JSONResponse(find(**request.path_params).protocol.metadata())

    async def model_ready(request: Request) -> Response:
        """The model can answer; 400 where it cannot."""
        model = find(**request.path_params)
        if not model.ready:
            raise HTTPException(400, f"{model.name}: {model.unready_reason}")
        return JSONResponse({"name": model.name, "ready": True})

    async def infer(request: Request) -> Response:
        """Run a model on one batch, on the route that fits; `parameters` of the response say which, and whether the budget was met."""
        model = find(**request.path_params)
        intake.refuse_unready(model)
        await intake.refuse_overload()
        headers = request.headers
        try:
            deadline = intake.deadline(request)
            budget = Budget()
            for text in headers.getlist(BUDGET_HEADER):
                budget = budget.narrowed(Budget.parse(text))
            body = await intake.receive(request, encodings=ENCODINGS)
            encoding = headers.get("content-encoding", "identity").strip().lower()
            accepted = ",".join(headers.getlist("accept-encoding"))
            posted = Posted(body, encoding, accepted, headers.get(HEADER_LENGTH), budget, request.scope.get(FACTS), deadline)
            content, sent = await intake.run(model, lambda entry, arrived_s: entry.protocol.infer(posted, arrived_s), deadline)
        except TooLongError as error:
            raise HTTPException(413, str(error)) from error
        except (RequestError, UnitError) as error:
            raise HTTPException(400, str(error)) from error
        return Response(content, headers=sent)

    async def index(request: Request) -> Response:
        """The models that there are, and whether each is ready."""
        body = await intake.receive(request)
        try:
            check_nesting(body)
            wishes = from_json(body) if body.strip() else {}
        except (RequestError, ValueError) as error:
            raise HTTPException(400, f"the body cannot be read as JSON: {error}") from error
        if not isinstance(wishes, dict) or type(wishes.get("ready", False)) is not bool:
            raise HTTPException(400, 'the body is no request for an index: give {"ready": true} for those that are, or nothing for all')
        states = [
            {
                "name": model.name,
                "version": VERSION,
                "state": "READY" if model.ready else "UNAVAILABLE",
                "reason": "" if model.ready else model.unready_reason,
            }
            for model in models
            if model.ready or not wishes.get("ready", False)
        ]
        return JSONResponse(states)

    async def load(request: Request) -> Response:
        """Replace the model's bundle by what lies at its path now: 200 once it serves, 400 with the reason where it does not.

        It serves on trial then; `/status` tells what became of it. `{"parameters": {"other_interface": true}}` takes another input shape
        or number of classes. 503 while another update is under way.
        """
        model = find(**request.path_params)
        other_interface = _other_interface(await intake.receive(request))
        if updates is None:
            raise HTTPException(400, _FIXED)
        try:
            update = updates.begin(model.name, other_interface=other_interface)
        except BusyError as error:
            raise HTTPException(503, str(error), TRY_AGAIN) from error
        await asyncio.get_running_loop().run_in_executor(None, update.decided.wait)
        step = update.last
        if step is None or step.state == "refused":
            raise HTTPException(400, "it was broken off" if step is None else step.reason)
        told = {"name": model.name, "version": VERSION, "state": "READY", "reason": f"{step.state}: {step.reason}", "digest": step.digest}
        return JSONResponse(told)

    async def unload(request: Request) -> Response:
        """Not possible: 400. What serves is given when the server starts, and stays."""
        model = find(**request.path_params)
        raise HTTPException(400, f"{model.name} is not unloaded: models stay as long as the server runs; stop that instead")

    def add(path: str, endpoint: Any, method: str = "GET", **documented: Any) -> None:
        documented.setdefault("responses", _ERRORS)
        app.add_api_route(path, endpoint, methods=[method], tags=["Open Inference Protocol"], **documented)
        if method == "GET":
            app.add_route(path, endpoint, ["HEAD"], include_in_schema=False)

    model_parameter = _path_parameter("model_name", list(models.names))
    add("/v2", server)
    add("/v2/", server, include_in_schema=False)
    add("/v2/health/live", live)
    add("/v2/health/ready", ready)
    for path, parameters in (
        ("/v2/models/{model_name}", [model_parameter]),
        (
            "/v2/models/{model_name}/versions/{model_version}",
            [model_parameter, _path_parameter("model_version", [VERSION])],
        ),
    ):
        add(path, metadata, openapi_extra={"parameters": parameters})
        add(f"{path}/ready", model_ready, openapi_extra={"parameters": parameters})
        documented = {"parameters": parameters, "requestBody": INFER_BODY}
        add(f"{path}/infer", infer, "POST", openapi_extra=documented, responses={200: INFER_RESPONSE, **_ERRORS})
    add("/v2/repository/index", index, "POST")
    for action, endpoint in (("load", load), ("unload", unload)):
        add(f"/v2/repository/models/{{model_name}}/{action}", endpoint, "POST", openapi_extra={"parameters": [model_parameter]})


def _other_interface(body: bytes) -> bool:
    """What a request to load asks for. Raises HTTP 400."""
    try:
        check_nesting(body)
        wishes = from_json(body) if body.strip() else {}
    except (RequestError, ValueError) as error:
        raise HTTPException(400, f"the body cannot be read as JSON: {error}") from error
    parameters = wishes.get("parameters", {}) if isinstance(wishes, dict) else None
    if not isinstance(parameters, dict) or set(parameters) - {"other_interface"}:
        raise HTTPException(400, "a bundle is read from the path that the server was given: the one parameter is other_interface")
    if type(found := parameters.get("other_interface", False)) is not bool:
        raise HTTPException(400, "the parameter other_interface is no boolean")
    return found


def _path_parameter(name: str, values: list[str]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": values}}
