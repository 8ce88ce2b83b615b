"""A small family of convolutional networks as a bundle, made without torch, so that these tests run on a device too."""

import dataclasses
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest
import uvicorn
from onnx import TensorProto, helper, numpy_helper

from restnet_export.writer import BundleSource, RouteSource, SegmentSource, write_bundle
from restnet_runtime.api import create_app
from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.catalog import LEVELS
from restnet_runtime.compile import Compiler
from restnet_runtime.controller import Controller
from restnet_runtime.executor import Executor
from restnet_runtime.manifest import Anchor, Precision, Preprocessing, Provenance
from restnet_runtime.models import Backend
from restnet_runtime.reading import Reading
from restnet_runtime.routes import in_precision
from restnet_runtime.sessions import SessionSettings
from restnet_runtime.settings import ServeSettings

ALONE = {
    "batch_room",
    "batching",
    "compare",
    "contention",
    "growth",
    "loader",
    "measured",
    "memory",
    "residency",
    "sensors",
    "sessions",
    "slowdown",
    "squeeze",
}
"""Files, as test_NAME.py, whose tests look at the time, at memory, or at threads and processes: they have the machine to themselves."""

CLASSES = ("circle", "cross", "square")
INPUT_SHAPE = (1, 8, 8)


def segment_graph(nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], in_shape, out_shape) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "segment",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *in_shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *out_shape])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def conv(name: str, rng: np.random.Generator, cin: int, cout: int, kernel: int, anchor: str | None) -> SegmentSource:
    """Convolution and, in blocks, ReLU: (cin, 8, 8) -> (cout, 8, 8)."""
    pad = kernel // 2
    weight = (rng.standard_normal((cout, cin, kernel, kernel)) / kernel / cin**0.5).astype(np.float32)
    bias = rng.standard_normal(cout).astype(np.float32)
    out = "y" if anchor is None else "conv"
    nodes = [helper.make_node("Conv", ["x", "w", "b"], [out], "conv", pads=[pad] * 4)]
    if anchor is not None:
        nodes.append(helper.make_node("Relu", ["conv"], ["y"], "relu"))
    return SegmentSource(
        name=name,
        kind="stitch" if anchor is None else "block",
        anchor=anchor,
        module="",
        input_shape=(cin, 8, 8),
        output_shape=(cout, 8, 8),
        macs=64 * weight.size,
        params=weight.size + bias.size,
        model=segment_graph(nodes, {"w": weight, "b": bias}, (cin, 8, 8), (cout, 8, 8)),
    )


def head(name: str, rng: np.random.Generator, cin: int, anchor: str) -> SegmentSource:
    weight = rng.standard_normal((len(CLASSES), cin)).astype(np.float32)
    bias = np.zeros(len(CLASSES), np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"], "gemm", transB=1),
    ]
    return SegmentSource(
        name=name,
        kind="block",
        anchor=anchor,
        module="head",
        input_shape=(cin, 8, 8),
        output_shape=(len(CLASSES),),
        macs=weight.size,
        params=weight.size + bias.size,
        model=segment_graph(nodes, {"w": weight, "b": bias}, (cin, 8, 8), (len(CLASSES),)),
    )


