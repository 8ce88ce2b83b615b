"""A block or a stitching layer as an ONNX graph that computes what torch computes."""

import importlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxscript import optimizer
from torch import nn
from torch.export import ExportedProgram

from restnet_runtime.errors import ExportError, ParityError

from .templates import Templates
from .trace import quiet

OPSET = 20
"""The newest operator set that torch writes without converting: it has Gelu, and ONNX Runtime has read it since 1.17."""

TOLERANCE = 1e-4
"""Largest difference allowed between ONNX Runtime and torch, relative to torch's largest output."""

INPUT, OUTPUT = "x", "y"

_REGISTRY = "torch.onnx._internal.exporter._registration", "ONNXRegistry", "from_torchlib"
"""Module, class and class method with which torch makes its table of operators."""

_EXPORTER_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")


def export_segment(module: nn.Module, input_shape: tuple[int, ...], name: str, templates: Templates | None = None) -> onnx.ModelProto:
    """Export a module in eval mode that takes (B, *input_shape) float32 and returns one float32 tensor, batch first.

    The graph is called `name`; its input is `x`, its output `y`, the batch is dynamic, all weights are inside, and exporting the same
    module again gives the same bytes. With `templates`, modules that differ in their weights alone are translated once. Nothing in it
    tells where on the machine it was made. Raises ExportError if torch cannot export the module, and ParityError if ONNX Runtime answers
    otherwise than torch at batch 1 or 3 by more than TOLERANCE.
    """
    try:
        with quiet(), _silent():
            raw = (templates or Templates()).translated(module, input_shape, _translated)
            model = optimizer.optimize(raw)
    except Exception as error:  # the exporter fails in as many ways as there are operators
        raise ExportError(f"segment {name}: torch cannot export it to ONNX: {' '.join(str(error).split())[:300]}") from error
    _strip(model)
    model.graph.name = name
    onnx.checker.check_model(model)
    _check(model, module, input_shape, name)
    return model


def _translated(traced: ExportedProgram) -> onnx.ModelProto:
    """As it is, without folding constants: the weights are initialisers under their names."""
    program = torch.onnx.export(
        traced,
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: "batch"},),  # names the dimension; it is dynamic already
        optimize=False,
        verbose=False,
    )
    return cast(onnx.ModelProto, cast(Any, program).model_proto)


@contextmanager
def one_registry() -> Iterator[None]:
    """While many segments are exported, torch makes its table of operators once.

    It makes the same table anew in each export, which is more than half of a small segment's time. The method is private to torch: where
    it is missing, exports take longer and nothing else changes.
    """
    module, name, method = _REGISTRY
    try:
        registry: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        registry = None
    build = vars(registry).get(method) if registry else None
    if not isinstance(build, classmethod):
        yield
        return
    setattr(registry, method, staticmethod(cache(getattr(registry, method))))
    try:
        yield
    finally:
        setattr(registry, method, build)


def _strip(model: onnx.ModelProto) -> None:
    """Drop what torch notes for debugging: source paths, module classes, graph nodes; half of a small graph's bytes."""
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    for function in model.functions:
        function.ClearField("metadata_props")
        function.ClearField("doc_string")
        _strip_nodes(function.node)
    _strip_graph(model.graph)


def _strip_graph(graph: onnx.GraphProto) -> None:
    for part in (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _strip_graph(graph)


def _check(model: onnx.ModelProto, module: nn.Module, input_shape: tuple[int, ...], name: str) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no public base
        raise ParityError(f"segment {name}: ONNX Runtime cannot load it: {' '.join(str(error).split())[:300]}") from error
    values = torch.randn(3, *input_shape, generator=torch.Generator().manual_seed(0))
    for batch in (1, 3):
        with torch.no_grad():
            expected = module(values[:batch]).numpy()
        answered = session.run([OUTPUT], {INPUT: values[:batch].numpy()})[0]
        if answered.shape != expected.shape:
            raise ParityError(
                f"segment {name}: at batch {batch} ONNX Runtime answers with shape {answered.shape}, torch with {expected.shape}"
            )
        difference = float(np.abs(answered - expected).max() / max(float(np.abs(expected).max()), 1e-12))
        if not difference <= TOLERANCE:
            raise ParityError(
                f"segment {name}: at batch {batch} ONNX Runtime differs from torch by {difference:.1e}, allowed is {TOLERANCE}"
            )


@contextmanager
def _silent() -> Iterator[None]:
    """The exporter logs its progress, and what it cannot fold, to the root handler."""
    loggers = [logging.getLogger(name) for name in _EXPORTER_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
