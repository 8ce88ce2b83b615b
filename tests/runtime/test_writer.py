"""The writer: all or nothing, every tensor once, the same bytes each time. Here, not beside the exporter's tests: it needs no torch."""

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from restnet_export.writer import BundleSource, RouteSource, SegmentSource, write_bundle
from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.errors import BundleError, ExportError
from restnet_runtime.graphs import external_extent
from restnet_runtime.manifest import Anchor, Preprocessing, Provenance


def block(name: str, weights: dict[str, np.ndarray], nodes: list[onnx.NodeProto], cin: int, cout: int) -> SegmentSource:
    def value(name: str, size: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, 1, size] if size == 300 else ["batch", size])

    shape = {300: (1, 1, 300)}
    tensors = [numpy_helper.from_array(array, key) for key, array in weights.items()]
    graph = helper.make_graph(nodes, name, [value("x", cin)], [value("y", cout)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    anchor = name.split(".")[0]
    return SegmentSource(name, "block", anchor, "", shape.get(cin, (cin,)), shape.get(cout, (cout,)), 1, 1, model)


def linear(name: str, weight: np.ndarray, flatten: bool = False) -> SegmentSource:
    nodes = [helper.make_node("Flatten", ["x"], ["flat"])] if flatten else []
    nodes.append(helper.make_node("MatMul", ["flat" if flatten else "x", "w"], ["y"]))
    return block(name, {"w": weight}, nodes, *weight.shape)


STEM = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
HEAD = np.random.default_rng(1).standard_normal((8, 3)).astype(np.float32)


def source(**changes: object) -> BundleSource:
    """Two anchors with the same stem of 9,600 bytes and heads of 96 bytes."""
    segments = (linear("a.0", STEM, flatten=True), linear("a.1", HEAD), linear("b.0", STEM.copy(), flatten=True), linear("b.1", -HEAD))
    whole = BundleSource(
        name="twins",
        classes=("x", "y", "z"),
        input_shape=(1, 1, 300),
        preprocessing=Preprocessing(mode="L", mean=(0.0,), std=(1.0,)),
        anchors=(Anchor(name="a", segments=("a.0", "a.1")), Anchor(name="b", segments=("b.0", "b.1"))),
        segments=segments,
        routes=(RouteSource("a", ("a.0", "a.1"), 0.5), RouteSource("b", ("b.0", "b.1"), 0.4), RouteSource("a>b", ("a.0", "b.1"), None)),
        provenance=Provenance(tool="tests"),
        reports={"report/report.html": b"<p>none</p>", "report/routes.png": b"png"},
    )
    return dataclasses.replace(whole, **changes)


def content(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_identical_tensors_are_stored_once(tmp_path) -> None:
    bundle = write_bundle(source(), tmp_path / "bundle")
    assert (bundle.path / "weights.bin").read_bytes() == STEM.tobytes()
    assert [route.weight_bytes for route in bundle.routes] == [STEM.nbytes] * 3
    assert [segment.graphs["fp32"].weight_bytes for segment in bundle.manifest.segments] == [STEM.nbytes, 0, STEM.nbytes, 0]


def test_tensors_lie_on_pages_and_small_ones_in_the_graph(tmp_path) -> None:
    weights = {"w": STEM, "edge": np.ones(256, np.float32), "inside": np.ones(255, np.float32)}
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    stem = block("a.0", weights, nodes, 300, 8)
    bundle = write_bundle(source(segments=(stem, *source().segments[1:])), tmp_path / "bundle")
    graph = onnx.load_model(bundle.path / "segments/a.0.fp32.onnx", load_external_data=False).graph
    assert {tensor.name: external_extent(tensor) for tensor in graph.initializer} == {
        "w": (0, 9600),
        "edge": (12288, 1024),
        "inside": (0, 0),
    }
    assert [tensor.name for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL] == ["w", "edge"]
    data = bundle.weights.read_bytes()
    assert data[9600:12288] == bytes(12288 - 9600)
    assert data[12288:] == np.ones(256, np.float32).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_])
def test_a_segment_opens_with_plain_onnx_runtime(tmp_path, dtype) -> None:
    """As docs/bundle.md says: ONNX Runtime reads a segment where it lies if it is told where weights.bin is; values are unchanged."""
    other = np.arange(2048).reshape(4, 512).astype(dtype)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("Cast", ["other"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["cast"], ["sum"], keepdims=0),
        helper.make_node("Add", ["product", "sum"], ["y"]),
    ]
    stem = block("a.0", {"w": STEM, "other": other}, nodes, 300, 8)
    bundle = write_bundle(source(segments=(stem, *source().segments[1:])), tmp_path / "bundle")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.path))
    graph = (bundle.path / "segments/a.0.fp32.onnx").read_bytes()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    x = np.ones((2, 1, 1, 300), np.float32)
    expected = x.reshape(2, 300) @ STEM + other.astype(np.float32).sum()
    assert np.allclose(session.run(["y"], {"x": x})[0], expected, rtol=1e-4, atol=1e-3)


