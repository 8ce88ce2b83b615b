"""Observing: a request id for every request, a line in the log for each that failed, and a count of failed predictions."""

import logging
import os
import re
import time
from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from restnet_runtime.errors import ExpiredError, ImageError, InfeasibleError, InputError, ModelError, RequestError, RestnetError, UnitError

REQUEST_ID = "X-Request-ID"
_HEADER = REQUEST_ID.lower().encode()
_ID, _ERROR = "restnet.request_id", "restnet.error"
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/[^/]+)?/infer")
_ASKED = re.compile(rb"[\w.:/+=@-]{1,128}")
_LINES_PER_S = 20
_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (ImageError, "image"),
    (InputError, "input"),
    (RequestError, "request"),
    (UnitError, "unit"),
    (InfeasibleError, "infeasible"),
    (ExpiredError, "expired"),
    (ModelError, "request"),
)
_STATUS_KINDS = {
    400: "request",
    401: "denied",
    403: "denied",
    408: "timeout",
    413: "too_large",
    415: "media_type",
    429: "overload",
    503: "overload",
}
_OUTCOMES = {"infeasible": "refused", "not_ready": "refused", "overload": "overloaded", "expired": "overloaded", "internal": "failed"}

logger = logging.getLogger(__name__)


class Unready(StarletteHTTPException):
    """HTTP 503 while no route is loaded, which is no overload."""


def request_id(scope: Scope) -> str | None:
    """The id of a request; `None` where nobody observes."""
    found: str | None = scope.get(_ID)
    return found


def asked_model(scope: Scope) -> str | None:
    """The model that a request names, in its path or query; there need be none of that name."""
    found = _MODEL.fullmatch(scope["path"])
    if found:
        return found[1]
    named = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("model")
    return named[0] if named else None


def note_error(scope: Scope, error: Exception) -> None:
    """Remember why a request fails, for its line in the log and its count."""
    scope[_ERROR] = (_kind(error), str(error.detail if isinstance(error, StarletteHTTPException) else error))


def _kind(error: Exception) -> str:
    if isinstance(error, Unready):
        return "not_ready"
    cause = error.__cause__
    if isinstance(error, StarletteHTTPException) and error.status_code == 400 and isinstance(cause, RestnetError):
        return _kind(cause)  # the Open Inference Protocol answers 400 for each of them
    if isinstance(error, StarletteHTTPException):
        return _STATUS_KINDS.get(error.status_code, "request" if error.status_code < 500 else "internal")
    return next((kind for base, kind in _KINDS if isinstance(error, base)), "internal")


class Observing:
    """ASGI middleware.

    failed:  told the model that was asked for, if one was named, the outcome and the kind of each prediction request without an answer
    clock:   seconds that never step back, for how many lines there were in one
    """

    def __init__(self, app: ASGIApp, failed: Callable[[str | None, str, str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._failed, self._clock = app, failed, clock
        self._second, self._lines, self._unlogged = 0, 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        own = scope[_ID] = _asked_id(scope) or os.urandom(8).hex()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (_HEADER, own.encode())]
                if message["status"] >= 400:
                    self._note(scope, message["status"], time.perf_counter() - started_s)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            note_error(scope, error)
            self._note(scope, 500, time.perf_counter() - started_s)
            raise

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method, path = scope["method"], scope["path"]
        kind, reason = scope.get(_ERROR, (_STATUS_KINDS.get(status, "request" if status < 500 else "internal"), ""))
        if method == "POST" and (path == "/predict" or path.endswith("/infer")):
            self._failed(asked_model(scope), _OUTCOMES.get(kind, "invalid"), kind)
        second = int(self._clock())
        if second != self._second:
            if self._unlogged:
                logger.warning("%d more requests failed within a second: not logged", self._unlogged)
            self._second, self._lines, self._unlogged = second, 0, 0
        if self._lines >= _LINES_PER_S:  # whoever floods the server does not flood the disk too
            self._unlogged += 1
            return
        self._lines += 1
        path = path[:100]
        facts = {
            "event": "request_failed",
            "request_id": scope[_ID],
            "method": method,
            "path": path,
            "status": status,
            "kind": kind,
            "reason": reason[:300],
            "duration_ms": round(seconds * 1e3, 3),
        }
        level = logging.WARNING if status >= 500 else logging.INFO
        logger.log(level, "%s %r failed: %d %r (request %s)", method, path, status, reason[:300], scope[_ID], extra={"facts": facts})


def _asked_id(scope: Scope) -> str | None:
    """The id that came with the request, where it is one that may stand in a log."""
    for name, value in scope["headers"]:
        if name == _HEADER:
            return value.decode() if _ASKED.fullmatch(value) else None
    return None
