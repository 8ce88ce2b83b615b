"""Writes deploy/grafana/restnet.json, which Grafana imports: python scripts/grafana_dashboard.py > deploy/grafana/restnet.json"""

import json
from typing import Any

SELECTED = 'instance=~"$instance", model=~"$model"'
SELECT = f"{{{SELECTED}}}"
DEVICE = '{instance=~"$instance"}'
# title, unit, and for each line its query and legend
GRAPHS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Route that serves", "short", ((f"restnet_route_current{SELECT} == 1", "{{route}}"),)),
    (
        "Accuracy of the route that serves",
        "percentunit",
        ((f"restnet_route_accuracy_ratio * on (instance, model, route) (restnet_route_current{SELECT} == 1)", "{{route}}"),),
    ),
    ("Requests", "reqps", ((f"sum by (outcome) (rate(restnet_requests_total{SELECT}[1m]))", "{{outcome}}"),)),
    ("Errors by kind", "reqps", ((f"sum by (kind) (rate(restnet_request_errors_total{SELECT}[1m]))", "{{kind}}"),)),
    (
        "Latency of requests",
        "s",
        (
            (f"histogram_quantile(0.5, sum by (le) (rate(restnet_request_duration_seconds_bucket{SELECT}[1m])))", "half within"),
            (f"histogram_quantile(0.99, sum by (le) (rate(restnet_request_duration_seconds_bucket{SELECT}[1m])))", "99 % within"),
            (f"restnet_budget_latency_seconds{SELECT}", "limit"),
        ),
    ),
    (
        "Latency of the network by route",
        "s",
        (
            (f"histogram_quantile(0.95, sum by (le, route) (rate(restnet_run_duration_seconds_bucket{SELECT}[1m])))", "{{route}}"),
            (f"restnet_predicted_latency_seconds{SELECT}", "predicted"),
        ),
    ),
    ("Inputs answered by route", "ops", ((f"sum by (route) (rate(restnet_inferences_total{SELECT}[1m]))", "{{route}}"),)),
    (
        "Queue",
        "short",
        ((f"restnet_requests_in_flight{SELECT}", "in flight"), (f"restnet_requests_in_flight_limit{SELECT}", "limit")),
    ),
    ("Switches in a minute", "short", ((f"increase(restnet_switches_total{SELECT}[1m])", "{{model}}"),)),
    (
        "Memory",
        "bytes",
        (
            (f"restnet_memory_bytes{DEVICE}", "measured"),
            (f"restnet_predicted_memory_bytes{SELECT}", "predicted, current route alone"),
            (f"restnet_memory_limit_bytes{SELECT}", "limit in force"),
            (f"restnet_budget_memory_bytes{SELECT}", "budget"),
        ),
    ),
    (
        "CPU",
        "percentunit",
        (
            (f"restnet_device_cpu_utilization_ratio{DEVICE}", "device"),
            (f"rate(process_cpu_seconds_total{DEVICE}[1m])", "this process, cores"),
            ('restnet_device_pressure_ratio{instance=~"$instance", resource="cpu"}', "pressure, {{scope}}"),
        ),
    ),
    ("Slower than profiled", "short", ((f"restnet_slowdown_ratio{SELECT}", "{{model}}"),)),
    (
        "Heat",
        "celsius",
        (
            (f"restnet_device_temperature_celsius{DEVICE}", "hottest zone"),
            (f"restnet_device_temperature_headroom_celsius{DEVICE}", "to where it slows down"),
        ),
    ),
    ("Power", "watt", ((f"restnet_device_power_watts{DEVICE}", "device"),)),
)
STATS: tuple[tuple[str, str, str], ...] = (
    ("Fits the budget", "bool_yes_no", f"min(restnet_decision_feasible{SELECT})"),
    ("Routes ready", "short", f'sum(restnet_routes{{{SELECTED}, state="loaded"}})'),
    ("Routes pending", "short", f'sum(restnet_routes{{{SELECTED}, state="pending"}})'),
    ("Compiled", "short", f"sum(restnet_routes_compiled_total{SELECT})"),
    (
        "Within the budget",
        "percentunit",
        f'sum(rate(restnet_requests_total{{{SELECTED}, outcome="met"}}[5m]))'
        f' / sum(rate(restnet_requests_total{{{SELECTED}, outcome=~"met|missed"}}[5m]))',
    ),
    ("Slowed down", "bool_yes_no", f"max(restnet_device_throttled{DEVICE})"),
)


def panel(number: int, kind: str, title: str, unit: str, queries: tuple[tuple[str, str], ...], place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    targets = [{"refId": chr(65 + index), "expr": query, "legendFormat": legend} for index, (query, legend) in enumerate(queries)]
    return {
        "id": number,
        "type": kind,
        "title": title,
        "datasource": source,
        "gridPos": place,
        "targets": [{**target, "datasource": source} for target in targets],
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
    }


def variable(name: str, query: str) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    return {"name": name, "type": "query", "datasource": source, "query": query, "includeAll": True, "multi": True, "refresh": 2}


def dashboard() -> dict[str, Any]:
    panels = [
        panel(1 + index, "stat", title, unit, ((query, ""),), {"x": 4 * index, "y": 0, "w": 4, "h": 4})
        for index, (title, unit, query) in enumerate(STATS)
    ]
    panels += [
        panel(100 + index, "timeseries", title, unit, queries, {"x": 12 * (index % 2), "y": 4 + 8 * (index // 2), "w": 12, "h": 8})
        for index, (title, unit, queries) in enumerate(GRAPHS)
    ]
    return {
        "title": "ReStNet Runtime",
        "uid": "restnet-runtime",
        "tags": ["restnet"],
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                variable("instance", "label_values(restnet_build_info, instance)"),
                variable("model", "label_values(restnet_model_info, model)"),
            ]
        },
        "panels": panels,
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
