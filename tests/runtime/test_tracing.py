"""Spans of requests, in memory and as OTLP to a collector that is here."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest

from restnet_runtime.api import create_app
from restnet_runtime.controller import Controller
from restnet_runtime.errors import RestnetError
from restnet_runtime.models import Backend
from restnet_runtime.reading import Reading
from restnet_runtime.settings import ServeSettings

pytest.importorskip("opentelemetry.sdk", reason="traces need the extra otel")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="traces need the extra otel")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Device:
    """Sensors that read nothing."""

    def read(self):
        return Reading()


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
def client(executor, spans, serve_app):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    controller = Controller(executor, Device())
    controller.tick()
    with serve_app(create_app(Backend(executor, controller), ServeSettings(), tracer_provider=provider)) as client:
        yield client
    provider.shutdown()


def finished(spans, count):
    """A span ends once its answer has been sent, which its client may see first."""
    deadline = time.monotonic() + 20
    while len(found := spans.get_finished_spans()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


def test_a_request_is_a_span_of_its_callers_trace(client, spans):
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "mine"}
    answer = client.post("/predict", json={"inputs": np.zeros((1, 8, 8)).tolist()}, headers=headers).raise_for_status()
    (span,) = finished(spans, 1)
    assert (span.name, span.kind.name) == ("POST /predict", "SERVER")
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    found = dict(span.attributes)
    assert (found["restnet.route"], found["restnet.budget_met"], found["restnet.request_id"]) == (answer.json()["route"], True, "mine")
    assert found["restnet.run_ms"] == answer.json()["latency_ms"]
    assert found["http.response.status_code"] == 200


def test_requests_of_the_open_inference_protocol_have_their_route(client, spans):
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.0] * 64}
    answer = client.post("/v2/models/shapes/infer", json={"inputs": [tensor]}).raise_for_status().json()
    (span,) = finished(spans, 1)
    assert span.name == "POST /v2/models/{model_name}/infer"
    assert span.attributes["restnet.route"] == answer["parameters"]["route"]


def test_what_fails_is_marked_and_paths_of_clients_are_no_names(client, spans):
    assert client.get("/nobody/knows").status_code == 404
    assert client.post("/predict", content=b"").status_code == 400
    refused = client.post("/predict", json={"inputs": np.zeros((1, 8, 8)).tolist(), "budget": "1MACs,99%"})
    assert refused.status_code == 503
    found = {span.attributes["http.response.status_code"]: span for span in finished(spans, 3)}
    assert {status: span.name for status, span in found.items()} == {404: "GET", 400: "POST /predict", 503: "POST /predict"}
    assert {status: span.status.status_code.name for status, span in found.items()} == {404: "UNSET", 400: "UNSET", 503: "ERROR"}


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    from restnet_runtime.tracing import open_provider

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(RestnetError, match=r"restnet-runtime\[otel\]"):
        open_provider("1")


def test_the_command_sends_them_to_a_collector(family_path, cache_root):
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"])), self.headers.get("Content-Encoding")))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever).start()
    code = "import sys; from restnet_runtime.cli import serve; sys.exit(serve())"
    environment = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_SERVICE_NAME": "device-7",
    }
    command = [sys.executable, "-c", code, str(family_path), "--cache", str(cache_root), "--port", "0", "--otel"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        process.stdout.readline()
        url = process.stdout.readline().split()[-1]
        httpx.get(f"{url}/healthz", trust_env=False, timeout=60).raise_for_status()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0  # and what was not sent yet is sent before
    finally:
        process.kill()
        process.communicate()
        collector.shutdown()
        collector.server_close()
    path, body, encoding = received[0]
    assert (path, encoding) == ("/v1/traces", None)
    message = ExportTraceServiceRequest.FromString(body)
    (resource,) = message.resource_spans
    named = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
    assert named["service.name"] == "device-7"
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["GET /healthz"]
