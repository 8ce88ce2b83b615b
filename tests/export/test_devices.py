"""Everything is computed on the device that was chosen, to the same bits as on the processor. The device is `other_device`."""

import copy
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from restnet_export import pipeline
from restnet_export.anchors import Anchor
from restnet_export.cli import main
from restnet_export.cuts import cut_anchor
from restnet_export.devices import CPU, _gpu, chosen_device, device_of, exact_float32, move, on_device
from restnet_export.inputs import GivenPreprocessing
from restnet_export.runs import Run
from restnet_export.settings import ExportSettings, TuneSettings
from restnet_runtime.errors import ExportError

from .other_device import DEVICE, There, other_device
from .test_tuner import QUICK, Family, made, same

__all__ = ["made"]
NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 2, padding=1)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()) for _ in "ab"))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).amax((2, 3)))


class Vit(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 16, 2, 2)
        self.cls = nn.Parameter(torch.zeros(1, 1, 16))
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in "ab"))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1))[:, 0])


def small():
    torch.manual_seed(0)
    return Net(6)


def vit():
    torch.manual_seed(1)
    return Vit()
"""
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


class Places(nn.Module):
    """Makes a tensor while it runs, on the device of its input, and holds buffers that two blocks share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.register_buffer("scale", torch.tensor([0.5, 2.0, 1.0, 0.1]).view(4, 1, 1))
        self.late = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) * self.scale
        x = self.late(x + torch.arange(x.shape[-1], device=x.device)) * self.scale
        return self.head(functional.relu(x).mean((2, 3)))


def modules(family: Family) -> list[nn.Module]:
    return [*(block for anchor in family.anchors.values() for block in anchor.blocks), *family.layers.values()]


def test_blocks_that_make_tensors_run_where_they_were_moved() -> None:
    blocks = cut_anchor(Anchor("a", "a", Places().eval(), (1, 8, 8), None), ends=["stem", "late"]).blocks
    x = torch.randn(2, 1, 8, 8)
    expected = nn.Sequential(*blocks)(x)
    with other_device() as device:
        move(blocks, device)
        answer = nn.Sequential(*blocks)(on_device(x, device))
        assert {device_of(block) for block in blocks} == {DEVICE}
        buffers = [buffer for block in blocks for buffer in block.buffers()]
        assert len(buffers) == 2
        assert buffers[0] is buffers[1]
        with pytest.raises(RuntimeError, match="on the processor"):
            blocks[0](x)
        move(blocks, CPU)
    assert torch.equal(answer.values, expected)
    assert torch.equal(nn.Sequential(*blocks)(x), expected)


def test_a_module_without_weights_is_on_the_processor() -> None:
    assert device_of(nn.ReLU()) == CPU


@pytest.mark.parametrize("mode", ["stitch", "lora", "full"])
def test_tuning_there_is_tuning_here(made: Family, mode: str) -> None:
    here, there = copy.deepcopy(made), copy.deepcopy(made)
    settings = replace(QUICK, mode=mode, flip=True, shift=1, blend=True, stitch_steps=4)
    expected = here.tuned(settings)
    with other_device() as device:
        move(modules(there), device)
        assert there.tuned(settings) == expected
        move(modules(there), CPU)
    assert same(here.layer_state(), there.layer_state())
    assert same(here.state("small"), there.state("small"))


