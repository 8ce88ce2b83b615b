"""Tracing, behind the extra `otel`: a span for each HTTP request with the route that answered, joined to the caller's trace.

Where to and under which name is OpenTelemetry's own business: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME` and their kin.
"""

from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from restnet_runtime.errors import RestnetError
from restnet_runtime.observing import request_id

FACTS = "restnet.facts"
"""Key of a request's scope under which whoever answers it leaves attributes for its span."""


class Tracing:
    """ASGI middleware, inside `Observing`: it takes the id from there.

    provider:  of OpenTelemetry's SDK; it is not shut down here
    """

    def __init__(self, app: ASGIApp, provider: Any) -> None:
        from opentelemetry import propagate, trace

        self._app = app
        self._tracer = provider.get_tracer("restnet_runtime")
        self._extract: Callable[..., Any] = propagate.extract
        self._server, self._error = trace.SpanKind.SERVER, trace.StatusCode.ERROR

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/events":  # a stream ends when its listener leaves: no span for hours
            await self._app(scope, receive, send)
            return
        came_from = self._extract({name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]})
        facts: dict[str, Any] = {}
        scope[FACTS] = facts
        method = scope["method"][:20]
        with self._tracer.start_as_current_span(method, context=came_from, kind=self._server) as span:
            span.set_attribute("http.request.method", method)
            span.set_attribute("url.path", scope["path"][:100])
            span.set_attribute("restnet.request_id", request_id(scope) or "")

            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(self._error)
                await send(message)

            try:
                await self._app(scope, receive, sending)
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route is not None:  # a path that is here: what others are called is up to clients
                    span.update_name(f"{method} {route}")
            for key, value in facts.items():
                span.set_attribute(f"restnet.{key}", value)


def open_provider(version: str) -> Any:
    """A provider that sends spans in batches as OTLP over HTTP. Raises `RestnetError` where the extra is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as missing:
        raise RestnetError(f"traces need the extra otel (pip install 'restnet-runtime[otel]'): {missing}") from missing
    named = Resource.create({SERVICE_NAME: "restnet", SERVICE_VERSION: version}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
