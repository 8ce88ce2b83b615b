"""Precision: which routes a device can run, and whether products of int8 have to be kept from saturating."""

import dataclasses
import os
from pathlib import Path

import pytest

from restnet_runtime.bundle import Bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.executor import Executor
from restnet_runtime.loader import Loader
from restnet_runtime.precision import EVERY_FILTER, exact_products, lacking, shared_filters
from restnet_runtime.providers import CPU, CPU_ONLY, Providers
from restnet_runtime.routes import Route
from restnet_runtime.sessions import SessionSettings

CUDA = Providers(("CUDAExecutionProvider", CPU), ({}, {}))


def route(*precisions: str) -> Route:
    return Route("r", tuple(map(str, range(len(precisions)))), precisions, 1, 1, 1, 0.5, True)


@pytest.mark.parametrize("precisions", [("fp32",), ("int8",), ("fp32", "int8")])
def test_the_cpu_runs_fp32_and_int8(precisions: tuple[str, ...]) -> None:
    assert lacking(route(*precisions), CPU_ONLY) is None


@pytest.mark.parametrize(("precisions", "named"), [(("fp16",), "fp16"), (("fp32", "bf16"), "bf16"), (("fp16", "bf16"), "bf16 and fp16")])
def test_half_precision_is_for_other_providers(precisions: tuple[str, ...], named: str) -> None:
    reason = lacking(route(*precisions), CPU_ONLY)
    assert reason is not None
    assert f"no kernels for {named}" in reason
    assert lacking(route(*precisions), CUDA) is None


def test_a_loader_leaves_such_routes_out_and_says_why(family_bundle: Bundle, tmp_path: Path) -> None:
    half = dataclasses.replace(family_bundle.routes[-1], precisions=("fp16",) * 5)
    bundle = dataclasses.replace(family_bundle, routes=(*family_bundle.routes[:-1], half))
    executor = Executor(bundle, Compiler.for_bundle(bundle, tmp_path), SessionSettings(1))
    loader = Loader(executor, [route.name for route in bundle.routes])
    loader.run()
    progress = loader.progress()
    assert "large" not in executor.loaded
    assert "no kernels for fp16" in progress.failed["large"]
    assert progress.done
    assert progress.compiled == 3
    executor.close()


@pytest.mark.parametrize(
    ("machine", "flags", "asked"),
    [
        ("x86_64", "fpu sse4_1 avx2", True),
        ("x86_64", "avx2 avx512f avx512bw", True),
        ("x86_64", "avx512f avx512_vnni", False),
        ("AMD64", "avx2 avx_vnni", False),
        ("aarch64", "asimd", False),
    ],
)
def test_only_x86_without_dot_products_is_asked_for_exact_ones(tmp_path: Path, machine: str, flags: str, asked: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    assert exact_products(cpuinfo, machine) == ({"session.x64quantprecision": "1"} if asked else {})


def test_where_the_kernel_does_not_tell_nothing_is_asked(tmp_path: Path) -> None:
    assert exact_products(tmp_path / "none", "x86_64") == {}


def test_sessions_share_all_filters_where_copies_would_take_much_of_the_memory(int8_bundle: Bundle, tmp_path: Path) -> None:
    tiles, plain = tmp_path / "tiles", tmp_path / "plain"
    tiles.write_text("flags : avx512_vnni amx_int8\n")
    plain.write_text("flags : avx512_vnni\n")
    parts = [
        (route, segment)
        for route in int8_bundle.routes
        for segment, one in zip(route.segments, route.precisions, strict=True)
        if one == "int8"
    ]
    copies = sum(int8_bundle.segments[segment].graphs["int8"].weight_bytes for _, segment in parts)
    assert copies > 0
    assert shared_filters(int8_bundle, 8 * copies - 8, plain) == EVERY_FILTER
    assert shared_filters(int8_bundle, 8 * copies, plain) == frozenset()
    assert shared_filters(int8_bundle, 8 * copies, tiles) == {"spatial"}
    assert shared_filters(int8_bundle, 64 * copies - 64, tiles) == {"spatial"}
    assert shared_filters(int8_bundle, 64 * copies, tiles) == frozenset(), "little to save"


def test_this_device_has_memory(int8_bundle: Bundle) -> None:
    assert shared_filters(int8_bundle) == frozenset(), "some kilobytes are little of it"


@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_memory_is_counted_in_pages_of_the_size_that_the_device_has(
    int8_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """A Raspberry Pi 5 has pages of 16 KB: a quarter as many for the same memory."""
    plain = tmp_path / "plain"
    plain.write_text("Features : asimd\n")
    int8 = [part for route in int8_bundle.routes for part in zip(route.segments, route.precisions, strict=True) if part[1] == "int8"]
    copies = sum(int8_bundle.segments[segment].graphs["int8"].weight_bytes for segment, _ in int8)
    enough = -(-8 * copies // page)
    for pages, shared in ((enough, frozenset()), (enough - 1, EVERY_FILTER)):
        told = {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": page}
        monkeypatch.setattr(os, "sysconf", lambda name, told=told: told[name])
        assert shared_filters(int8_bundle, cpuinfo=plain) == shared
