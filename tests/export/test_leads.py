"""Leads: which nodes stay in float32 where the first products do."""

import numpy as np
import onnx
import pytest

from restnet_export import leads as leads_module
from restnet_export.leads import leads
from restnet_export.quantise import folded

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture
def models(graphs) -> dict[str, onnx.ModelProto]:
    """Three convolutions of 3, 8 and 64 channels with their ReLUs, and a head."""
    return {
        "a.0": folded(graphs.conv("a.0", weights(8, 3, 3, 3), weights(8), 8)),
        "a.1": folded(graphs.conv("a.1", weights(64, 8, 3, 3), weights(64), 8)),
        "a.2": folded(graphs.conv("a.2", weights(512, 64, 3, 3), weights(512), 8)),
        "a.3": folded(graphs.head("a.3", weights(5, 512), weights(5), 8)),
    }


def test_a_lead_is_all_before_the_next_product(models: dict[str, onnx.ModelProto]) -> None:
    first, second = leads(list(models), models)
    every = {name: frozenset(node.name for node in model.graph.node) for name, model in models.items()}
    assert first == {"a.0": every["a.0"]}, "the activation function too"
    assert second == {"a.0": every["a.0"], "a.1": every["a.1"]}, "and no third: a.2 has nearly all of the weights"


def test_no_lead_leaves_nothing_to_quantise(models: dict[str, onnx.ModelProto], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leads_module, "SHARE", 1.0)
    found = leads(list(models), models)
    assert len(found) == 3
    products = {"Conv", "Gemm", "MatMul"}
    kept = [node.op_type for node in models["a.3"].graph.node if node.name not in found[-1].get("a.3", ())]
    assert products.intersection(kept), "the head is a product, and stays"
    assert leads(["a.3"], models) == []


def test_so_many_are_tried_and_no_more(models: dict[str, onnx.ModelProto], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leads_module, "SHARE", 1.0)
    monkeypatch.setattr(leads_module, "MOST", 1)
    assert len(leads(list(models), models)) == 1
