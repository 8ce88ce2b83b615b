"""Hostile bundles: a written bundle, really damaged, is refused with one error that names the file and the reason.

Where an attacker would put the digests right again, so do these tests: each check is reached by itself.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from restnet_runtime import bundle as reader
from restnet_runtime.bundle import open_bundle
from restnet_runtime.errors import BundleError
from restnet_runtime.graphs import check_graphs

MANIFEST = "manifest.json"
GRAPH = "segments/small.1.fp32.onnx"


def edited(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Damage: change the manifest's JSON document."""

    def damage(path: Path) -> None:
        document = json.loads((path / MANIFEST).read_bytes())
        change(document)
        (path / MANIFEST).write_text(json.dumps(document))

    return damage


def put(value: object, *steps: str | int) -> Callable[[Path], None]:
    """Damage: one value of the manifest."""

    def change(document: dict) -> None:
        at = document
        for step in steps[:-1]:
            at = at[step]
        at[steps[-1]] = value

    return edited(change)


def manifest_is(data: bytes) -> Callable[[Path], None]:
    return lambda path: (path / MANIFEST).write_bytes(data) and None


def replaced(old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = (path / MANIFEST).read_bytes()
        assert old in data
        (path / MANIFEST).write_bytes(data.replace(old, new, 1))

    return damage


def resized(name: str, change: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path / name, (path / name).stat().st_size + change)


def flipped(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray((path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (path / name).write_bytes(data)

    return damage


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Damage: remove a file or directory and make something else of that name."""

    def damage(path: Path) -> None:
        target = path / name
        if target.is_dir():
            shutil.copytree(target, path.parent / "elsewhere")
            shutil.rmtree(target)
        else:
            shutil.copy(target, path.parent / "elsewhere")
            target.unlink()
        make(target)

    return damage


def listed(name: str) -> Callable[[Path], None]:
    """Damage: a file of that path among `files`, with the digest of the real file where there is one."""

    def change(document: dict) -> None:
        data = Path(name).read_bytes() if name.startswith("/") else b""
        document["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    return edited(change)


def link(target: Path) -> None:
    target.symlink_to(target.parents[1 if target.parent.name == "bundle" else 2] / "elsewhere")


def twice(document: dict, part: str) -> None:
    document[part].append(document[part][0])


def block_of_nobody(document: dict) -> None:
    document["segments"][1]["anchor"] = "ghost"
    document["anchors"][0]["segments"].remove("small.1")


def only_the_manifest(root: Path) -> None:
    (root / "segments").rename(root / "parts")


ROUTE = "route 'small'"
REFUSED = {
    # the directory and its manifest
    "no directory": (shutil.rmtree, "bundle", "cannot be opened: No such file"),
    "a file": (lambda path: (shutil.rmtree(path), path.write_text("")), "bundle", "is not a directory"),
    "a link to itself": (lambda path: (shutil.rmtree(path), path.symlink_to(path)), "bundle", "cannot be opened"),
    "no manifest": (lambda path: (path / MANIFEST).unlink(), "bundle", "is no bundle: there is no manifest.json in it"),
    "manifest a directory": (instead(MANIFEST, Path.mkdir), MANIFEST, "cannot be read: Is a directory"),
    "manifest a link": (instead(MANIFEST, link), MANIFEST, "links are refused"),
    "manifest a pipe": (instead(MANIFEST, os.mkfifo), MANIFEST, "is not a regular file"),
    "manifest too large": (lambda path: os.truncate(path / MANIFEST, 2**40), MANIFEST, f"more than {reader.MAX_MANIFEST_BYTES} bytes"),
    # JSON
    "empty manifest": (manifest_is(b""), MANIFEST, "is not JSON"),
    "not JSON": (manifest_is(b"format: restnet-bundle"), MANIFEST, "is not JSON"),
    "pickle": (manifest_is(b"\x80\x04N."), MANIFEST, "is not JSON"),
    "UTF-16": (manifest_is('{"format": "restnet-bundle"}'.encode("utf-16")), MANIFEST, "is not JSON"),
    "byte order mark": (manifest_is(b"\xef\xbb\xbf{}"), MANIFEST, "is not JSON"),
    "nesting": (manifest_is(b"[" * 200_000), MANIFEST, "is not JSON"),
    "nesting of objects": (manifest_is(b'{"a":' * 200_000), MANIFEST, "is not JSON"),
    "huge number": (manifest_is(b'{"version": ' + b"9" * 10_000 + b"}"), MANIFEST, "is not JSON"),
    "key twice": (replaced(b'"version"', b'"version": 1, "version"'), MANIFEST, "is not JSON: it has the key 'version' twice"),
    "inner key twice": (replaced(b'"bytes"', b'"bytes": 1, "bytes"'), MANIFEST, "is not JSON: it has the key 'bytes' twice"),
    "NaN": (put(float("nan"), "routes", 0, "accuracy"), MANIFEST, "is not JSON: NaN is not a number"),
    "infinity": (put(float("inf"), "preprocessing", "crop_pct"), MANIFEST, "is not JSON: Infinity is not a number"),
    "overflowing number": (replaced(b'"accuracy": 0.8,', b'"accuracy": 1e999,'), MANIFEST, "routes.0.accuracy"),
    "lone surrogate": (replaced(b'"name": "shapes"', b'"name": "\\ud800"'), MANIFEST, "Invalid JSON"),
    "a list": (manifest_is(b"[]"), MANIFEST, "is not a bundle manifest"),
    "no format": (manifest_is(b'{"version": 1}'), MANIFEST, "is not a bundle manifest"),
    "other format": (put("onnx", "format"), MANIFEST, "its format must be 'restnet-bundle'"),
    # the version
    "newer": (put(2, "version"), MANIFEST, "has version 2, this reader understands 1; a newer restnet-runtime may"),
    "version 0": (put(0, "version"), MANIFEST, "has version 0, this reader understands 1"),
    "version true": (put(True, "version"), MANIFEST, "has version True, "),
    "version 1.0": (put(1.0, "version"), MANIFEST, "has version 1.0, "),
    "version text": (put("1", "version"), MANIFEST, "has version '1', "),
    "no version": (edited(lambda document: document.pop("version")), MANIFEST, "has version None, "),
    "long version": (put("1" * 10_000, "version"), MANIFEST, "..."),
    # fields
    "unknown field": (put(1, "hook"), MANIFEST, "hook: Extra inputs are not permitted"),
    "unknown inner field": (put("os", "segments", 0, "import"), MANIFEST, "segments.0.import: Extra inputs"),
    "unprintable field": (put(1, "\x1b[2J"), MANIFEST, "'\\x1b[2J': Extra inputs"),
    "long field": (put(1, "a" * 10_000), MANIFEST, f"{'a' * 200}: Extra inputs"),
    "missing field": (edited(lambda document: document.pop("classes")), MANIFEST, "classes: Field required"),
    "text for a number": (put("2304", "segments", 0, "macs"), MANIFEST, "segments.0.macs: Input should be a valid integer"),
    "number for a truth value": (put(1, "routes", 0, "on_front"), MANIFEST, "routes.0.on_front: Input should be a valid boolean"),
    "fraction of a number": (put(1.5, "segments", 0, "params"), MANIFEST, "segments.0.params"),
    "negative count": (put(-1, "segments", 0, "macs"), MANIFEST, "segments.0.macs: Input should be greater than or equal to 0"),
    "huge count": (put(2**62, "segments", 0, "macs"), MANIFEST, "segments.0.macs: Input should be less than or equal to"),
    "accuracy above one": (put(1.5, "routes", 0, "accuracy"), MANIFEST, "routes.0.accuracy: Input should be less than or equal to 1"),
    "zero deviation": (put([0.0], "preprocessing", "std"), MANIFEST, "preprocessing.std.0: Input should be greater than 0"),
    "unknown task": (put("detection", "task"), MANIFEST, "task: Input should be 'classification'"),
    "unknown precision": (put({"fp4": {"file": GRAPH, "weight_bytes": 0}}, "segments", 0, "graphs"), MANIFEST, "segments.0.graphs.fp4"),
    "newline in a name": (put("small\n", "routes", 0, "name"), MANIFEST, "routes.0.name: String should match pattern"),
    "markup in a name": (put("<script>", "routes", 0, "name"), MANIFEST, "routes.0.name: String should match pattern"),
    "huge shape": (put([1, 2**31, 8], "segments", 0, "output_shape"), MANIFEST, "segments.0.output_shape.1"),
    "rank 7": (put([1] * 7, "segments", 0, "output_shape"), MANIFEST, "segments.0.output_shape: Tuple should have at most 6"),
    "no routes": (put([], "routes"), MANIFEST, "routes: Tuple should have at least 1"),
    "too many routes": (put([{}] * 10_001, "routes"), MANIFEST, "routes"),
    "empty class": (put(["a", "", "c"], "classes"), MANIFEST, "classes.1"),
    # paths
    "path upwards": (listed("../elsewhere"), MANIFEST, "files.../elsewhere"),
    "absolute path": (listed("/etc/passwd"), MANIFEST, "files./etc/passwd"),
    "path through a directory": (listed("segments/../../elsewhere"), MANIFEST, "files.segments/../../elsewhere"),
    "hidden file": (listed(".bashrc"), MANIFEST, "files..bashrc"),
    "graph outside": (put("../x.onnx", "segments", 0, "graphs", "fp32", "file"), MANIFEST, "segments.0.graphs.fp32.file"),
    # how the parts fit together
    "anchor twice": (edited(lambda document: twice(document, "anchors")), MANIFEST, "has the anchor 'small' twice"),
    "segment twice": (edited(lambda document: twice(document, "segments")), MANIFEST, "has the segment 'small.0' twice"),
    "route twice": (edited(lambda document: twice(document, "routes")), MANIFEST, "has the route 'small' twice"),
    "manifest lists itself": (listed(MANIFEST), MANIFEST, "lists itself among its files"),
    "no weights": (edited(lambda document: document["files"].pop("weights.bin")), MANIFEST, "does not list weights.bin"),
    "graph not listed": (edited(lambda document: document["files"].pop(GRAPH)), MANIFEST, f"names the file '{GRAPH}', which is not listed"),
    "colour of one channel": (put("RGB", "preprocessing", "mode"), MANIFEST, "does not fit an input of 1 channels"),
    "too many means": (put([0.0, 0.0], "preprocessing", "mean"), MANIFEST, "preprocessing L with 2 means and 1 deviations"),
    "block without anchor": (put(None, "segments", 0, "anchor"), MANIFEST, "'small.0' is a block with anchor None"),
    "stitch with anchor": (put("small", "segments", 8, "anchor"), MANIFEST, "is a stitch with anchor 'small'"),
    "block of two anchors": (put(["small.0"], "anchors", 1, "segments"), MANIFEST, "anchor 'large' names 'small.0', which is not a block"),
    "block of no anchor": (edited(block_of_nobody), MANIFEST, "'small.1' is a block of the anchor 'ghost', which does not name it"),
    "block twice": (put(["small.0", "small.0"], "anchors", 0, "segments"), MANIFEST, "anchor 'small' has the block 'small.0' twice"),
    "anchor of nothing": (put(["ghost"], "anchors", 0, "segments"), MANIFEST, "anchor 'small' names 'ghost'"),
    "weights beyond the file": (
        put(2**50, "segments", 4, "graphs", "fp32", "weight_bytes"),
        MANIFEST,
        f"'large.1' claims {2**50} bytes of weights, more than weights.bin has",
    ),
    "on_front lie": (put(False, "routes", 0, "on_front"), MANIFEST, f"{ROUTE} says on_front=False, its cost and accuracy say True"),
    "worse and on front": (put(0.7, "routes", 3, "accuracy"), MANIFEST, "route 'large' says on_front=True"),
    # routes
    "missing segment": (put(["small.0", "ghost", "small.2"], "routes", 0, "segments"), MANIFEST, f"{ROUTE} names the segment 'ghost'"),
    "cycle": (
        edited(lambda document: document["routes"][0].update(segments=["small.0", "small.1", "small.1"])),
        MANIFEST,
        f"{ROUTE} runs segment 'small.1' twice: routes have no cycles",
    ),
    "precision missing": (put(["fp32"], "routes", 0, "precisions"), MANIFEST, f"{ROUTE} has 3 segments and 1 precisions"),
    "precision not there": (put(["fp32", "int8", "fp32"], "routes", 0, "precisions"), MANIFEST, f"{ROUTE} wants 'small.1' in int8"),
    "shapes do not meet": (
        put(["small.0", "large.1", "small.2"], "routes", 0, "segments"),
        MANIFEST,
        f"{ROUTE} feeds [4, 8, 8] from 'small.0' into 'large.1', which takes [24, 8, 8]",
    ),
    "does not begin at the input": (
        put(["small.1", "small.0", "small.2"], "routes", 0, "segments"),
        MANIFEST,
        f"{ROUTE} feeds [1, 8, 8] from the input into 'small.1', which takes [4, 8, 8]",
    ),
    "does not end in classes": (
        edited(lambda document: document["routes"][0].update(segments=["small.0", "small.1"], precisions=["fp32", "fp32"])),
        MANIFEST,
        f"{ROUTE} ends in [4, 8, 8], but there are 3 classes",
    ),
    "classes too many": (put(["a", "b", "c", "d"], "classes"), MANIFEST, f"{ROUTE} ends in [3], but there are 4 classes"),
    "macs lie": (put(11531, "routes", 0, "macs"), MANIFEST, f"{ROUTE} claims 11531 MACs and 203 parameters, its segments have 11532 and"),
    "params lie": (put(1, "routes", 0, "params"), MANIFEST, f"{ROUTE} claims 11532 MACs and 1 parameters"),
    "weight bytes beyond": (put(2**60, "routes", 0, "weight_bytes"), MANIFEST, f"{ROUTE} claims {2**60} bytes of weights, weights.bin has"),
    "weight bytes lie": (put(4096, "routes", 0, "weight_bytes"), "weights.bin", f"{ROUTE} claims 4096 bytes of it, its graphs read 0"),
    "activations lie": (
        put(8, "routes", 0, "activation_bytes"),
        MANIFEST,
        f"{ROUTE} claims activations of 8 bytes, its segments have at most",
    ),
    # files
    "weights truncated": (resized("weights.bin", -1), "weights.bin", "has 69887 bytes, the manifest says 69888"),
    "weights grown": (resized("weights.bin", 1), "weights.bin", "has 69889 bytes, the manifest says 69888"),
    "weights changed": (flipped("weights.bin"), "weights.bin", "has SHA-256"),
    "graph changed": (flipped(GRAPH), GRAPH, "has SHA-256"),
    "report changed": (flipped("report/report.html"), "report/report.html", "has SHA-256"),
    "graph missing": (lambda path: (path / GRAPH).unlink(), GRAPH, "cannot be read: No such file"),
    "segments missing": (only_the_manifest, "segments/large.0.fp32.onnx", "cannot be read: No such file"),
    "segments a file": (instead("segments", Path.touch), "segments/large.0.fp32.onnx", "cannot be read: Not a directory"),
    "graph a link": (instead(GRAPH, link), GRAPH, "links are refused"),
    "segments a link": (instead("segments", link), "segments/large.0.fp32.onnx", "links are refused"),
    "graph a directory": (instead(GRAPH, Path.mkdir), GRAPH, "cannot be read: Is a directory"),
    "graph a pipe": (instead(GRAPH, os.mkfifo), GRAPH, "is not a regular file"),
    "weights a pipe": (instead("weights.bin", os.mkfifo), "weights.bin", "is not a regular file"),
    "claimed size": (put(2**60, "files", "weights.bin", "bytes"), "weights.bin", f"has 69888 bytes, the manifest says {2**60}"),
    "claimed size of a graph": (put(2**60, "files", GRAPH, "bytes"), MANIFEST, f"{GRAPH} claims {2**60} bytes, a graph has at most"),
    "size beyond any": (put(2**62, "files", "weights.bin", "bytes"), MANIFEST, "files.weights.bin.bytes: Input should be less than"),
}


@pytest.mark.parametrize(("damage", "where", "reason"), REFUSED.values(), ids=REFUSED)
def test_is_refused(own_family, damage, where: str, reason: str) -> None:
    path = own_family()
    damage(path)
    with pytest.raises(BundleError) as caught:
        check_graphs(open_bundle(path))
    assert caught.value.where == (str(path) if where == "bundle" else where)
    assert reason in caught.value.reason
    assert len(str(caught.value)) < 600


def test_a_null_byte_is_no_path() -> None:
    with pytest.raises(BundleError, match="cannot be opened"):
        open_bundle("a\0b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_refused(own_family) -> None:
    path = own_family()
    (path / GRAPH).chmod(0)
    with pytest.raises(BundleError, match=rf"^{GRAPH}: cannot be read: Permission denied"):
        open_bundle(path)


FUZZED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def damaged_and_put_right(own_family):
    """A context in which one file of a bundle has other bytes."""
    path = own_family()

    def attempt(name: str, data: bytes):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(data)
        try:
            return open_bundle(path)
        finally:
            (path / name).write_bytes(whole)

    return path, attempt


@FUZZED
@given(st.data())
def test_any_flipped_or_missing_byte_is_noticed(damaged_and_put_right, data) -> None:
    path, attempt = damaged_and_put_right
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file() and file.name != MANIFEST)
    name = data.draw(st.sampled_from(files))
    whole = (path / name).read_bytes()
    if data.draw(st.booleans()):
        changed = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at, mask = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
        changed = whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :]
    with pytest.raises(BundleError, match=rf"^{name}: has "):
        attempt(name, changed)


@FUZZED
@given(st.data())
def test_any_manifest_is_refused_or_sound(damaged_and_put_right, data) -> None:
    """Other bytes in the manifest may mean another sound manifest (another class name), never another kind of failure."""
    path, attempt = damaged_and_put_right
    whole = (path / MANIFEST).read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    new = data.draw(st.binary(max_size=4))
    changed = whole[:at] + new + whole[at + data.draw(st.integers(0, 4)) :]
    with contextlib.suppress(BundleError):
        bundle = attempt(MANIFEST, changed)
        assert json.loads(json.dumps(dataclasses.asdict(bundle.manifest))) == {**json.loads(whole), **json.loads(changed)}


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))


@pytest.mark.untraced
@FUZZED
@given(st.data())
def test_any_value_anywhere_is_refused_or_sound(damaged_and_put_right, data) -> None:
    path, attempt = damaged_and_put_right
    document = json.loads((path / MANIFEST).read_bytes())
    parent, value = document, document
    while isinstance(value, dict | list) and value and data.draw(st.booleans() | st.just(True)):
        parent, step = value, data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        value = parent[step]
    if parent is not value:
        parent[step] = data.draw(VALUES)
    with contextlib.suppress(BundleError):
        attempt(MANIFEST, json.dumps(document).encode())


@example(b"{}")
@given(st.binary(max_size=200))
@FUZZED
def test_noise_is_refused(damaged_and_put_right, noise: bytes) -> None:
    with pytest.raises(BundleError, match=rf"^{MANIFEST}: "):
        damaged_and_put_right[1](MANIFEST, noise)
