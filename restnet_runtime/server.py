"""Server: uvicorn around an application, in this process, until it is told to stop."""

import signal
from types import FrameType

import uvicorn
from starlette.types import ASGIApp


def run_server(app: ASGIApp, host: str, port: int, *, log_level: str = "info", graceful_s: int = 30) -> None:
    """Serve `app` until SIGTERM or SIGINT; then take no new requests, finish those in flight, and return.

    port:        0 takes a free one; the log says which
    graceful_s:  how long requests in flight may take to finish
    Call it from the main thread. Raises `SystemExit` with a code other than 0 when the address cannot be bound or `app` does not start.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level=log_level,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=graceful_s,
        ws="none",
    )
    # uvicorn raises the signal again once it is done, which would end the process by that signal instead of with code 0.
    previous = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server = uvicorn.Server(config)
        server.run()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if not server.started:  # older versions of uvicorn return as if all were well
        raise SystemExit(1)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Stopping is over by the time this is called."""
