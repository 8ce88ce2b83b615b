"""What goes wrong late: the command ends with one clear line and exit status 2, and leaves an older bundle as it was and no half one."""

import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from restnet_export.cli import main
from restnet_runtime.bundle import open_bundle

NETS = '''
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width, work):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.work = work

    def forward(self, x):
        return x + self.work(self.conv(x))


class Net(nn.Module):
    def __init__(self, width, work=torch.relu, classes=3, size=None):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(Block(width, work), Block(width, work))
        self.head = nn.Linear(width if size is None else width * size * size, classes)
        self.size = size

    def forward(self, x):
        x = self.blocks(self.stem(x))
        return self.head(x.mean((2, 3)) if self.size is None else x.flatten(1))


def made(*args, **options):
    torch.manual_seed(0)
    return Net(*args, **options)


def tiny():
    return made(3)


def small():
    return made(5)


def wide():
    """With weights of more than 300 kB."""
    return made(96)


def chaotic():
    """What the last bit of a sum decides: no two libraries agree on it."""
    return made(5, lambda x: torch.sin(1e9 * x))


def logarithmic():
    """Finite for blank images, not for those with something on them."""
    net = made(5, lambda x: torch.log(10 * x + 1))
    for block in net.blocks:
        nn.init.zeros_(block.conv.bias)
    nn.init.zeros_(net.stem.bias)
    return net


def four():
    return made(5, classes=4)


def sized():
    """Takes images of 8 x 8 alone."""
    return made(5, size=8)


class Shortcut(nn.Module):
    """Two tensors are live all along."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Bilinear(4, 4, 3)

    def forward(self, x):
        left, right = self.left(x), self.right(x)
        return self.head(left.mean((2, 3)), right.mean((2, 3)))


def shortcut():
    return Shortcut()
'''


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks in nets.py, images in data.npz, and what is wrong with them beside."""
    root = tmp_path_factory.mktemp("shop")
    (root / "nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    np.savez(root / "data.npz", x=rng.integers(0, 256, (30, 8, 8, 1), dtype=np.uint8), y=np.arange(30) % 3)
    torch.save({"stem.weight": torch.zeros(3, 1, 3, 3), "body.weight": torch.zeros(2)}, root / "other.pt")
    (root / "code.pt").write_bytes(pickle.dumps(Dangerous(str(root / "pwned"))))
    (root / "broken.onnx").write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    return root


class Dangerous:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


def line(shop: Path, out: Path, *anchors: str, rule: str = "sn-net") -> list[str]:
    specs = [anchor if ":" in anchor else f"python:{shop / 'nets.py'}:{anchor}" for anchor in anchors]
    inputs = ["--input", "8", "--mean", "0.5", "--std", "0.25"]
    return ["--anchors", *specs, "--data", f"npz:{shop / 'data.npz'}", *inputs, "--rule", rule, "--finetune", "none", "--out", str(out)]


@pytest.mark.parametrize(
    ("anchors", "told"),
    [
        (("tiny", "chaotic"), "segment chaotic.1: at batch 1 ONNX Runtime differs from torch by"),
        (("tiny", "logarithmic"), "logarithmic: its scores for images of noise are not finite; are its weights damaged?"),
        (("tiny", "four"), "anchors tell different numbers of classes apart: {'tiny': 3, 'four': 4}"),
        (("tiny", "shortcut"), "shortcut: cannot be cut: its input stays live up to 'right', so more than one tensor is live all along"),
        (("tiny@other.pt", "small"), "other.pt does not fit Net: missing: stem.bias, blocks.0.conv.weight, blocks.0.conv.bias,"),
        (("tiny@code.pt", "small"), "code.pt is damaged or holds more than tensors, and code from a checkpoint is never run"),
        (("tiny", "onnx:broken.onnx"), "broken.onnx cannot be read"),
    ],
    ids=["parity", "not finite", "classes", "no cut", "other checkpoint", "code in a checkpoint", "no ONNX graph"],
)
@pytest.mark.parametrize("older", [False, True], ids=["nothing there", "an older bundle there"])
def test_one_clear_line(
    shop: Path,
    older: bool,
    anchors: tuple[str, ...],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(shop)
    out = tmp_path / "family"
    if older:
        out.mkdir()
        (out / "manifest.json").write_text('{"format": "restnet-bundle"}')
    assert main(line(shop, out, *anchors)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("restnet-export: ")
    assert said.err.count("\n") == 1
    assert told in said.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == (["family", "manifest.json"] if older else [])
    assert not (shop / "pwned").exists()


def test_images_of_another_size_than_a_network_takes(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = line(shop, tmp_path / "family", "tiny", "sized")
    options[options.index("--input") + 1] = "16"
    assert main(options) == 2
    assert "does not take images of shape (1, 16, 16)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel refuses to let a file grow beyond 200 kB: weights.bin does not fit, and the older bundle stays whole."""
    out = tmp_path / "family"
    assert main([*line(shop, out, "tiny", "small"), "--quiet"]) == 0
    before = open_bundle(out).digest
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        status = main(line(shop, out, "tiny", "wide"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    assert capsys.readouterr().err == f"restnet-export: the bundle {out} cannot be written: File too large; an older one is as it was\n"
    assert open_bundle(out).digest == before
    assert [path.name for path in tmp_path.iterdir()] == ["family"]
