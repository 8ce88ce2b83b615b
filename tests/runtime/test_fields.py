"""Reading records: the manifest's, beside pydantic models made from the same annotations, message by message."""

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restnet_runtime.fields import FieldError, Limits, check, described, optional, read
from restnet_runtime.manifest import Manifest

ODD = [None, True, False, 0, 1, -1, 1.0, 1.5, 2**61, 10**400, 1e308, -0.0, "", "a", "a\n", "é", "x" * 500, [], [0], [1] * 7, {}, {"a": 1}]
LEAVES = st.sampled_from(ODD) | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))


def peer(annotation: Any) -> Any:
    """An annotation of ours as one of pydantic's."""
    kind, limits, _ = described(annotation)
    if dataclasses.is_dataclass(kind):
        return model(kind)
    if optional(kind) is not None:
        return peer(optional(kind)) | None
    args = get_args(kind)
    if get_origin(kind) is tuple:
        kind = tuple[tuple(part if part is Ellipsis else peer(part) for part in args)]
    elif get_origin(kind) is dict:
        kind = dict[peer(args[0]), peer(args[1])]
    given = {name: value for name, value in limits._asdict().items() if value not in (None, 0) or name in ("ge", "gt")}
    return Annotated[kind, pydantic.Field(**{name: value for name, value in given.items() if value is not None})]


def model(kind: Any) -> type[pydantic.BaseModel]:
    config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    parts = {
        part.name: (peer(part.type), ... if part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING else None)
        for part in dataclasses.fields(kind)
    }
    return pydantic.create_model(kind.__name__, __config__=config, **parts)


PEER = model(Manifest)


def verdicts(document: object) -> tuple[tuple[str, str] | None, set[tuple[str, str]]]:
    """What we say is wrong, as (path, message), and all that pydantic says is."""
    text = json.dumps(document)
    theirs = set()
    try:
        PEER.model_validate_json(text)
    except pydantic.ValidationError as error:
        theirs = {(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()}
    try:
        read(Manifest, json.loads(text))
    except FieldError as error:
        return (error.where, error.message), theirs
    return None, theirs


def places(document: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Paths to every value of a manifest but its version, which `open_bundle` reads first: there pydantic takes true for 1."""
    steps = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    below = [place for step, value in steps if step != "version" for place in places(value, (*path, step))]
    return [path, *below] if path else below


def changed(document: Any, path: tuple[str | int, ...], change: Any) -> Any:
    """A copy with `change(holder, step)` made where the path leads."""
    made = copy.deepcopy(document)
    holder = made
    for step in path[:-1]:
        holder = holder[step]
    change(holder, path[-1])
    return made


@pytest.fixture(scope="module")
def manifest(family_path: Path) -> Any:
    return json.loads((family_path / "manifest.json").read_bytes())


def test_a_sound_one_is_read_alike(manifest) -> None:
    assert verdicts(manifest) == (None, set())
    ours, theirs = read(Manifest, manifest), PEER.model_validate_json(json.dumps(manifest))
    assert dataclasses.asdict(ours) == theirs.model_dump()


@pytest.mark.untraced
def test_every_place_refuses_what_pydantic_refuses_in_its_words(manifest) -> None:
    """Every place of a route, a segment, an anchor and all else takes every odd value, loses its name, and gets a neighbour."""
    short = {**manifest, **{part: manifest[part][:1] for part in ("routes", "segments", "anchors")}}
    refused = 0
    for path in places(short):
        changes = [lambda holder, step, value=value: holder.__setitem__(step, value) for value in ODD]
        if isinstance(path[-1], str):
            changes += [
                lambda holder, step: holder.pop(step),
                lambda holder, step: holder.update({f"{step}\u00e9": holder.pop(step)}),
                lambda holder, _: holder.update({"extra": 1}),
            ]
        for change in changes:
            document = changed(short, path, change)
            ours, theirs = verdicts(document)
            assert (ours in theirs) if theirs else ours is None, (path, ours, theirs)
            refused += ours is not None
    assert refused > 500


@pytest.mark.untraced
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_is_judged_as_pydantic_does(manifest, data) -> None:
    path, value = data.draw(st.sampled_from(places(manifest))), data.draw(VALUES)
    ours, theirs = verdicts(changed(manifest, path, lambda holder, step: holder.__setitem__(step, value)))
    assert (ours in theirs) if theirs else ours is None


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Annotated[str, Limits(pattern="^a$")], "a\n", "String should match pattern '^a$'"),
        (Annotated[str, Limits(min_length=2)], "a", "String should have at least 2 characters"),
        (str, "\ud800", "Invalid JSON: half of a surrogate pair"),
        (Annotated[float, Limits(gt=0)], float("nan"), "Input should be a finite number"),
        (float, True, "Input should be a valid number"),
        (int, True, "Input should be a valid integer"),
        (Literal[1, 2], True, "Input should be 1 or 2"),
        (tuple[int, int], [1], "Field required"),
        (tuple[int, ...], {}, "Input should be a valid array"),
        (dict[str, int], [], "Input should be an object"),
    ],
)
def test_one_value(kind: Any, value: object, message: str) -> None:
    with pytest.raises(FieldError) as caught:
        check(kind, value)
    assert caught.value.message == message


def test_a_long_list_is_refused_before_it_is_read(manifest) -> None:
    with pytest.raises(FieldError, match="at most 10000 items after validation, not 1000000") as caught:
        read(Manifest, {**manifest, "routes": [{}] * 1_000_000})
    assert caught.value.where == "routes"


def test_opening_a_bundle_imports_neither_pydantic_nor_http(family_path: Path) -> None:
    program = (
        "import sys; from restnet_runtime.engine import Engine; from pathlib import Path;"
        "engine = Engine.open(sys.argv[1], cache_root=Path(sys.argv[2]));"
        "print([name for name in ('pydantic', 'fastapi', 'starlette', 'uvicorn', 'onnx', 'torch', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, family_path, family_path.parent / "cache"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
