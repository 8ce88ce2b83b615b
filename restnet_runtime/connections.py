"""Connections: how many there may be, and how long one may take to send a request's headers."""

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Base
else:
    Base = AutoHTTPProtocol

_MOST_HEADER_BYTES = 65_536
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_BODY = b'{"error": "as many connections as are allowed are here: try again"}'
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)


def bounded_protocol(most: int, header_timeout_s: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol with three limits that it lacks, or has for one parser only. Bodies have theirs in `receiving.py`.

    Headers may take 64 KiB before they are complete; what is refused then is in `guard.py`.

    most:              connections at once; further ones get HTTP 503 and are closed
    header_timeout_s:  from the beginning of a connection, or of a request on it, to the end of the request's headers
    """

    class Bounded(Base):
        _late: asyncio.TimerHandle | None = None
        _incomplete_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.write(_FULL)
                transport.close()
                return
            self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._headers_came()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            within_body = self.cycle is not None and self.cycle.more_body  # of a request that was refused, say
            self._incomplete_bytes = 0 if self._busy() or within_body else self._incomplete_bytes + len(data)
            if self._incomplete_bytes > _MOST_HEADER_BYTES and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()
            if self._late is not None:
                if self._busy():
                    self._headers_came()
            elif not self._busy() and self.timeout_keep_alive_task is None:
                self._await_headers()  # the first bytes of another request on an old connection

        def _busy(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _await_headers(self) -> None:
            self._late = self.loop.call_later(header_timeout_s, self._give_up)

        def _headers_came(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _give_up(self) -> None:
            self._late = None
            if not self._busy() and not self.transport.is_closing():
                self.transport.close()

    return Bounded
