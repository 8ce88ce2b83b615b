"""Providers: the one that is asked for if it is there, an honest fallback to the CPU if not."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from restnet_runtime.compile import Compiler
from restnet_runtime.engine import Engine
from restnet_runtime.errors import CompileError
from restnet_runtime.executor import Executor
from restnet_runtime.providers import CPU, CPU_ONLY, choose_providers, missing_note
from restnet_runtime.sessions import SessionSettings, infer, plain_session

CACHE = Path("cache")
X = np.random.default_rng(5).standard_normal((3, 1, 8, 8)).astype(np.float32)
OTHER = next((name for name in ort.get_available_providers() if name != CPU), None)
"""PyPI's builds for the CPU carry one more provider, which takes no nodes of ours: enough to go the way of all the others."""


def test_the_cpu_alone_says_nothing() -> None:
    assert choose_providers(["cpu"], [CPU], CACHE, 2) == CPU_ONLY == choose_providers([], [CPU], CACHE, 2)
    assert CPU_ONLY.cpu_only


def test_what_is_missing_is_said_and_the_cpu_takes_over() -> None:
    chosen = choose_providers(["tensorrt", "CUDA"], [CPU], CACHE, 2)
    assert chosen.names == (CPU,)
    assert [note.partition(" is not in this ONNX Runtime")[0] for note in chosen.notes] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
    ]


def test_engines_are_kept_and_the_order_is_the_one_asked_for() -> None:
    chosen = choose_providers(["tensorrt", "cuda", "cpu", "cuda"], ["CUDAExecutionProvider", "TensorrtExecutionProvider", CPU], CACHE, 2)
    assert chosen.names == ("TensorrtExecutionProvider", "CUDAExecutionProvider", CPU)
    assert chosen.options[0]["trt_engine_cache_enable"] == "1"
    assert chosen.options[0]["trt_engine_cache_path"] == "cache/tensorrt"
    assert chosen.options[2] == {}
    assert not chosen.cpu_only
    assert all("untested" in note for note in chosen.notes)


def test_xnnpack_brings_threads_of_its_own() -> None:
    assert choose_providers(["xnnpack"], ["XnnpackExecutionProvider", CPU], CACHE, 3).options[0] == {"intra_op_num_threads": "3"}


def test_a_name_that_nobody_knows_is_refused(family_path, tmp_path) -> None:
    with pytest.raises(CompileError, match=r"unknown execution provider 'gpu': known are cpu, cuda, .*, here also CPUExecutionProvider"):
        choose_providers(["gpu"], [CPU], CACHE, 2)
    with pytest.raises(CompileError, match="unknown execution provider 'gpu'"):
        Engine.open(family_path, cache_root=tmp_path, providers=["gpu"])


def test_one_that_onnx_runtime_drops_is_said() -> None:
    assert missing_note(["A", CPU], ["A", CPU]) is None
    assert "A did not start" in str(missing_note(["A", CPU], [CPU]))


@pytest.mark.skipif(OTHER is None, reason="this ONNX Runtime has the CPU provider only")
def test_another_provider_gets_whole_routes(family_bundle, tmp_path) -> None:
    """Sessions on the joined graph: same answers, no compiled route, and what serves is what `levels` says."""
    compiler = Compiler.for_bundle(family_bundle, tmp_path)
    settings = SessionSettings(1, providers=choose_providers([str(OTHER)], ort.get_available_providers(), tmp_path, 1))
    assert settings.providers.names == (OTHER, CPU)
    executor = Executor(family_bundle, compiler, settings)
    for route in family_bundle.routes:
        executor.load(route.name)
        expected = infer(plain_session(family_bundle, route, settings), X)
        np.testing.assert_allclose(executor.run(X, route.name).logits, expected, rtol=1e-5, atol=1e-5)
    assert set(executor.levels.values()) == {"plain"}
    assert f"{OTHER} is untested with this version" in executor.notes
    assert not list(compiler.cache.path.glob("route-*.onnx"))
