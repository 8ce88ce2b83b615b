"""Receiving: the body of a request, within limits on its size, on its time, and on what all unfinished bodies take together."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from restnet_runtime.settings import ServeSettings


class Receiver:
    """Reads the bodies of one server. Not thread safe: it belongs to the event loop."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self.held_bytes = 0
        """What has arrived of bodies that are not complete."""

    async def read(self, request: Request, encodings: tuple[str, ...] = ()) -> bytes:
        """The whole body, as it was sent.

        encodings: those of Content-Encoding that the caller decodes

        Raises HTTP 415 when it is in another one, 413 as soon as it is known to be too long, whatever Content-Length says, 408 when it is
        not complete in time, 503 when too much is being received at once, and 400 when the client leaves.
        """
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", *encodings):
            instead = f"send {' or '.join(encodings)}, or the body as it is" if encodings else "send the body as it is"
            raise HTTPException(415, f"Content-Encoding {encoding[:60]!r} is not taken here: {instead}")
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and (len(declared) > 18 or int(declared) > self._settings.max_body_bytes):
            raise self._too_long()
        limit_s = self._settings.body_timeout_s
        try:
            return await asyncio.wait_for(self._receive(request), limit_s)
        except asyncio.TimeoutError as late:
            # The rest may still come, and must not be taken for the next request's.
            raise HTTPException(
                408, f"the body was not complete after {limit_s:g} s, which is the limit", {"Connection": "close"}
            ) from late
        except ClientDisconnect as gone:
            raise HTTPException(400, "the client went away before the body was complete") from gone

    async def _receive(self, request: Request) -> bytes:
        chunks: list[bytes] = []
        size, limit = 0, self._settings.max_receiving_bytes
        try:
            async for chunk in request.stream():
                if size + len(chunk) > self._settings.max_body_bytes:
                    raise self._too_long()
                if self.held_bytes + len(chunk) > limit:
                    raise HTTPException(
                        503, f"the bodies being received exceed {limit} bytes, which is the limit: try again", {"Retry-After": "1"}
                    )
                if chunk:
                    chunks.append(chunk)
                size += len(chunk)
                self.held_bytes += len(chunk)
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        finally:
            self.held_bytes -= size

    def _too_long(self) -> HTTPException:
        return HTTPException(413, f"the body exceeds {self._settings.max_body_bytes} bytes, which is the limit")