def test_a_state_is_gone_on_from_on_another_device(made: Family) -> None:
    whole, first, second, third = (copy.deepcopy(made) for _ in range(4))
    settings = replace(QUICK, mode="full", checks=4)
    with whole.tuner(settings) as tuner:
        while not tuner.done:
            tuner.step()
    results = tuner.results()
    with first.tuner(settings) as tuner:
        while tuner.steps_done < 7:
            tuner.step()
        buffer = io.BytesIO()
        torch.save(tuner.state_dict(), buffer)
    buffer.seek(0)
    with other_device() as device:
        move(modules(second), device)
        with second.tuner(settings) as tuner:
            tuner.load_state_dict(torch.load(buffer, weights_only=True))
            while tuner.steps_done < 13:
                tuner.step()
            left = tuner.state_dict()
    with third.tuner(settings) as tuner:  # and back
        tuner.load_state_dict(tree_map(lambda item: item.values if isinstance(item, There) else item, left))
        while not tuner.done:
            tuner.step()
    assert tuner.results() == results
    assert same(whole.layer_state(), third.layer_state())


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExportSettings]:
    root = tmp_path_factory.mktemp("devices")
    (root / "nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    x, y = rng.integers(60, 160, (80, 8, 8, 1)), np.arange(80) % 4
    np.savez(root / "data.npz", x=(x + 20 * y[:, None, None, None]).astype(np.uint8), y=y)
    return ExportSettings(
        anchors=tuple(f"python:{root / 'nets.py'}:{name}" for name in ("small", "vit")),
        data=f"npz:{root / 'data.npz'}",
        out=root / "out",
        rule="all",
        select="kl",
        max_routes=3,
        samples=40,
        preprocessing=GivenPreprocessing((0.5,), (0.25,)),
        input_shape=(1, 8, 8),
        tuning=TuneSettings(steps=4, batch_size=16, checks=2),
        progress=False,
    )


@pytest.mark.slow
def test_an_export_there_is_an_export_here(settings: ExportSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Similarity by probes, least squares between maps and tokens, scores, a teacher of its own, tuning, and what is written."""
    said: list[str] = []
    settings = replace(settings, teacher=settings.anchors[1].replace("python:", "other=python:"))
    here = pipeline.export_bundle(replace(settings, out=settings.out.with_name("here")), lambda _: None)
    monkeypatch.setattr(pipeline, "chosen_device", lambda _: DEVICE)
    with other_device():
        there = pipeline.export_bundle(replace(settings, out=settings.out.with_name("there")), said.append)
    assert "computing on meta" in said
    assert [(route.name, route.accuracy) for route in there.routes] == [(route.name, route.accuracy) for route in here.routes]
    assert any(">" in route.name for route in there.routes)
    assert there.manifest.files["weights.bin"] == here.manifest.files["weights.bin"]


@needs_no_gpu
def test_a_gpu_that_is_not_there(settings: ExportSettings, capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen_device() == chosen_device("cpu") == CPU
    with pytest.raises(ExportError, match=r"^--device cuda: torch .* (has no CUDA|finds no GPU); give --device cpu, or auto$"):
        chosen_device("cuda")
    assert main(["--anchors", *settings.anchors, "--data", settings.data, "--out", str(settings.out), "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("restnet-export: --device cuda: torch ")
    assert not settings.out.exists()


def test_more_processes_than_gpus() -> None:
    with pytest.raises(ExportError, match=r"process 2 of this machine \(counted from 0\) has no GPU, there are 2: start fewer"):
        _gpu(2, 2)


def test_float32_is_float32_and_networks_are_traced_all_the_same() -> None:
    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    try:
        backends.cudnn.allow_tf32 = True
        exact_float32()
        assert not backends.cuda.matmul.allow_tf32
        assert not backends.cudnn.allow_tf32
        assert cut_anchor(Anchor("a", "a", Places().eval(), (1, 8, 8), None), ends=["stem", "late"]).blocks
    finally:
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before


@needs_no_gpu
def test_a_state_from_a_gpu_is_read_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(tmp_path / "out", 0) as run:
        run.begin({"seed": "0"})
        with monkeypatch.context() as patch:
            patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")  # the file is what a GPU's tensors make
            run.save({"values": torch.arange(3.0)})
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "out.run" / "state.pt", weights_only=True)
    with Run(tmp_path / "out", 0, resume=True) as run:
        run.begin({"seed": "0"})
        assert run.state is not None
        assert run.state["values"].tolist() == [0, 1, 2]
