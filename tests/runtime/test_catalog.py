"""The catalog: what is written is what is read, and no damage is taken for a catalog."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.cache import _DAMAGE
from restnet_runtime.catalog import FORMAT, LINKED, Catalog, DamagedCacheError

KEY = {"bundle": "b" * 64, "cpu": "c"}


def catalog() -> Catalog:
    made = Catalog(
        weights="weights-1.bin",
        weights_bytes=9000,
        linked="bundle-1.bin",
        tensors={0: (5000, "aa"), 8192: (100, "bb"), LINKED + 4096: (64, "cc")},
        packed={"MatMul:0": (("MatMul+1", ((8192, 100, "1"), (0, 0, "1"))),), "Conv:0": ()},
    )
    made.add("small", "route-a.onnx", "d" * 64, [8192, 0], [8192], "prepacked")
    made.add("large", "route-b.onnx", "e" * 64, [LINKED + 4096, 0], [LINKED + 4096], "mapped")
    return made


def test_what_is_written_is_what_is_read() -> None:
    assert Catalog.parse(catalog().dump(KEY), KEY) == catalog()
    assert Catalog.parse(Catalog(weights="w").dump(KEY), KEY) == Catalog(weights="w")


def test_a_route_is_found_with_its_files(tmp_path: Path) -> None:
    small, large = (catalog().compiled(name, tmp_path) for name in ("small", "large"))
    assert small is not None
    assert large is not None
    assert (small.graph, small.weights, small.linked) == (
        tmp_path / "route-a.onnx",
        tmp_path / "weights-1.bin",
        tmp_path / "bundle-1.bin",
    )
    assert small.extents == ((0, 5000, "aa"), (8192, 100, "bb"))
    assert (small.touched, small.touched_bytes, small.level) == ({(8192, 100)}, 100, "prepacked")
    assert large.touched == {(LINKED + 4096, 64)}
    assert catalog().compiled("nowhere", tmp_path) is None


def test_extents_are_sorted_into_the_files_that_they_lie_in(tmp_path: Path) -> None:
    large = catalog().compiled("large", tmp_path)
    assert large is not None
    found = large.located([(LINKED + 4096, 64), (8192, 100), (0, 5000)])
    assert found == {tmp_path / "weights-1.bin": [(0, 5000), (8192, 100)], tmp_path / "bundle-1.bin": [(4096, 64)]}


def test_its_files_are_all_that_it_names() -> None:
    assert catalog().files() == {"weights-1.bin", "bundle-1.bin", "route-a.onnx", "route-b.onnx"}
    assert Catalog(weights="w").files() == {"w"}


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_any_other_byte_is_damage(at: int, change: int) -> None:
    data = bytearray(catalog().dump(KEY))
    data[at % len(data)] ^= change
    with pytest.raises(DamagedCacheError, match="has changed"):
        Catalog.parse(bytes(data), KEY)


@given(st.integers(0, 10**6))
def test_a_part_of_it_is_damage(length: int) -> None:
    data = catalog().dump(KEY)
    with pytest.raises(DamagedCacheError, match="has changed"):
        Catalog.parse(data[: length % len(data)], KEY)


def test_of_another_device_or_format_it_is_not_used() -> None:
    with pytest.raises(DamagedCacheError, match="another bundle, device or version"):
        Catalog.parse(catalog().dump({**KEY, "cpu": "d"}), KEY)
    for number in (FORMAT - 1, FORMAT + 1):
        with pytest.raises(DamagedCacheError, match="another bundle, device or version"):
            Catalog.parse(signed(lambda document: document.update(format=number)), KEY)  # noqa: B023


def signed(change) -> bytes:
    """A catalog that somebody has changed, with a digest that fits."""
    document = json.loads(catalog().dump(KEY).partition(b"\n")[2])
    change(document)
    data = json.dumps(document).encode()
    return hashlib.sha256(data).hexdigest().encode() + b"\n" + data


def test_the_helper_makes_what_is_accepted() -> None:
    assert Catalog.parse(signed(dict.copy), KEY) == catalog()


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "", ".", "..", 7, None, ["w"]])
@pytest.mark.parametrize("where", ["weights", "linked", "graph"])
def test_names_that_lead_elsewhere_are_damage(where: str, name: object) -> None:
    def change(document: dict) -> None:
        (document["routes"]["small"] if where == "graph" else document)[where] = name

    if where == "linked" and name is None:  # no link: what lies in it is refused when it is looked for
        assert Catalog.parse(signed(change), KEY).linked is None
        return
    with pytest.raises(DamagedCacheError, match="is not a file name"):
        Catalog.parse(signed(change), KEY)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("tensors"),
        lambda document: document.update(tensors=[[0]]),
        lambda document: document.update(tensors=7),
        lambda document: document.update(weights_bytes="many"),
        lambda document: document.update(packed={"MatMul:0": [["key", [[0, 1]]]]}),
        lambda document: document.update(routes=[]) or document["routes"].append(1),
        lambda document: document["routes"]["small"].update(level="best"),
        lambda document: document["routes"]["small"].update(extents=[1]),
        lambda document: document["routes"]["small"].update(touched=None),
        lambda document: document["routes"]["small"].pop("graph_sha256"),
        lambda document: document["routes"].update(small=None),
    ],
)
def test_json_of_another_shape_is_what_the_cache_takes_for_damage(change) -> None:
    with pytest.raises(_DAMAGE):
        Catalog.parse(signed(change), KEY)
