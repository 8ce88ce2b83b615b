"""On a real GPU: what `test_devices` shows on a device that stands in for one. Skipped where torch finds none."""

import copy
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from restnet_export import pipeline
from restnet_export.amp import chosen_type
from restnet_export.devices import CPU, chosen_device, device_of, move
from restnet_export.ranks import Ranks
from restnet_export.settings import ExportSettings

from .test_devices import modules, settings
from .test_tuner import QUICK, Family, made

__all__ = ["made", "settings"]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")


@pytest.fixture
def gpu() -> torch.device:
    return chosen_device("cuda")


def test_auto_is_the_gpu(gpu: torch.device) -> None:
    assert chosen_device("auto") == gpu
    assert chosen_device("cpu") == CPU
    assert chosen_type("auto", gpu) in (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("mode", ["stitch", "lora", "full"])
def test_float32_steps_are_the_processors(made: Family, gpu: torch.device, mode: str) -> None:
    """The same images, routes and weights, so the same losses but for the order of sums."""
    here, there = copy.deepcopy(made), copy.deepcopy(made)
    tuning = replace(QUICK, mode=mode, amp="off", flip=True, shift=1, blend=True)
    move(modules(there), gpu)
    with here.tuner(tuning) as one, there.tuner(tuning) as other:
        for step in range(8):
            assert other.step() == pytest.approx(one.step(), rel=1e-4 * (1 + step))
    assert {device_of(module) for module in modules(there)} == {gpu}


@pytest.mark.parametrize("amp", ["auto", "bf16", "fp16", "off"])
@pytest.mark.parametrize("mode", ["stitch", "lora", "full"])
def test_no_route_falls_in_any_precision(made: Family, gpu: torch.device, mode: str, amp: str) -> None:
    family = copy.deepcopy(made)
    move(modules(family), gpu)
    found = family.tuned(replace(QUICK, mode=mode, amp=amp, steps=30, stitch_steps=10))
    assert all(item.loss_after <= item.loss_before + 1e-3 for item in found if ">" in item.route)
    assert any(item.improved and item.loss_after < 0.9 * item.loss_before for item in found)
    move(modules(family), CPU)
    assert all(torch.isfinite(value).all() for module in modules(family) for value in module.state_dict().values())


def test_a_state_moves_between_gpu_and_processor(made: Family, gpu: torch.device) -> None:
    whole, first, second = (copy.deepcopy(made) for _ in range(3))
    tuning = replace(QUICK, mode="full", amp="off", checks=4)
    with whole.tuner(tuning) as tuner:
        while not tuner.done:
            tuner.step()
    results = tuner.results()
    move(modules(first), gpu)
    with first.tuner(tuning) as tuner:
        while tuner.steps_done < 12:
            tuner.step()
        buffer = io.BytesIO()
        torch.save(tuner.state_dict(), buffer)
    buffer.seek(0)
    with second.tuner(tuning) as tuner:
        tuner.load_state_dict(torch.load(buffer, weights_only=True, map_location="cpu"))
        while not tuner.done:
            tuner.step()
    assert [item.route for item in tuner.results()] == [item.route for item in results]
    for one, other in zip(tuner.results(), results, strict=True):
        assert one.loss_after == pytest.approx(other.loss_after, rel=2e-2)


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of one process, joined as `joined_ranks` does."""
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    distributed.init_process_group("cpu:gloo,cuda:nccl")
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("nccl")
def test_gradients_go_through_nccl_and_scores_through_gloo(gpu: torch.device) -> None:
    ranks = Ranks(0, 2)  # of a group of one: sums are what it has
    weights = [nn.Parameter(torch.ones(3, device=gpu)), nn.Parameter(torch.ones(2, 2, device=gpu)), nn.Parameter(torch.ones(1, device=gpu))]
    (weights[0].sum() * 2 + weights[1].sum() * 3).backward()
    ranks.sum_gradients(weights)
    assert [weight.grad is None or weight.grad.unique().tolist() for weight in weights] == [[2.0], [3.0], True]
    ranks.take_from_first(weights)
    assert ranks.join(torch.tensor([1.0, 2.0]), 4).tolist() == [1.0, 0.0, 2.0, 0.0]


def test_an_export_there_is_an_export_here(settings: ExportSettings, tmp_path: Path) -> None:
    """All phases on the GPU in float32: the processor's routes, their accuracies to an image, and parity as checked by the exporter."""
    said: list[str] = []
    settings = replace(settings, teacher=settings.anchors[1].replace("python:", "other=python:"))
    settings = replace(settings, tuning=replace(settings.tuning, amp="off"))
    bundles = [pipeline.export_bundle(replace(settings, out=tmp_path / device, device=device), said.append) for device in ("cpu", "cuda")]
    assert f"computing on {torch.cuda.get_device_name()}" in said
    one, other = ([(route.name, route.macs) for route in bundle.routes] for bundle in bundles)
    assert one == other
    for here, there in zip(bundles[0].routes, bundles[1].routes, strict=True):
        assert there.accuracy == pytest.approx(here.accuracy, abs=0.15)  # few images
