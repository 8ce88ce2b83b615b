"""Server: uvicorn around an application, in this process, until it is told to stop."""

import ipaddress
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import LOGGING_CONFIG

from restnet_runtime.connections import bounded_protocol
from restnet_runtime.errors import AddressError

_BACKLOG = 2048


def listen(host: str, port: int, *, remote: bool = False) -> socket.socket:
    """A socket that listens, so that the address is known to be free before anything is loaded; connections wait until it is served.

    host:  a name, or an IPv4 or IPv6 address
    port:  0 takes a free one
    remote:  it may be one that other machines reach
    Raises `AddressError`.
    """
    # The protocol is named because asyncio switches Nagle's algorithm off only where it is: otherwise answers, which are written as head
    # and body, would wait 40 ms for the client to acknowledge the head.
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A port whose last connections still linger can be had; one that is listened on cannot.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        address = listener.getsockname()[0]
        if not (remote or ipaddress.ip_address(address.partition("%")[0]).is_loopback):
            raise AddressError(
                f"{host} is reached from other machines, and whoever reaches it may change the budget: add --allow-remote if that is "
                "wanted, with --token-file or --read-only where others are not trusted"
            )
        listener.listen(_BACKLOG)
    except AddressError:
        listener.close()
        raise
    except (OSError, UnicodeError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise AddressError(f"cannot listen on host {host}, port {port}: {reason}") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """`http://127.0.0.1:8080`, with the port that was taken."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, stopping: Callable[[], object]) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stopping()
        super().handle_exit(sig, frame)


def run_server(
    app: ASGIApp,
    listener: socket.socket,
    *,
    log_level: str = "info",
    graceful_s: int = 30,
    max_connections: int = 512,
    header_timeout_s: float = 10.0,
    own_logs: bool = True,
    ready: Callable[[], object] = lambda: None,
    stopping: Callable[[], object] = lambda: None,
) -> None:
    """Serve `app` until SIGTERM or SIGINT; then take no new requests, finish those in flight, close `listener`, and return.

    own_logs:    uvicorn writes its lines itself, in its own format; otherwise whoever configured logging does
    graceful_s:  how long requests in flight may take to finish
    max_connections, header_timeout_s:  as `bounded_protocol` has them
    stopping:    called when a signal ends it, before requests in flight are waited for: what would never finish by itself is to end
    ready:       called once signals are handled here, before anything is served
    Call it from the main thread. Raises `SystemExit` with a code other than 0 when `app` does not start.
    """
    config = uvicorn.Config(
        app,
        http=bounded_protocol(max_connections, header_timeout_s),
        log_level=log_level,
        log_config=LOGGING_CONFIG if own_logs else None,
        access_log=False,
        lifespan="on",
        server_header=False,
        proxy_headers=False,  # nobody asks who the client is
        timeout_graceful_shutdown=graceful_s,
        ws="none",
        backlog=_BACKLOG,
    )
    server = _Server(config, stopping)

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping()
        server.should_exit = True

    # For a signal that comes before uvicorn's own handlers are there. It also raises the one that it took again once it is done,
    # which would end the process by that signal instead of with code 0.
    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ready()
        server.run(sockets=[listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if not server.started:  # older versions of uvicorn return as if all were well
        raise SystemExit(1)
