"""Optimising a route's joined graph: what is touched of its weights, both ways of saving it, and what ONNX Runtime refuses."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from restnet_runtime import optimising
from restnet_runtime.bundle import Bundle
from restnet_runtime.compose import compose
from restnet_runtime.errors import CompileError
from restnet_runtime.graphs import external_extent
from restnet_runtime.manifest import WEIGHTS_FILE
from restnet_runtime.optimising import Optimised, optimise
from restnet_runtime.sessions import SessionSettings, infer, plain_session

SETTINGS = SessionSettings(threads=1)


def location(tensor: TensorProto) -> str | None:
    return next((item.value for item in tensor.external_data if item.key == "location"), None)


def answers(bundle: Bundle, optimised: Optimised, x: np.ndarray) -> np.ndarray:
    """Of a session on an optimised graph as it is, nothing optimised again."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    folder = bundle.path if optimised.weights is None else optimised.weights.parent
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return infer(ort.InferenceSession(optimised.model.SerializeToString(), options, ["CPUExecutionProvider"]), x)


@pytest.mark.parametrize("reorder", [True, False])
@pytest.mark.parametrize("stream_from", [0, 2**30], ids=["through a file", "in the graph"])
def test_an_optimised_graph_answers_as_the_joined_one(
    family_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reorder: bool, stream_from: int
) -> None:
    monkeypatch.setattr(optimising, "_STREAM_FROM_BYTES", stream_from)
    x = np.random.default_rng(1).standard_normal((3, 1, 8, 8)).astype(np.float32)
    for route in family_bundle.routes:
        optimised = optimise(family_bundle, route, tmp_path, reorder=reorder)
        assert (optimised.weights is not None) == (reorder and not stream_from)
        expected = infer(plain_session(family_bundle, route, SETTINGS), x)
        assert np.allclose(answers(family_bundle, optimised, x), expected, rtol=1e-5, atol=1e-5)
        assert "Relu" not in {node.op_type for node in optimised.model.graph.node}, "they belong into the convolutions"


def test_weights_that_stay_as_they_are_stay_in_the_bundle(dense_bundle: Bundle, tmp_path: Path) -> None:
    """Nothing of a network of matrix products is copied: its graph refers to the very extents of the bundle."""
    route = dense_bundle.route("dense")
    optimised = optimise(dense_bundle, route, tmp_path)
    tensors = optimised.model.graph.initializer
    external = {external_extent(tensor) for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL}
    assert optimised.weights is None
    assert {location(tensor) for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL} == {WEIGHTS_FILE}
    joined = {external_extent(tensor) for tensor in compose(dense_bundle, route).graph.initializer}
    assert external <= optimised.extents == joined - {(0, 0)}
    assert sum(len(tensor.raw_data) for tensor in tensors) < 2048


def test_without_reordering_convolutions_keep_their_filters_in_the_bundle(family_bundle: Bundle, tmp_path: Path) -> None:
    optimised = optimise(family_bundle, family_bundle.route("large"), tmp_path, reorder=False)
    in_bundle = sum(external_extent(tensor)[1] for tensor in optimised.model.graph.initializer if location(tensor) == WEIGHTS_FILE)
    assert in_bundle >= 3 * 24 * 24 * 9 * 4


def test_what_onnx_runtime_refuses_is_one_error_that_names_the_route(
    family_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def joined(bundle: Bundle, route: object) -> object:
        model = compose(bundle, route)
        model.graph.node[0].CopyFrom(helper.make_node("NoSuchOperator", model.graph.node[0].input, model.graph.node[0].output))
        return model

    monkeypatch.setattr(optimising, "compose", joined)
    with pytest.raises(CompileError, match=r"^ONNX Runtime .* cannot compile the route 'small': .*NoSuchOperator"):
        optimise(family_bundle, family_bundle.route("small"), tmp_path)


def test_the_error_says_when_the_disk_is_nearly_full(family_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("write failed")

    monkeypatch.setattr(optimising, "save_model", fail)
    with pytest.raises(CompileError, match="'small': write failed"):
        optimise(family_bundle, family_bundle.route("small"), tmp_path)
    monkeypatch.setattr(optimising, "_FULL_BYTES", 2**62)
    with pytest.raises(CompileError, match=r"'small': the disk has .* left: write failed"):
        optimise(family_bundle, family_bundle.route("small"), tmp_path)
