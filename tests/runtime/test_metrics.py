"""/metrics of a real server: that Prometheus can read it, that it says what happened, and that what deploy/ asks for is there."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from restnet_runtime.api import create_app
from restnet_runtime.budget import Budget
from restnet_runtime.compile import Compiler
from restnet_runtime.controller import Controller
from restnet_runtime.executor import Executor
from restnet_runtime.loader import Progress
from restnet_runtime.metrics import OUTCOMES
from restnet_runtime.models import Backend
from restnet_runtime.reading import Reading
from restnet_runtime.sessions import SessionSettings
from restnet_runtime.settings import ServeSettings

ROOT = Path(__file__).parents[2]
READING = Reading(
    memory_available_bytes=10**12,  # more than all the tests before have left in this process, or nothing would fit
    own_memory_bytes=60_000_000,
    cpu_percent=25.0,
    pressure_cpu_share=0.5,
    temperature_c=61.5,
    cpu_frequency_mhz=1500.0,
    throttled=("heat",),
)


class Device:
    """Sensors that read what they are told."""

    reading = READING

    def read(self):
        return self.reading


@pytest.fixture
def served(family_bundle, cache_root, serve_app):
    executor = Executor(family_bundle, Compiler.for_bundle(family_bundle, cache_root), SessionSettings(threads=1))
    for route in family_bundle.routes:
        executor.load(route.name)
    controller = Controller(executor, Device())
    controller.tick()
    progress = Progress(5, 4, None, 3, (), {"broken": "no kernel"}, failed_compiles=1)
    app = create_app(Backend(executor, controller, progress=lambda: progress), ServeSettings(workers=2, max_batch=4))
    with serve_app(app) as client:
        client.controller = controller
        yield client
    executor.close()


def png():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def families(client):
    return {family.name: family for family in parse(client.get("/metrics").text)}


def values(client):
    """By name and labels (without the model)."""
    found = {}
    for family in parse(client.get("/metrics").text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "model"}
            found[(sample.name, *sorted(labels.values()))] = sample.value
    return found


def test_prometheus_reads_it_in_both_formats(served):
    served.post("/predict", content=png()).raise_for_status()
    plain = served.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    open_ = served.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert open_.headers["content-type"].startswith("application/openmetrics-text")

    def names(parsed):
        return {sample.name for family in parsed for sample in family.samples}

    assert names(parse(plain.text)) == names(parse_openmetrics(open_.text))


def test_names_keep_the_rules_that_promtool_checks(served):
    served.post("/predict", content=png()).raise_for_status()
    text = served.get("/metrics").text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    assert set(kinds) == set(helps)
    assert len(kinds) > 40
    units = {"s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "hr", "min", "milliseconds", "percent", "megabytes", "hours", "bits"}
    for name, kind in kinds.items():
        words = name.split("_")
        assert re.fullmatch(r"(restnet|process)(_[a-z][a-z0-9]*)+", name)
        assert (kind == "counter") == name.endswith("_total"), name
        assert words[-1] not in {"count", "sum", "bucket", "created"}, name
        assert not {"gauge", "counter", "histogram", "summary"} & set(words), name
        assert not units & set(words), name
        if kind == "histogram":
            assert name.endswith("_seconds")


def test_requests_are_counted_by_how_they_ended(served):
    before = values(served)
    assert {name[1] for name in before if name[0] == "restnet_requests_total"} == set(OUTCOMES)
    served.post("/predict", content=png()).raise_for_status()
    served.post("/predict", content=npy(np.zeros((3, 1, 8, 8), np.float32))).raise_for_status()
    missed = served.post("/predict", content=png(), headers={"X-Restnet-Budget": "1MACs"}).json()
    assert missed["budget_met"] is False
    assert served.post("/predict", content=b"\x89PNG\r\n\x1a\n but no image").status_code == 400
    assert served.post("/predict", content=png(), params={"budget": "many"}).status_code == 422
    assert served.post("/predict", content=b"").status_code == 400
    assert served.post("/predict", content=png(), headers={"X-Restnet-Budget": "1MACs,99%"}).status_code == 503
    served.get("/nowhere")
    served.put("/budget", content=b"{")
    after = values(served)

    def grown(*name):
        return after[name] - before.get(name, 0)

    counted = {outcome: grown("restnet_requests_total", outcome) for outcome in OUTCOMES}
    assert counted == {"met": 2, "missed": 1, "refused": 1, "overloaded": 0, "invalid": 3, "failed": 0}
    errors = {name[1]: grown(*name) for name in after if name[0] == "restnet_request_errors_total"}
    assert errors == {"image": 1, "unit": 1, "request": 1, "infeasible": 1}
    assert grown("restnet_inferences_total", "large") == 4
    assert grown("restnet_inferences_total", "small") == 1
    for what in ("request", "run"):
        assert grown(f"restnet_{what}_duration_seconds_count", "large") == 2
        assert grown(f"restnet_{what}_duration_seconds_bucket", "+Inf", "small") == 1
    assert 0 < after["restnet_run_duration_seconds_sum", "large"] < after["restnet_request_duration_seconds_sum", "large"] < 60


def test_requests_of_the_open_inference_protocol_count_too(served):
    tensor = {"name": "input", "datatype": "FP32", "shape": [2, 1, 8, 8], "data": [0.0] * 128}
    served.post("/v2/models/shapes/infer", json={"inputs": [tensor]}).raise_for_status()
    assert served.post("/v2/models/shapes/infer", json={"inputs": []}).status_code == 400
    assert served.post("/v2/models/nobody/infer", json={"inputs": [tensor]}).status_code == 404
    after = values(served)
    assert after["restnet_requests_total", "met"] == after["restnet_run_duration_seconds_count", "large"] == 1
    assert after["restnet_inferences_total", "large"] == 2
    assert after["restnet_requests_total", "invalid"] == 2
    assert sum(value for name, value in after.items() if name[0] == "restnet_request_errors_total") == 2


def test_a_fault_of_ours_is_a_failure(served, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("restnet_runtime.service.best_classes", broken)
    answer = served.post("/predict", content=png(), headers={"X-Request-ID": "mine"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["connection"] == "close"  # the server ends it, and the next request must not be sent on it
    after = values(served)
    assert after["restnet_requests_total", "failed"] == after["restnet_request_errors_total", "internal"] == 1
    assert [record for record in caplog.records if getattr(record, "facts", {}).get("request_id") == "mine"]


def test_state_is_that_of_the_moment_of_the_scrape(served):
    first = values(served)
    assert first["restnet_route_current", "large"] == 1
    assert "restnet_budget_latency_seconds" not in {name[0] for name in first}
    macs = served.get("/routes").json()["routes"][0]["macs"]
    served.put("/budget", json={"macs": macs, "latency_ms": 250.0, "memory_bytes": 10**12, "min_accuracy": 0.5}).raise_for_status()
    then = values(served)
    assert then["restnet_budget_macs",] == macs
    assert then["restnet_budget_latency_seconds",] == 0.25
    assert then["restnet_budget_memory_bytes",] == 10**12
    assert then["restnet_budget_accuracy_ratio",] == 0.5
    status = served.get("/status").json()
    current = [name[1] for name, value in then.items() if name[0] == "restnet_route_current" and value == 1]
    assert current == [status["current"]]
    assert then["restnet_switches_total",] == status["switched"] == first["restnet_switches_total",] + 1
    assert then["restnet_memory_limit_bytes",] == status["decision"]["limits"]["memory_bytes"]
    profile = next(route["profile"] for route in served.get("/routes").json()["routes"] if route["current"])
    assert then["restnet_predicted_memory_bytes",] == profile["memory_bytes"]
    served.put("/pin", json={"route": "large"}).raise_for_status()
    pinned = values(served)
    assert (then["restnet_pinned",], pinned["restnet_pinned",]) == (0, 1)
    assert (then["restnet_decision_feasible",], pinned["restnet_decision_feasible",]) == (1, 0)
    served.controller.pin = None
    served.controller.budget = Budget()


def test_readings_are_in_base_units_and_what_is_not_known_is_left_out(served):
    read = values(served)
    assert read["restnet_memory_bytes",] == 60_000_000
    assert read["restnet_device_memory_available_bytes",] == 10**12
    assert read["restnet_device_cpu_utilization_ratio",] == 0.25
    assert read["restnet_device_pressure_ratio", "cpu", "device"] == 0.5
    assert read["restnet_device_temperature_celsius",] == 61.5
    assert read["restnet_device_cpu_frequency_hertz",] == 1.5e9
    assert read["restnet_device_throttled",] == 1
    assert ("restnet_device_power_watts",) not in read
    assert ("restnet_device_pressure_ratio", "device", "io") not in read


def test_progress_of_compiling(served):
    read = values(served)
    states = {name[1]: value for name, value in read.items() if name[0] == "restnet_routes"}
    assert states == {"loaded": 4, "failed": 1, "left_out": 0, "outdone": 0, "pending": 0}
    assert read["restnet_routes_compiled_total",] == 3
    assert read["restnet_compile_failures_total",] == 1


def test_clients_cannot_make_series(served):
    """Whatever they send: paths, names and ids of theirs are no labels."""
    served.post("/predict", content=png()).raise_for_status()
    served.post("/predict", content=b"zz")
    before = set(values(served))
    for index in range(30):
        served.post("/predict", content=b"zz", headers={"X-Request-ID": f"id-{index}", "Content-Type": f"text/{index}"})
        served.request(f"VERB{index}", f"/{index}/infer")
        served.get(f"/{index}")
    assert set(values(served)) == before


def test_a_full_server_says_so(family_bundle, cache_root, serve_app):
    executor = Executor(family_bundle, Compiler.for_bundle(family_bundle, cache_root), SessionSettings(threads=1))
    controller = Controller(executor, Device())
    with serve_app(create_app(Backend(executor, controller), ServeSettings())) as client:
        assert client.post("/predict", content=png()).status_code == 503
        read = values(client)
        assert read["restnet_requests_total", "refused"] == read["restnet_request_errors_total", "not_ready"] == 1
        assert read["restnet_requests_in_flight_limit",] == 256
        assert read["restnet_routes", "pending"] == 4
    executor.close()


# What uses it


@pytest.mark.parametrize("file", ["grafana/restnet.json", "prometheus/alerts.yml", "prometheus/triton.yml"])
def test_every_metric_that_deploy_names_exists(served, file):
    served.post("/predict", content=png()).raise_for_status()
    text = (ROOT / "deploy" / file).read_text()
    there = set(families(served)) | {sample.name for family in families(served).values() for sample in family.samples}
    asked = set(re.findall(r"\b(?:restnet|process)_[a-z0-9_]+", text))
    assert len(asked) > 4
    assert asked <= there | {name + "_total" for name in there}


def test_the_dashboard_for_grafana_is_what_its_script_writes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from grafana_dashboard import dashboard

    assert json.loads((ROOT / "deploy/grafana/restnet.json").read_text()) == dashboard()


def test_the_page_lists_every_metric_and_no_other(served):
    served.post("/predict", content=png()).raise_for_status()
    kinds = dict(re.findall(r"^# TYPE (restnet_\S+) (\S+)$", served.get("/metrics").text, re.MULTILINE))
    listed = dict(re.findall(r"^\| `(restnet_[a-z0-9_]+)` \| (\w+)", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    assert listed == kinds
