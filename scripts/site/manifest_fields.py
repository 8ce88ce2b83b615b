"""The manifest as Markdown, from docs/bundle.schema.json, which is generated from the reader itself."""

import json
from pathlib import Path

from schema_tables import table, text

SCHEMA = Path(__file__).parents[2] / "docs" / "bundle.schema.json"


def render() -> str:
    """The manifest first, then every object that it is made of."""
    schema = json.loads(SCHEMA.read_text())
    parts = {"manifest.json": schema, **schema["$defs"]}
    out: list[str] = []
    for name, part in parts.items():
        out += [f"## {name}", "", text(part.get("description", "")), "", *table(part), ""]
    return "\n".join(out)
