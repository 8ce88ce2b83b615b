"""Tuning the stitching layers: the loss falls, the anchors do not move, a seed decides everything."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from restnet_export.finetune import distillation_loss, finetune_stitch
from restnet_export.layouts import Layout
from restnet_export.stitching import StitchFit, StitchingLayer
from restnet_runtime.errors import ExportError

torch.set_num_threads(1)  # the tensors are too small to share out
QUIET = {"progress": False, "batch_size": 32}


def cnn(width: int, seed: int) -> nn.Sequential:
    """Stem, two blocks, head for (1, 8, 8) and 4 classes, with BatchNorm statistics of its own."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)),
    )


@dataclass
class Problem:
    small: nn.Sequential
    large: nn.Sequential
    routes: list[nn.Sequential]
    data: TensorDataset

    @property
    def layers(self) -> list[StitchingLayer]:
        return [layer for route in self.routes for layer in route if isinstance(layer, StitchingLayer)]


def images(count: int, seed: int) -> TensorDataset:
    """A bright quarter says the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    x = torch.randn(count, 1, 8, 8, generator=generator)
    for image, label in zip(x, labels.tolist(), strict=True):
        image[0, 4 * (label // 2) :, :][:4, 4 * (label % 2) :][:, :4] += 1.5
    return TensorDataset(x, labels)


def train(model: nn.Sequential, data: TensorDataset) -> None:
    x, labels = data.tensors
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    model.train()
    for _ in range(25):
        optimiser.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimiser.step()
    model.eval()


@pytest.fixture(scope="module")
def trained() -> Problem:
    data = images(200, 1)
    small, large = cnn(6, 1), cnn(10, 2)
    train(small, data)
    train(large, data)
    return Problem(small, large, [], images(160, 2))


@pytest.fixture
def problem(trained: Problem) -> Problem:
    own = copy.deepcopy(trained)
    small, large = own.small, own.large
    early = StitchingLayer(Layout("map", 10, 8, 8, 0), Layout("map", 6, 4, 4, 0))
    late = StitchingLayer(Layout("map", 10, 4, 4, 0), Layout("map", 6, 4, 4, 0))
    own.routes = [small, nn.Sequential(large[0], early, *small[2:]), nn.Sequential(*large[:2], late, *small[2:])]
    return own


def loss_of(problem: Problem, route: nn.Sequential) -> float:
    x, labels = images(300, 3).tensors
    with torch.no_grad():
        return distillation_loss(route(x), labels, problem.large(x), 0.5, 2.0).item()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_loss_is_cross_entropy_and_softened_kl() -> None:
    torch.manual_seed(0)
    logits, teacher, labels = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    p, q = (teacher / 3).softmax(1), (logits / 3).softmax(1)
    soft = (p * (p / q).log()).sum(1).mean()
    hard = -logits.softmax(1)[range(6), labels].log().mean()
    assert distillation_loss(logits, labels, teacher, 0.3, 3).item() == pytest.approx(0.7 * hard.item() + 0.3 * 9 * soft.item(), rel=1e-5)
    assert distillation_loss(teacher, labels, teacher, 1, 2).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_falls_on_images_never_seen(problem: Problem) -> None:
    before = [loss_of(problem, route) for route in problem.routes]
    results = finetune_stitch(problem.routes, problem.large, problem.data, epochs=6, lr=1e-2, **QUIET)
    after = [loss_of(problem, route) for route in problem.routes]
    assert after[0] == before[0]
    assert after[1] < 0.8 * before[1]
    assert after[2] < 0.8 * before[2]
    assert [result.layers for result in results] == [((1, 1),), ((2, 2),)]
    assert all(result.kept and result.loss_after < result.loss_before for result in results)


def test_anchors_stay_bit_for_bit_and_flags_come_back(problem: Problem) -> None:
    small, large = problem.small, problem.large
    small[2].train()
    small[3][2].weight.requires_grad_(False)
    problem.layers[0].bias.requires_grad_(False)
    before = state(small), state(large)
    layer_before = state(problem.layers[0])
    flags = [p.requires_grad for m in (*problem.routes, large) for p in m.parameters()]
    modes = [part.training for m in (*problem.routes, large) for part in m.modules()]
    finetune_stitch(problem.routes, large, problem.data, steps=5, held_out=0, **QUIET)
    assert same(before[0], state(small))
    assert same(before[1], state(large))
    assert not same(layer_before, state(problem.layers[0]))
    assert flags == [p.requires_grad for m in (*problem.routes, large) for p in m.parameters()]
    assert modes == [part.training for m in (*problem.routes, large) for part in m.modules()]
    assert all(p.grad is None for m in (*problem.routes, large) for p in m.parameters())


def test_flags_come_back_after_an_exception(problem: Problem) -> None:
    broken = TensorDataset(torch.zeros(50, 2, 8, 8), torch.zeros(50, dtype=torch.int64))
    problem.small[2].train()
    with pytest.raises(RuntimeError, match="channels"):
        finetune_stitch(problem.routes, problem.large, broken, steps=1, **QUIET)
    assert problem.small[2].training
    assert all(p.requires_grad for p in problem.small.parameters())


def test_a_seed_decides_everything(problem: Problem) -> None:
    twin, other = copy.deepcopy(problem), copy.deepcopy(problem)
    torch.manual_seed(1)
    one = finetune_stitch(problem.routes, problem.large, problem.data, epochs=2, seed=7, **QUIET)
    torch.manual_seed(2)
    two = finetune_stitch(twin.routes, twin.large, twin.data, epochs=2, seed=7, **QUIET)
    finetune_stitch(other.routes, other.large, other.data, epochs=2, seed=8, **QUIET)
    assert one == two
    assert all(same(state(a), state(b)) for a, b in zip(problem.layers, twin.layers, strict=True))
    assert not same(state(problem.layers[0]), state(other.layers[0]))


def test_the_global_random_state_is_left_alone(problem: Problem) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    finetune_stitch(problem.routes, problem.large, problem.data, steps=2, **QUIET)
    assert torch.equal(before, torch.get_rng_state())


def test_a_layer_that_tuning_wrecks_gets_its_old_weights_back(problem: Problem) -> None:
    x = problem.data.tensors[0]
    with torch.no_grad():
        target = problem.small[:2](x)
        for blocks, layer in enumerate(problem.layers, 1):
            fitting = StitchFit(layer)
            fitting.add(problem.large[:blocks](x), target)
            fitting.finish()
    good = [state(layer) for layer in problem.layers]
    results = finetune_stitch(problem.routes, problem.large, problem.data, steps=3, lr=5.0, **QUIET)
    assert [result.kept for result in results] == [False, False]
    assert all(result.loss_after > result.loss_before for result in results)
    assert all(same(old, state(layer)) for old, layer in zip(good, problem.layers, strict=True))


def test_without_held_out_images_the_tuned_weights_stay(problem: Problem) -> None:
    before = [state(layer) for layer in problem.layers]
    results = finetune_stitch(problem.routes, problem.large, problem.data, steps=3, lr=5.0, held_out=0, **QUIET)
    assert all(result.kept and math.isnan(result.loss_before) and math.isnan(result.loss_after) for result in results)
    assert not any(same(old, state(layer)) for old, layer in zip(before, problem.layers, strict=True))


def test_layers_that_share_a_route_are_judged_together(problem: Problem) -> None:
    small, large = problem.small, problem.large
    there, back = problem.layers[0], StitchingLayer(Layout("map", 6, 4, 4, 0), Layout("map", 10, 4, 4, 0))
    alone = problem.layers[1]
    routes = [
        nn.Sequential(large[0], there, *small[2:]),
        nn.Sequential(*large[:2], alone, *small[2:]),
        nn.Sequential(*small[:2], back, *large[2:]),
        nn.Sequential(large[0], there, back, *large[2:]),
    ]
    results = finetune_stitch(routes, large, problem.data, epochs=1, **QUIET)
    assert {result.layers for result in results} == {((1, 2),), ((0, 1), (2, 2))}


def test_progress_is_shown_or_not(problem: Problem, capsys: pytest.CaptureFixture[str]) -> None:
    finetune_stitch(problem.routes, problem.large, problem.data, steps=3, progress=True)
    shown = capsys.readouterr().err
    assert "fine-tuning: 100%" in shown
    assert "6/6" in shown  # three steps of two routes
    assert "loss=" in shown
    finetune_stitch(problem.routes, problem.large, problem.data, steps=3, progress=False)
    assert capsys.readouterr().err == ""


def test_epochs_count_images_per_route(problem: Problem, capsys: pytest.CaptureFixture[str]) -> None:
    finetune_stitch(problem.routes, problem.large, problem.data, epochs=2, batch_size=50)
    assert "12/12" in capsys.readouterr().err  # 128 of 160 images are 3 batches; 2 epochs, 2 routes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs or steps is 0"),
        ({"steps": 0}, "epochs or steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"held_out": 1.0}, "held_out is 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(problem: Problem, options: dict, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        finetune_stitch(problem.routes, problem.large, problem.data, **{"progress": False, **options})


def test_nothing_to_tune_or_to_tune_on_is_refused(problem: Problem) -> None:
    with pytest.raises(ExportError, match="none of the routes"):
        finetune_stitch([problem.small, problem.large], problem.large, problem.data, progress=False)
    with pytest.raises(ExportError, match="1 images leave none"):
        finetune_stitch(problem.routes, problem.large, images(1, 0), progress=False)
