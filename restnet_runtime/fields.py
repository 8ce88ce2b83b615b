"""Fields: what may stand in each place of a JSON document, as type annotations of dataclasses say it.

A record is a frozen dataclass. Its fields are annotated with `str`, `int`, `float`, `bool`, `Literal[...]`, `X | None`, `tuple[X, ...]`,
`tuple[X, Y]`, `dict[str, X]`, or another record, and `Annotated` adds `Limits` and a description. `read` makes records from what
`json.loads` returns; `field_schema.py` makes the JSON Schema from the same annotations. Nothing is coerced: text is no number, a
fraction is no integer, and a field that a record does not have is an error.

Messages are worded as pydantic's, which does the same and takes ten times as long to import as everything here.
"""

import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin

T = TypeVar("T")
Read = Callable[[Any], Any]


class Limits(NamedTuple):
    """What a value is limited to beside its type. Lengths are of texts in characters, of tuples and dictionaries in items.

    pattern: a regular expression that the whole text matches
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    min_length: int = 0
    max_length: int | None = None
    pattern: str | None = None


class FieldError(ValueError):
    """A value that may not stand where it stands.

    path:  names and indices that lead to it
    found: the value; for a field that is missing, the object that lacks it
    """

    def __init__(self, message: str, found: object, *path: str | int) -> None:
        super().__init__(message)
        self.message, self.found, self.path = message, found, path

    @property
    def where(self) -> str:
        """`routes.0.accuracy`; empty for the document itself."""
        return ".".join(str(step) for step in self.path)

    def within(self, step: str | int) -> "FieldError":
        """The same, as seen from what holds the value."""
        self.path = (step, *self.path)
        return self


def read(kind: type[T], value: Any) -> T:
    """`value`, as `json.loads` returns it, as a record of that kind. Raises `FieldError` for the first thing that is wrong."""
    made: T = _reader(cast(Hashable, kind))(value)
    return made


def check(kind: Any, value: Any) -> None:
    """Raise `FieldError` unless `value` may stand where `kind` is asked for: an annotation, as fields have them."""
    _reader(kind)(value)


def described(annotation: Any) -> tuple[Any, Limits, str | None]:
    """The type, the limits and the description of an annotation."""
    if get_origin(annotation) is not Annotated:
        return annotation, Limits(), None
    kind, *notes = get_args(annotation)
    limits = next((note for note in notes if isinstance(note, Limits)), Limits())
    return kind, limits, next((note for note in notes if isinstance(note, str)), None)


def optional(kind: Any) -> Any:
    """X of `X | None`; `None` for other types."""
    return get_args(kind)[0] if get_origin(kind) in (Union, UnionType) else None


@cache
def _reader(annotation: Hashable) -> Read:
    kind, limits, _ = described(annotation)
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _choice(args)
    if optional(kind) is not None:
        inner = _reader(optional(kind))
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        return _sequence(_reader(args[0]), limits) if args[-1] is Ellipsis else _fixed([_reader(part) for part in args])
    if origin is dict:
        return _table(_reader(args[0]), _reader(args[1]), limits)
    if is_dataclass(kind):
        return _record(kind)
    simple: dict[Any, Callable[[Limits], Read]] = {str: _text, int: _whole, float: _real, bool: _flag}
    return simple[kind](limits)


def _text(limits: Limits) -> Read:
    pattern = None if limits.pattern is None else re.compile(limits.pattern)

    def read_text(value: Any) -> str:
        if not isinstance(value, str):
            raise FieldError("Input should be a valid string", value)
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise FieldError("Invalid JSON: half of a surrogate pair", value) from None
        if len(value) < limits.min_length:
            raise FieldError(f"String should have at least {_plural(limits.min_length, 'character')}", value)
        if limits.max_length is not None and len(value) > limits.max_length:
            raise FieldError(f"String should have at most {_plural(limits.max_length, 'character')}", value)
        if pattern is not None and not pattern.fullmatch(value):
            raise FieldError(f"String should match pattern '{limits.pattern}'", value)
        return value

    return read_text


def _whole(limits: Limits) -> Read:
    def read_whole(value: Any) -> int:
        if type(value) is not int:
            raise FieldError("Input should be a valid integer", value)
        _check_limits(value, limits)
        return value

    return read_whole


def _real(limits: Limits) -> Read:
    def read_real(value: Any) -> float:
        if type(value) is not float and type(value) is not int:
            raise FieldError("Input should be a valid number", value)
        try:
            number = float(value)
        except OverflowError:  # an integer beyond all of them
            number = math.inf
        if not math.isfinite(number):
            raise FieldError("Input should be a finite number", value)
        _check_limits(number, limits)
        return number

    return read_real


def _flag(_: Limits) -> Read:
    def read_flag(value: Any) -> bool:
        if not isinstance(value, bool):
            raise FieldError("Input should be a valid boolean", value)
        return value

    return read_flag


def _choice(allowed: tuple[Any, ...]) -> Read:
    *most, last = (repr(value) for value in allowed)
    named = f"{', '.join(most)} or {last}" if most else last

    def read_choice(value: Any) -> Any:
        for one in allowed:
            if type(value) is type(one) and value == one:
                return value
        raise FieldError(f"Input should be {named}", value)

    return read_choice


def _sequence(read_item: Read, limits: Limits) -> Read:
    def read_sequence(value: Any) -> tuple[Any, ...]:
        _check_length("Tuple", _listed(value), limits)
        return _read_each([read_item] * len(value), value)

    return read_sequence


def _fixed(readers: list[Read]) -> Read:
    def read_fixed(value: Any) -> tuple[Any, ...]:
        _check_length("Tuple", _listed(value), Limits(max_length=len(readers)))
        if len(value) < len(readers):
            raise FieldError("Field required", value, len(value))
        return _read_each(readers, value)

    return read_fixed


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise FieldError("Input should be a valid array", value)
    return value


def _read_each(readers: Sequence[Read], values: list[Any]) -> tuple[Any, ...]:
    made: list[Any] = []
    try:
        for read_one, value in zip(readers, values, strict=True):
            made.append(read_one(value))
    except FieldError as error:
        raise error.within(len(made)) from None
    return tuple(made)


def _table(read_key: Read, read_value: Read, limits: Limits) -> Read:
    def read_table(value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise FieldError("Input should be an object", value)
        _check_length("Dictionary", value, limits)
        made = {}
        for key, one in value.items():
            try:
                read_key(key)
            except FieldError as error:
                raise error.within("[key]").within(key) from None
            try:
                made[key] = read_value(one)
            except FieldError as error:
                raise error.within(key) from None
        return made

    return read_table


def _record(kind: Any) -> Read:
    parts = [(part.name, _reader(cast(Hashable, part.type)), required(part)) for part in fields(kind)]
    known = {name for name, _, _ in parts}

    def read_record(value: Any) -> Any:
        if not isinstance(value, dict):
            raise FieldError("Input should be an object", value)
        made = {}
        for name, read_part, needed in parts:
            if name in value:
                try:
                    made[name] = read_part(value[name])
                except FieldError as error:
                    raise error.within(name) from None
            elif needed:
                raise FieldError("Field required", value, name)
        for name in value:
            if name not in known:
                raise FieldError("Extra inputs are not permitted", value[name], name)
        return kind(**made)

    return read_record


def required(part: Any) -> bool:
    """Has this field of a dataclass no default?"""
    return part.default is MISSING and part.default_factory is MISSING


def _check_limits(value: float, limits: Limits) -> None:
    if limits.ge is not None and not value >= limits.ge:
        raise FieldError(f"Input should be greater than or equal to {limits.ge}", value)
    if limits.gt is not None and not value > limits.gt:
        raise FieldError(f"Input should be greater than {limits.gt}", value)
    if limits.le is not None and not value <= limits.le:
        raise FieldError(f"Input should be less than or equal to {limits.le}", value)


def _check_length(what: str, value: Any, limits: Limits) -> None:
    if len(value) < limits.min_length:
        raise FieldError(f"{what} should have at least {_plural(limits.min_length, 'item')} after validation, not {len(value)}", value)
    if limits.max_length is not None and len(value) > limits.max_length:
        raise FieldError(f"{what} should have at most {_plural(limits.max_length, 'item')} after validation, not {len(value)}", value)


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")