def test_typed_tensor_fields_move_too(tmp_path) -> None:
    """ONNX may hold numbers in `float_data` rather than raw bytes."""
    stem = linear("a.0", STEM, flatten=True)
    stem.model.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, STEM.shape, STEM.ravel().tolist()))
    bundle = write_bundle(source(segments=(stem, *source().segments[1:])), tmp_path / "bundle")
    assert bundle.weights.read_bytes() == STEM.tobytes()
    assert (bundle.path / "segments/a.0.fp32.onnx").stat().st_size < 1000


def test_large_constants_become_tensors(tmp_path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["axis"], value_int=1),
        helper.make_node("Constant", [], ["small"], value=numpy_helper.from_array(np.zeros(8, np.float32), "s")),
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(STEM, "")),
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("Add", ["product", "small"], ["y"]),
    ]
    bundle = write_bundle(source(segments=(block("a.0", {}, nodes, 300, 8), *source().segments[1:])), tmp_path / "bundle")
    graph = onnx.load_model(bundle.path / "segments/a.0.fp32.onnx", load_external_data=False).graph
    assert [tensor.name for tensor in graph.initializer] == ["w"]
    assert [node.op_type for node in graph.node] == ["Constant", "Constant", "Flatten", "MatMul", "Add"]
    assert bundle.weights.read_bytes() == STEM.tobytes()


def test_the_models_given_are_not_changed(tmp_path) -> None:
    given = source()
    before = [segment.model.SerializeToString(deterministic=True) for segment in given.segments]
    write_bundle(given, tmp_path / "bundle")
    assert [segment.model.SerializeToString(deterministic=True) for segment in given.segments] == before


def test_two_writes_give_equal_bytes(tmp_path) -> None:
    one, two = (write_bundle(source(), tmp_path / name).path for name in ("one", "two"))
    assert content(one) == content(two)
    assert list(content(one)) == [
        "manifest.json",
        "report/report.html",
        "report/routes.png",
        *(f"segments/{name}.fp32.onnx" for name in ("a.0", "a.1", "b.0", "b.1")),
        "weights.bin",
    ]


class StopHereError(Exception):
    pass


