"""The HTTP interface as Markdown, from the server's own OpenAPI description."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schema_tables import kind, table, text

_OWN, _PROTOCOL = "Paths of this server", "Open Inference Protocol"


def render() -> str:
    """Every path, then every object that answers are made of."""
    document = description()
    out: list[str] = []
    groups: dict[str, list[str]] = {_OWN: [], _PROTOCOL: []}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups[_PROTOCOL if operation.get("tags") else _OWN] += _operation(method, path, operation)
    for title, parts in groups.items():
        out += [f"## {title}", "", *parts]
    out += ["## Objects", ""]
    for name, schema in document["components"]["schemas"].items():
        out += [f"### {name}", "", text(schema.get("description", "")), "", *table(schema), ""]
    return "\n".join(out)


def description() -> dict[str, Any]:
    """What `GET /openapi.json` answers; no route is loaded for it."""
    from restnet_runtime.api import create_app
    from restnet_runtime.engine import Engine
    from restnet_runtime.models import Backend
    from restnet_runtime.settings import ServeSettings

    with tempfile.TemporaryDirectory() as cache:
        engine = Engine.open(cache_root=Path(cache))
        try:
            return create_app(Backend.of(engine), ServeSettings()).openapi()
        finally:
            engine.stop()


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> list[str]:
    out = [f"### {method.upper()} {path} {{ #{method}{path.replace('/', '-').replace('{', '').replace('}', '')} }}", ""]
    out += [text(operation.get("description", "")), ""]
    if parameters := operation.get("parameters"):
        out += ["| parameter | in | type | meaning |", "|---|---|---|---|"]
        out += [f"| `{one['name']}` | {one['in']} | {kind(one['schema'])} | {text(one.get('description', ''))} |" for one in parameters]
        out.append("")
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        out += [f"**Body `{media}`**", ""]
        fields = table(body.get("schema", {}))
        out += [*fields, ""] if fields else []
        for example in body.get("examples", {}).values():
            out += _example(example)
    answers = operation.get("responses", {})
    good = [_answer(code, answer) for code, answer in answers.items() if code.startswith("2")]
    bad = [f"{code}" for code in answers if not code.startswith("2")]
    out += [f"Answers {'; '.join(good)}. " + (f"Errors: {', '.join(bad)}." if bad else ""), ""]
    return out


def _answer(code: str, answer: Mapping[str, Any]) -> str:
    content = answer.get("content", {})
    shown = [f"`{media}`" + (f" {kind(body['schema'])}" if body.get("schema") else "") for media, body in content.items()]
    return " ".join([code, *shown])


def _example(example: Mapping[str, Any]) -> list[str]:
    """JSON as it is sent; other bodies are told of by their summary alone."""
    summary = f"{example.get('summary', '')}"
    if isinstance(example.get("value"), (dict, list)) and "bytes of" not in str(example["value"]):
        return [f"{text(summary)}:", "", "```json", json.dumps(example["value"]), "```", ""]
    return [f"`{summary}`" if summary.startswith("curl") else text(summary), ""]
