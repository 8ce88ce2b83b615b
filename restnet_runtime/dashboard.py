"""The pages that people look at: `/`, `/docs`, and what they load from `/web/`. No network but this server, nothing inline."""

import hashlib
from importlib import resources

from fastapi import FastAPI, Request, Response

_MEDIA = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_FILES = {
    "/": "dashboard.html",
    "/docs": "docs.html",
    **{f"/web/{name}": name for name in ("style.css", "common.js", "charts.js", "dashboard.js", "docs.js", "icon.svg")},
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_pages(app: FastAPI) -> None:
    """`GET` and `HEAD` of each file; a path names a file of the list above, or none."""
    for path, name in _FILES.items():
        app.add_api_route(path, _Page(name), methods=["GET", "HEAD"], include_in_schema=False)


class _Page:
    """One file of the package, read when it is asked for: they take no memory of a device that nobody watches."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, request: Request) -> Response:
        content = resources.files("restnet_runtime").joinpath("web", self._name).read_bytes()
        headers = {**_HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        media = _MEDIA[self._name.rpartition(".")[2]]
        return Response(content, headers={**headers, "Content-Type": f"{media}; charset=utf-8"})
