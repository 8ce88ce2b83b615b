"""Error answers: whatever goes wrong over HTTP, a status and `{"error": "..."}`."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from restnet_runtime.errors import ExpiredError, InfeasibleError, InputError, ModelError, RequestError, RestnetError, UnitError
from restnet_runtime.observing import REQUEST_ID, note_error, request_id

STATUS_OF: dict[type[Exception], int] = {
    RequestError: 400,  # ImageError too: bytes that cannot be read
    InputError: 422,  # read, but not what this bundle takes
    UnitError: 422,
    InfeasibleError: 503,
    ExpiredError: 504,
    ModelError: 404,
    RestnetError: 500,
}


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)


def answer_errors(app: FastAPI) -> None:
    """Make every error an `ErrorAnswer`."""

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        note_error(request.scope, error)
        headers, path = dict(error.headers or {}), request.url.path[:100]
        message = error.detail
        if error.status_code == 404 and message == "Not Found":
            message = f"there is no {path!r} here: /openapi.json lists what there is"
        elif error.status_code == 405:
            headers["Allow"] = _methods(app, request.url.path)
            message = f"{request.method} is not allowed on {path!r}: allowed is {headers['Allow']}"
        return _error(error.status_code, message, headers)

    def on_kind(status: int) -> Callable[[Request, Exception], Any]:
        async def answer(request: Request, error: Exception) -> Response:
            note_error(request.scope, error)
            return _error(status, str(error))

        return answer

    async def on_bug(request: Request, error: Exception) -> Response:
        name, known = type(error).__name__, request_id(request.scope)
        headers = {"Connection": "close"}  # uvicorn ends the connection: a client that is not told would ask once more on it
        if known:
            headers[REQUEST_ID] = known
        return _error(500, f"internal error ({name}): the server's log has the details", headers)

    app.add_exception_handler(HTTPException, on_http)
    for kind, status in STATUS_OF.items():
        app.add_exception_handler(kind, on_kind(status))
    app.add_exception_handler(Exception, on_bug)


def _methods(app: FastAPI, path: str) -> str:
    """All methods of a path. Starlette's own 405 names those of one route, and a path may have several."""
    same = [route for route in app.routes if isinstance(route, Route) and route.path_regex.fullmatch(path)]
    methods = {method for route in same for method in route.methods or ()}
    return ", ".join(sorted(methods))