def test_a_crash_leaves_the_old_bundle(tmp_path) -> None:
    old = content(write_bundle(source(), tmp_path / "bundle").path)
    seen: list[Bundle] = []

    def crash(bundle: Bundle) -> None:
        seen.append(bundle)
        raise StopHereError

    for target in (tmp_path / "bundle", tmp_path / "new"):
        with pytest.raises(StopHereError):
            write_bundle(source(name="other"), target, check=crash)
    assert [bundle.manifest.name for bundle in seen] == ["other", "other"]
    assert content(tmp_path / "bundle") == old
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_failed_rename_puts_the_old_bundle_back(tmp_path, monkeypatch) -> None:
    old = content(write_bundle(source(), tmp_path / "bundle").path)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if Path(target).name == "bundle" and ".old-" not in self.name:
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ExportError, match=r"bundle cannot be written: no space; an older one is as it was"):
        write_bundle(source(name="other"), tmp_path / "bundle")
    assert content(tmp_path / "bundle") == old
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path) -> None:
    """A limit on the size of files fails as a full disk does: in the middle of weights.bin."""
    old = content(write_bundle(source(), tmp_path / "bundle").path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for target in (tmp_path / "bundle", tmp_path / "new"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        try:
            with pytest.raises(ExportError, match=f"{target} cannot be written: File too large"):
                write_bundle(source(name="other"), target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(tmp_path / "bundle") == old
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_older_bundle_is_replaced_whole(tmp_path) -> None:
    write_bundle(source(), tmp_path / "bundle")
    new = write_bundle(source(name="newer", reports={}), tmp_path / "bundle", check=lambda _: None)
    assert new.manifest.name == "newer"
    assert not (tmp_path / "bundle" / "report").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_empty_directory_or_a_new_path_may_become_a_bundle(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    write_bundle(source(), tmp_path / "empty")
    write_bundle(source(), tmp_path / "deeper" / "still" / "bundle")
    assert content(tmp_path / "empty") == content(tmp_path / "deeper" / "still" / "bundle")


def test_through_a_link_what_it_leads_to_is_replaced(tmp_path) -> None:
    write_bundle(source(), tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    write_bundle(source(name="newer"), tmp_path / "current")
    assert (tmp_path / "current").is_symlink()
    assert open_bundle(tmp_path / "v1").manifest.name == "newer"


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.tex": b""},
        {"manifest.json": b'{"name": "a web application"}', "index.html": b""},
        {"manifest.json": b"[]"},
        {"manifest.json": b"{"},
    ],
    ids=["other files", "another manifest", "a list", "damaged"],
)
def test_what_is_not_a_bundle_is_never_replaced(tmp_path, files: dict[str, bytes]) -> None:
    (tmp_path / "home").mkdir()
    for name, data in files.items():
        (tmp_path / "home" / name).write_bytes(data)
    with pytest.raises(ExportError, match="is in the way: it is not a bundle, so it is not replaced"):
        write_bundle(source(), tmp_path / "home")
    assert content(tmp_path / "home") == files


def test_a_file_in_the_way_is_refused(tmp_path) -> None:
    (tmp_path / "bundle").write_text("mine")
    with pytest.raises(ExportError, match="is in the way"):
        write_bundle(source(), tmp_path / "bundle")
    assert (tmp_path / "bundle").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"routes": (RouteSource("a", ("a.0", "ghost"), None),)}, BundleError, "route 'a' names 'ghost', which is not among the segments"),
        ({"routes": (RouteSource("a", ("a.1", "a.0"), None),)}, BundleError, "route 'a' feeds"),
        ({"routes": (RouteSource("a", ("a.0", "a.1"), 1.5),)}, ExportError, "routes.0.accuracy: Input should be less than or equal to 1"),
        ({"name": "no/name"}, ExportError, "name: String should match pattern"),
        ({"reports": {"secret/plan": b""}}, ExportError, "files.secret/plan"),
        ({"classes": ("x", "y")}, BundleError, "ends in \\[3\\], but there are 2 classes"),
        ({"segments": (*source().segments, source().segments[0])}, BundleError, "has the segment 'a.0' twice"),
    ],
)
def test_what_the_reader_would_refuse_is_not_written(tmp_path, changes, error, message) -> None:
    with pytest.raises(error, match=message):
        write_bundle(source(**changes), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_written_manifest_is_plain_json(tmp_path) -> None:
    path = write_bundle(source(), tmp_path / "bundle").path
    text = (path / "manifest.json").read_text()
    assert text.startswith('{\n "format": "restnet-bundle",\n "version": 1,\n')
    assert json.loads(text)["routes"][2]["accuracy"] is None


def test_the_writer_needs_no_torch() -> None:
    program = "import sys, restnet_export.writer; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
