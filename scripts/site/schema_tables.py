"""JSON Schema as Markdown: a table of fields for each object, with links between them."""

import json
import re
from collections.abc import Mapping
from typing import Any


def table(schema: Mapping[str, Any]) -> list[str]:
    """The fields of an object: name, type, whether it must be there, and what it means."""
    properties, required = schema.get("properties", {}), schema.get("required", ())
    rows = [
        f"| `{name}` | {kind(field)} | {'yes' if name in required else _default(field)} | {meaning(field)} |"
        for name, field in properties.items()
    ]
    return ["| field | type | required | meaning |", "|---|---|---|---|", *rows] if rows else []


def kind(field: Mapping[str, Any]) -> str:
    """The type in words, with a link where it is an object that has a table of its own."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(kind(one) for one in field["anyOf"])
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return " or ".join(f"`{json.dumps(one)}`" for one in field["enum"])
    if field.get("type") == "array":
        if "prefixItems" in field:
            return f"list of {len(field['prefixItems'])}: " + ", ".join(dict.fromkeys(kind(one) for one in field["prefixItems"]))
        return f"list of {kind(field['items'])}" if field.get("items") else "list"
    if field.get("type") == "object" and isinstance(field.get("additionalProperties"), Mapping):
        return f"object of {kind(field['additionalProperties'])}"
    if len(values := list(field.get("patternProperties", {}).values())) == 1:
        return f"object of {kind(values[0])}"
    return str(field.get("type", "anything"))


_RANGES = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
    "maxLength": "at most {} characters",
}


def meaning(field: Mapping[str, Any]) -> str:
    """The description, then what is allowed."""
    parts = [text(field.get("description", ""))]
    parts += [words.format(f"{field[key]:,}") for key, words in _RANGES.items() if key in field and "prefixItems" not in field]
    if "pattern" in field:
        parts.append(f"matches `{field['pattern']}`".replace("|", "\\|"))
    return "; ".join(part for part in parts if part)


def text(words: str) -> str:
    """Words in a cell: one line, and no character that would be taken for markup."""
    return re.sub(r"(?<!`)\*", r"\\*", " ".join(words.split())).replace("|", "\\|").replace("<", "&lt;")


def _default(field: Mapping[str, Any]) -> str:
    return f"no: `{json.dumps(field['default'])}`" if field.get("default") is not None else "no"
