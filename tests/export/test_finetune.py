"""Tuning that is stopped by Ctrl-C: the best so far stays, and what goes on from its state comes to the same end."""

import copy
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from restnet_export.anchors import Anchor
from restnet_export.cuts import cut_anchor
from restnet_export.finetune import finetune
from restnet_export.planning import family_macs
from restnet_export.plans import LayerPlan, crossed_once
from restnet_export.routes import routes_of
from restnet_export.runs import Run
from restnet_export.settings import TuneSettings
from restnet_export.stitching import StitchingLayer
from restnet_export.tuner import Tuned

torch.set_num_threads(1)  # the tensors are too small to share out
SETTINGS = TuneSettings("full", steps=8, stitch_steps=8, batch_size=16, checks=2)


class Cnn(nn.Module):
    """Stem, two blocks, head for (1, 8, 8) and 4 classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(2)))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Stopped(Run):
    """Saves after every step; after so many steps of a phase somebody presses Ctrl-C."""

    def __init__(self, out: Path, phase: int, steps: int) -> None:
        super().__init__(out, 0)
        self._at, self._pressed = (phase, steps), False

    def save(self, state: Mapping[str, Any]) -> None:
        super().save(state)
        if not self._pressed and (state["phase"], state["tuner"]["steps_done"]) == self._at:
            self._pressed = True
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def tuned() -> Callable[[Run], tuple[list[Tuned], dict[str, Tensor]]]:
    """Tunes one family from its start: what became of the routes, and all weights."""
    torch.manual_seed(0)
    made = {name: cut_anchor(Anchor(name, name, Cnn(width).eval(), (1, 8, 8), None)) for name, width in (("small", 4), ("large", 6))}
    layer = StitchingLayer(made["small"].layouts[1], made["large"].layouts[1])
    plan = crossed_once([LayerPlan("up", "small", "large", ((1, 2),))])
    data = TensorDataset(torch.randn(80, 1, 8, 8), torch.arange(80) % 4)

    def tune(run: Run) -> tuple[list[Tuned], dict[str, Tensor]]:
        anchors, layers = copy.deepcopy(made), {"up": copy.deepcopy(layer)}
        with run:
            run.begin({})
            settings = (family_macs(plan, anchors), "large", data, SETTINGS, lambda _: None, False)
            results = finetune(anchors, layers, routes_of(anchors, plan), *settings, run)
        modules = {"up": layers["up"], **{f"{name}.{i}": b for name, anchor in anchors.items() for i, b in enumerate(anchor.blocks)}}
        return results, {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}

    return tune


@pytest.mark.parametrize(("phase", "steps"), [(0, 2), (0, 6), (1, 2), (1, 6)])
def test_stopped_and_resumed_it_comes_to_the_same_end(
    tuned: Callable[[Run], tuple[list[Tuned], dict[str, Tensor]]], tmp_path: Path, phase: int, steps: int
) -> None:
    results, weights = tuned(Run(tmp_path / "whole", 0))
    assert any(item.improved for item in results)
    early, _ = tuned(Stopped(tmp_path / "stopped", phase, steps))
    assert early[0].curve[-1][0] == 8 * phase + steps  # the best so far was looked for
    left = torch.load(tmp_path / "stopped.run" / "state.pt", weights_only=True)
    assert (left["phase"], left["tuner"]["steps_done"]) == (phase, steps)
    again, resumed = tuned(Run(tmp_path / "stopped", 0, resume=True))
    assert again == results
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())
