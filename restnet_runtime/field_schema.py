"""The JSON Schema of a record of `fields.py`, from the same annotations that it is read by."""

from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from restnet_runtime.fields import Limits, described, optional, required

_TYPES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema_of(kind: Any) -> dict[str, Any]:
    """The schema of a record (a dataclass); the records that it holds are under `$defs`."""
    defs: dict[str, Any] = {}
    own = _record(kind, defs)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": dict(sorted(defs.items())), **own}


def _record(kind: Any, defs: dict[str, Any]) -> dict[str, Any]:
    properties = {part.name: _property(part, defs) for part in fields(kind)}
    needed = [part.name for part in fields(kind) if required(part)]
    return {
        "additionalProperties": False,
        "description": kind.__doc__,
        "properties": properties,
        **({"required": needed} if needed else {}),
        "title": kind.__name__,
        "type": "object",
    }


def _property(part: Any, defs: dict[str, Any]) -> dict[str, Any]:
    kind, _, description = described(part.type)
    made = _value(part.type, defs)
    if description is not None:
        made["description"] = description
    if not required(part):
        default: Any = part.default if part.default is not MISSING else part.default_factory()
        made["default"] = asdict(default) if is_dataclass(kind) else default
    if not is_dataclass(kind):
        made["title"] = part.name.replace("_", " ").title()
    return made if is_dataclass(kind) else dict(sorted(made.items()))


def _value(annotation: Any, defs: dict[str, Any]) -> dict[str, Any]:
    kind, limits, _ = described(annotation)
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        allowed = {"const": args[0]} if len(args) == 1 else {"enum": list(args)}
        return {**allowed, "type": _TYPES[type(args[0])]}
    if optional(kind) is not None:
        return {"anyOf": [_value(optional(kind), defs), {"type": "null"}]}
    if origin is tuple and args[-1] is Ellipsis:
        return {"items": _value(args[0], defs), **_lengths("Items", limits), "type": "array"}
    if origin is tuple:
        parts = [_value(part, defs) for part in args]
        return {"maxItems": len(args), "minItems": len(args), "prefixItems": parts, "type": "array"}
    if origin is dict:
        return {**_entries(args[0], args[1], defs), **_lengths("Properties", limits), "type": "object"}
    if is_dataclass(kind):
        name = kind.__name__  # type: ignore[union-attr]
        defs[name] = _record(kind, defs)
        return {"$ref": f"#/$defs/{name}"}
    bounds = {"minimum": limits.ge, "exclusiveMinimum": limits.gt, "maximum": limits.le, "pattern": limits.pattern}
    given = {key: bound for key, bound in bounds.items() if bound is not None}
    return dict(sorted({**given, **_lengths("Length", limits), "type": _TYPES[kind]}.items()))


def _entries(key: Any, value: Any, defs: dict[str, Any]) -> dict[str, Any]:
    made = _value(value, defs)
    named, limits, _ = described(key)
    if get_origin(named) is Literal:
        return {"additionalProperties": made, "propertyNames": {"enum": list(get_args(named))}}
    return {"patternProperties": {limits.pattern: made}} if limits.pattern is not None else {"additionalProperties": made}


def _lengths(what: str, limits: Limits) -> dict[str, int]:
    bounds = {f"max{what}": limits.max_length, f"min{what}": limits.min_length or None}
    return {key: bound for key, bound in bounds.items() if bound is not None}
