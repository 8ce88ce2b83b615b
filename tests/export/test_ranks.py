"""Two processes that tune together: real ones, over gloo."""

import ast
import os
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from restnet_export.ranks import Ranks

TOGETHER = """
import weakref
from pathlib import Path
import torch
from torch import distributed, nn
from restnet_export.ranks import joined_ranks
from restnet_export.trace import trace
from restnet_runtime.errors import ExportError
with joined_ranks() as ranks:
    assert ranks.size == 2
    shared, alone, absent = (torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
    shared.grad = torch.full((2, 3), 1.0 + ranks.rank)
    if ranks.rank == 1:
        alone.grad = torch.arange(6.0).view(2, 3)
    ranks.sum_gradients([shared, alone, absent])
    assert shared.grad.tolist() == [[3.0] * 3] * 2
    assert alone.grad.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert absent.grad is None
    ranks.sum_gradients([absent])
    first = torch.nn.Parameter(torch.full((2,), float(ranks.rank)))
    ranks.take_from_first([first])
    assert first.tolist() == [0, 0]
    assert ranks.sum(torch.tensor([ranks.rank + 1])).tolist() == [3]
    assert list(ranks.share([5, 6, 7])) == ([5, 7] if ranks.first else [6])
    assert ranks.join(torch.tensor([5.0, 7.0] if ranks.first else [6.0]), 3).tolist() == [5, 6, 7]
    ranks.wait()
    print("exchanged", ranks.rank)

    ranks.check_same({"seed": "0", "images": "96 abc"})
    for entries in ({"seed": "0", "images": f"96 {ranks.rank}"}, {"seed": "0"} if ranks.first else {"seed": "0", "lr": "1"}):
        try:
            ranks.check_same(entries)
        except ExportError as error:
            print(error, end="; ")
    print()

    group = weakref.ref(distributed.group.WORLD)
    trace(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 2)).eval(), (1, 8, 8))
    ranks.wait()
print(group(), sorted(name for task in Path("/proc/self/task").iterdir() if "gloo" in (name := (task / "comm").read_text())))
"""

TUNE = """
import torch
from torch import nn
from restnet_export.anchors import Anchor
from restnet_export.cuts import cut_anchor
from restnet_export.finetune import finetune
from restnet_export.objectives import Objective
from restnet_export.ranks import Ranks, joined_ranks
from restnet_export.routes import routes_of
from restnet_export.planning import family_macs
from restnet_export.plans import LayerPlan, crossed_once
from restnet_export.settings import TuneSettings
from restnet_export.stitching import StitchingLayer
from torch.utils.data import TensorDataset


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(2)))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def tuned(ranks, batch_size):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    anchors = {name: cut_anchor(Anchor(name, name, Net(width).eval(), (1, 8, 8), None)) for name, width in (("small", 3), ("large", 5))}
    layer = StitchingLayer(anchors["small"].layouts[1], anchors["large"].layouts[1])
    plan = crossed_once([LayerPlan("up", "small", "large", ((1, 2),))])
    routes = routes_of(anchors, plan)
    data = TensorDataset(torch.randn(43, 1, 8, 8), torch.arange(43) % 4)
    settings = TuneSettings("full", steps=5, batch_size=batch_size, stitch_steps=3, checks=2, objective=Objective(labels=1.0, features=0.0))
    macs = family_macs(plan, anchors)
    finetune(anchors, {"up": layer}, routes, macs, "large", data, settings, lambda _: None, progress=False, ranks=ranks)
    modules = [layer, *(block for anchor in anchors.values() for block in anchor.blocks)]
    return [round(float(value), 6) for module in modules for weight in module.parameters() for value in weight.detach().flatten()[:5]]


if __name__ == "__main__":
    with joined_ranks() as ranks:
        print(tuned(ranks, 8))
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run_in_two(code: str) -> list[list[str]]:
    """The lines that each process prints. The environment is what torchrun makes."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **address, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    told = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    return [text.splitlines() for text in told]


@pytest.fixture(scope="module")
def told() -> list[tuple[str, str, str]]:
    """What two processes say of what they exchanged, of what they were given, and of what is left at the end."""
    return [(first, second, third) for *_, first, second, third in run_in_two(TOGETHER)]


def test_what_ranks_exchange(told: list[tuple[str, str, str]]) -> None:
    assert [lines[0] for lines in told] == ["exchanged 0", "exchanged 1"]


def test_ranks_that_were_given_different_things_are_told_so(told: list[tuple[str, str, str]]) -> None:
    begin = "processes that tune together must be given the same: "
    expected = f"{begin}images is 96 0 on rank 0, 96 1 on rank 1; {begin}lr is not there on rank 0, 1 on rank 1; "
    assert [lines[1] for lines in told] == [expected] * 2


def test_nothing_of_the_group_is_left_at_its_end(told: list[tuple[str, str, str]]) -> None:
    """Threads of gloo that live on abort a process now and then when it ends."""
    assert [lines[2] for lines in told] == ["None []"] * 2


def test_two_ranks_tune_as_one_with_batches_twice_as_large() -> None:
    """34 images to tune on: a batch of 16, another, and one of two images, then one each."""
    code: dict[str, Any] = {"__name__": "one"}
    exec(TUNE, code)
    alone, halved = code["tuned"](Ranks(), 16), code["tuned"](Ranks(), 8)
    first, second = (ast.literal_eval(lines[-1]) for lines in run_in_two(TUNE))
    assert first == second
    np.testing.assert_allclose(first, alone, atol=1e-5)
    assert not np.allclose(halved, alone, atol=1e-3)


def test_alone_nothing_changes() -> None:
    alone = Ranks()
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    alone.sum_gradients([parameter])
    alone.check_same({})
    alone.wait()
    assert (parameter.grad.tolist(), alone.first, list(alone.share([1, 2]))) == ([1, 1], True, [1, 2])
