"""Guard: what is refused before anything else is looked at: headers without end, foreign hosts and pages, and who has no token."""

import re

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from restnet_runtime.access import Access
from restnet_runtime.observing import note_error

_HEALTH = frozenset(("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"))
_FILES = re.compile(r"/|/docs|/openapi\.json|/web/[a-z.]+")  # of the package, the same everywhere
_READING = frozenset(("GET", "HEAD", "OPTIONS"))
_ASKING = re.compile(r"/predict|/v2/models/[^/]+(/versions/[^/]+)?/infer|/v2/repository/index")
"""What is posted without changing anything. All else that is not read is taken for a change, whether there is such a path or not."""
_METHODS = "GET, HEAD, POST, PUT, DELETE"
_EXPOSED = "Inference-Header-Content-Length, Retry-After, X-Request-ID"
_PREFLIGHT_S = "600"
READ_ONLY = "this server is read-only: budget, pin and models are changed where it was started"


def is_change(method: str, path: str) -> bool:
    """Would that request change the state of the server?"""
    return method not in _READING and not (method == "POST" and _ASKING.fullmatch(path))


class Guard:
    """ASGI middleware. Health checks are asked for no host, no origin and no token."""

    def __init__(self, app: ASGIApp, access: Access, *, read_only: bool = False) -> None:
        self._app, self._access, self._read_only = app, access, read_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            origin = self._check_sender(scope)
        except HTTPException as refused:
            note_error(scope, refused)
            await _answer(refused)(scope, receive, send)
            return
        if origin is None or not self._access.shares_with(origin):
            await self._finish(scope, receive, send)
            return

        async def sharing(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Expose-Headers"] = _EXPOSED
                headers.add_vary_header("Origin")
            await send(message)

        await self._finish(scope, receive, sharing, shared=True)

    async def _finish(self, scope: Scope, receive: Receive, send: Send, *, shared: bool = False) -> None:
        """The rest, whose refusals a page of an allowed origin may read too."""
        if shared and scope["method"] == "OPTIONS" and _all(scope, b"access-control-request-method"):
            # It never carries a token: what it allows is to ask with one.
            asked = b",".join(_all(scope, b"access-control-request-headers")).decode("latin-1")
            headers = {"Access-Control-Allow-Methods": _METHODS, "Access-Control-Max-Age": _PREFLIGHT_S}
            if asked:
                headers["Access-Control-Allow-Headers"] = asked
            await Response(status_code=204, headers=headers)(scope, receive, send)
            return
        try:
            self._check_rights(scope)
        except HTTPException as refused:
            note_error(scope, refused)
            await _answer(refused)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_sender(self, scope: Scope) -> str | None:
        """The origin, if the request has one that is not this server. Raises HTTP 431, 400, 421 and 403."""
        access, headers = self._access, scope["headers"]
        if len(headers) > access.max_headers:
            raise HTTPException(431, f"the request has {len(headers)} headers; the limit is {access.max_headers}")
        size = sum(len(name) + len(value) for name, value in headers)
        if size > access.max_header_bytes:
            raise HTTPException(431, f"the headers have {size} bytes; the limit is {access.max_header_bytes}")
        if scope["path"] in _HEALTH:
            return None
        hosts = _all(scope, b"host")
        if len(hosts) > 1:
            raise HTTPException(400, "the request has more than one header Host")
        host = hosts[0].decode("latin-1") if hosts else ""
        if hosts and not access.trusts_host(host):  # HTTP/1.0 needs none, and browsers do not speak it
            raise HTTPException(421, f"the host {host[:60]!r} is not served here: restnet-serve --trusted-host NAME allows a name")
        origins = _all(scope, b"origin")
        origin = origins[0].decode("latin-1") if origins else None
        if origin is None or origin.partition("://")[2].lower() == host.lower():
            return None
        if len(origins) > 1 or (scope["method"] not in _READING and not access.shares_with(origin)):
            raise HTTPException(403, f"pages of {origin[:60]!r} may not use this server: restnet-serve --cors-origin ORIGIN allows them")
        return origin

    def _check_rights(self, scope: Scope) -> None:
        """Raises HTTP 401 and 403."""
        access, path = self._access, scope["path"]
        changing = is_change(scope["method"], path)
        if access.token is not None and (changing or (access.require == "all" and path not in _HEALTH and not _FILES.fullmatch(path))):
            given = _all(scope, b"authorization")
            scheme, _, credentials = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
            if scheme.lower() != b"bearer" or not access.token.matches(credentials.strip()):
                wrong = ', error="invalid_token"' if given else ""
                raise HTTPException(
                    401,
                    "the token is wrong" if given else "a token is needed for this: send Authorization: Bearer TOKEN",
                    {"WWW-Authenticate": f'Bearer realm="restnet-runtime"{wrong}'},
                )
        if changing and self._read_only:
            raise HTTPException(403, READ_ONLY)


def _all(scope: Scope, wanted: bytes) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == wanted]


def _answer(refused: HTTPException) -> Response:
    # What was announced as body is not read: the next request must not be looked for in it.
    return JSONResponse({"error": refused.detail}, refused.status_code, {**(refused.headers or {}), "Connection": "close"})