def family() -> BundleSource:
    """Anchors `small` (4 channels, 1 block) and `large` (24 channels, 3 blocks), and two routes that join them."""
    rng = np.random.default_rng(0)
    segments = [
        conv("small.0", rng, 1, 4, 3, "small"),
        conv("small.1", rng, 4, 4, 3, "small"),
        head("small.2", rng, 4, "small"),
        conv("large.0", rng, 1, 24, 3, "large"),
        conv("large.1", rng, 24, 24, 3, "large"),
        conv("large.2", rng, 24, 24, 3, "large"),
        conv("large.3", rng, 24, 24, 3, "large"),
        head("large.4", rng, 24, "large"),
        conv("small.1~large.2", rng, 4, 24, 1, None),
        conv("small.1~large.3", rng, 4, 24, 1, None),
    ]
    small = tuple(f"small.{i}" for i in range(3))
    large = tuple(f"large.{i}" for i in range(5))
    return BundleSource(
        name="shapes",
        classes=CLASSES,
        input_shape=INPUT_SHAPE,
        preprocessing=Preprocessing(mode="L", mean=(0.0,), std=(1.0,)),
        anchors=(Anchor(name="small", segments=small), Anchor(name="large", segments=large)),
        segments=tuple(segments),
        routes=(
            RouteSource("small", small, 0.80),
            RouteSource("small[0-1]>large[3-4]", (*small[:2], "small.1~large.3", *large[3:]), 0.85),
            RouteSource("small[0-1]>large[2-4]", (*small[:2], "small.1~large.2", *large[2:]), 0.90),
            RouteSource("large", large, 0.95),
        ),
        provenance=Provenance(tool="tests"),
        reports={"report/report.html": b"<p>none</p>"},
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.stem.removeprefix("test_") in ALONE:
            item.add_marker("alone")


@pytest.fixture(scope="session")
def family_source() -> BundleSource:
    return family()


@pytest.fixture(scope="session")
def family_path(family_source: BundleSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tests only read."""
    return write_bundle(family_source, tmp_path_factory.mktemp("bundles") / "shapes").path


@pytest.fixture(scope="session")
def family_bundle(family_path: Path) -> Bundle:
    return open_bundle(family_path)


@pytest.fixture(scope="session")
def level_sizes(family_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """Bytes of a cache with the route `large` at each of `LEVELS`. Skips where packing adds nothing, as on ARM."""
    sizes = []
    for level in LEVELS:
        compiler = Compiler.for_bundle(family_bundle, tmp_path_factory.mktemp("levels"), level=level)
        compiler.compile(family_bundle.route("large"))
        sizes.append(compiler.cache.shelf.used_bytes())
    if max(sizes) < 1.5 * min(sizes):
        pytest.skip("ONNX Runtime packs nothing of such small filters on this processor")
    return sizes


def wide_family(name: str = "wide", seed: int = 0) -> BundleSource:
    """A family whose large anchor (512 channels, 453 million MACs, 28 MB) takes milliseconds and the small one next to nothing."""
    rng, source = np.random.default_rng(seed), family()
    wide = [conv("wide.0", rng, 1, 512, 3, "wide"), *(conv(f"wide.{place}", rng, 512, 512, 3, "wide") for place in (1, 2, 3))]
    segments = (*(one for one in source.segments if one.anchor == "small"), *wide, head("wide.4", rng, 512, "wide"))
    join = conv("small.1~wide.3", rng, 4, 512, 1, None)
    small, large = source.anchors[0].segments, tuple(f"wide.{place}" for place in range(5))
    return dataclasses.replace(
        source,
        name=name,
        anchors=(source.anchors[0], Anchor(name="wide", segments=large)),
        segments=(*segments, join),
        routes=(
            RouteSource("small", small, 0.80),
            RouteSource("small[0-1]>wide[3-4]", (*small[:2], join.name, *large[3:]), 0.90),
            RouteSource("wide", large, 0.95),
        ),
    )


@pytest.fixture(scope="session")
def wide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the wide family."""
    return write_bundle(wide_family(), tmp_path_factory.mktemp("bundles") / "wide").path


@pytest.fixture(scope="session")
def wide_paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bundles of that kind with other weights: `alpha` and `beta`."""
    folder = tmp_path_factory.mktemp("bundles")
    first, second = (write_bundle(wide_family(name, seed), folder / name).path for seed, name in enumerate(("alpha", "beta")))
    return first, second


Range = tuple[np.ndarray, np.ndarray]


def quantised(model: onnx.ModelProto, x: np.ndarray, entry: Range, exit_: Range, folder: Path) -> onnx.ModelProto:
    """A segment in int8 by ONNX Runtime's own tools: uint8 activations, int8 weights per channel, a pair at input and output.

    x: what it is calibrated with; entry, exit_: least and greatest value of its input and output
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter([x])

        def get_next(self) -> dict[str, np.ndarray] | None:
            x = next(self._left, None)
            return None if x is None else {"x": x}

    ends = {"x": entry, "y": exit_}
    onnx.save(model, folder / "fp32.onnx")
    quantize_static(
        folder / "fp32.onnx",
        folder / "int8.onnx",
        Images(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"TensorQuantOverrides": {name: [{"rmin": low, "rmax": high}] for name, (low, high) in ends.items()}},
    )
    return onnx.load(folder / "int8.onnx")


def run_plain(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


def int8_family(folder: Path) -> BundleSource:
    """The family in int8 too: every route `NAME@int8`, and `large` with its stem in fp32. Accuracies of twins are 0.01 less."""
    source, segments = family(), []
    by_name = {segment.name: segment for segment in source.segments}
    entering: dict[str, np.ndarray] = {}
    leaving: dict[str, np.ndarray] = {}
    before: dict[str, str] = {}
    for anchor in source.anchors:
        x = np.random.default_rng(1).standard_normal((64, *INPUT_SHAPE)).astype(np.float32)
        for name, last in zip(anchor.segments, (None, *anchor.segments), strict=False):
            before |= {name: last} if last else {}
            entering[name] = x
            x = leaving[name] = run_plain(by_name[name].model, x)
    for segment in source.segments:
        name = segment.name
        if "~" in name:  # takes what one anchor's block gives, and gives what the other's block takes
            front, end = name.split("~")
            x, y = leaving[front], leaving[before[end]]
        else:
            x, y = entering[name], leaving[name]
        model = quantised(segment.model, x, (x.min(), x.max()), (y.min(), y.max()), folder)
        segments.append(dataclasses.replace(segment, others={"int8": model}))
    twins = [
        RouteSource(f"{route.name}@int8", route.segments, (route.accuracy or 0) - 0.01, ("int8",) * len(route.segments))
        for route in source.routes
    ]
    large = source.routes[-1]
    kept: tuple[Precision, ...] = ("fp32", *["int8"] * (len(large.segments) - 1))
    mixed = RouteSource(in_precision(large.name, large.segments, kept), large.segments, 0.945, kept)
    return dataclasses.replace(source, name="shapes8", segments=tuple(segments), routes=(*source.routes, *twins, mixed))


@pytest.fixture(scope="session")
def int8_source(tmp_path_factory: pytest.TempPathFactory) -> BundleSource:
    return int8_family(tmp_path_factory.mktemp("quantised"))


@pytest.fixture(scope="session")
def int8_path(int8_source: BundleSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of both precisions that tests only read."""
    return write_bundle(int8_source, tmp_path_factory.mktemp("bundles") / "shapes8").path


@pytest.fixture(scope="session")
def int8_bundle(int8_path: Path) -> Bundle:
    return open_bundle(int8_path)


@pytest.fixture
def own_family(family_source: BundleSource, family_path: Path, tmp_path: Path) -> Callable[..., Path]:
    """A factory of bundles that a test may damage; keywords replace parts of the source."""

    def make(**changes: object) -> Path:
        if not changes:  # a copy is quicker than all the syncing of a write
            return shutil.copytree(family_path, tmp_path / "bundle")
        return write_bundle(dataclasses.replace(family_source, **changes), tmp_path / "bundle").path

    return make


@pytest.fixture
def dense_bundle_of(family_source: BundleSource, tmp_path: Path) -> Callable[[int, int], Bundle]:
    """A factory of bundles of matrix products, whose weights ONNX Runtime packs: 64 -> a -> b -> 3; where a is b, also 64 -> a -> 3."""

    def dense(name: str, rng: np.random.Generator, cin: int, cout: int, flatten: bool = False) -> SegmentSource:
        weight = rng.standard_normal((cin, cout)).astype(np.float32)
        shape = INPUT_SHAPE if flatten else (cin,)
        nodes = [helper.make_node("Flatten", ["x"], ["flat"])] if flatten else []
        nodes.append(helper.make_node("MatMul", ["flat" if flatten else "x", "w"], ["y"]))
        return SegmentSource(
            name=name,
            kind="block",
            anchor="dense",
            module="",
            input_shape=shape,
            output_shape=(cout,),
            macs=weight.size,
            params=weight.size,
            model=segment_graph(nodes, {"w": weight}, shape, (cout,)),
        )

    def make(a: int, b: int) -> Bundle:
        rng = np.random.default_rng(5)
        first, second, last = dense("dense.0", rng, 64, a, flatten=True), dense("dense.1", rng, a, b), dense("dense.2", rng, b, 3)
        names = ("dense.0", "dense.1", "dense.2")
        routes = [RouteSource("dense", names, 0.9)] + ([RouteSource("dense-short", (names[0], names[2]), 0.8)] if a == b else [])
        source = dataclasses.replace(
            family_source, anchors=(Anchor(name="dense", segments=names),), segments=(first, second, last), routes=tuple(routes)
        )
        return open_bundle(write_bundle(source, tmp_path / "dense").path)

    return make


@pytest.fixture
def dense_bundle(dense_bundle_of: Callable[[int, int], Bundle]) -> Bundle:
    """Two routes that share two of three matrices."""
    return dense_bundle_of(128, 128)


@pytest.fixture(scope="session")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled cache that tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def executor(family_bundle: Bundle, cache_root: Path):
    """All routes of the family loaded; the current one is the cheapest."""
    executor = Executor(family_bundle, Compiler.for_bundle(family_bundle, cache_root), SessionSettings(threads=1))
    for route in family_bundle.routes:
        executor.load(route.name)
    yield executor
    executor.close()


@pytest.fixture
def none_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The family's routes are so small that one thread is all that they get; here they are taken for larger ones."""
    monkeypatch.setattr("restnet_runtime.sessions.SMALL_MACS", 0)


@contextmanager
def running(app: Any, port: int = 0) -> Iterator[httpx.Client]:
    """A client of an application that a thread serves on 127.0.0.1; port 0 takes a free one."""
    config = uvicorn.Config(app, port=port, log_level="critical", lifespan="on", ws="none", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            yield client
    finally:
        app.state.events.close()
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def serve_app() -> Callable[..., AbstractContextManager[httpx.Client]]:
    """`running`, for tests."""
    return running


class SteadyDevice:
    """Sensors of a device that can read nothing about itself."""

    def read(self) -> Reading:
        return Reading()


class Server:
    """A server in a thread, with what it is made of; `url` is its address, `client` a plain HTTP client of it."""

    def __init__(self, bundle: Bundle, cache_root: Path, *, load: bool = True, **settings: Any) -> None:
        self.executor = Executor(bundle, Compiler.for_bundle(bundle, cache_root), SessionSettings(threads=1))
        for route in bundle.routes if load else ():
            self.executor.load(route.name)
        self.controller = Controller(self.executor, SteadyDevice())
        self.controller.tick()
        self.app = create_app(Backend(self.executor, self.controller), ServeSettings(**settings))


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[Server]]:
    """A factory of servers; each is stopped when its `with` block ends."""

    @contextmanager
    def serve(bundle: Bundle, cache_root: Path, **options: Any) -> Iterator[Server]:
        server = Server(bundle, cache_root, **options)
        try:
            with running(server.app) as server.client:
                server.url = server.client.base_url.netloc.decode()
                yield server
        finally:
            server.executor.close()

    return serve
