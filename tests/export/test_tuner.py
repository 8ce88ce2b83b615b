"""Tuning: routes gain, nothing ends below its start, anchors stay where they must, and a state is all that a run depends on."""

import copy
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from restnet_export.anchors import Anchor
from restnet_export.cuts import CutAnchor, cut_anchor
from restnet_export.finetune import finetune
from restnet_export.guard import Guard, Score
from restnet_export.objectives import Objective
from restnet_export.planning import family_macs
from restnet_export.plans import LayerPlan, crossed_once
from restnet_export.routes import StitchedRoute, routes_of
from restnet_export.settings import TuneSettings
from restnet_export.stitching import StitchingLayer
from restnet_export.tuner import Tuned, Tuner
from restnet_runtime.errors import ExportError
from restnet_runtime.routes import Part

torch.set_num_threads(1)  # the tensors are too small to share out
QUICK = TuneSettings(steps=20, batch_size=32, checks=2)


class Cnn(nn.Module):
    """Stem, three blocks, head for (1, 8, 8) and 4 classes, with BatchNorm statistics of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()) for _ in range(3))
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@dataclass
class Family:
    anchors: dict[str, CutAnchor]
    layers: dict[str, StitchingLayer]
    routes: list[StitchedRoute]
    macs: list[int]
    data: TensorDataset

    def tuner(self, settings: TuneSettings = QUICK, teacher: str | nn.Module = "large", data: TensorDataset | None = None) -> Tuner:
        return Tuner(self.anchors, self.layers, self.routes, self.macs, teacher, data or self.data, settings)

    def tuned(self, settings: TuneSettings = QUICK, teacher: str | nn.Module = "large") -> list[Tuned]:
        return finetune(self.anchors, self.layers, self.routes, self.macs, teacher, self.data, settings, lambda _: None, progress=False)

    def accuracies(self, data: TensorDataset) -> list[float]:
        x, labels = data.tensors
        with torch.no_grad():
            return [(route.module(self.anchors, self.layers)(x).argmax(1) == labels).double().mean().item() for route in self.routes]

    def state(self, anchor: str) -> dict[str, Tensor]:
        return {k: v.clone() for i, block in enumerate(self.anchors[anchor].blocks) for k, v in named(block, i)}

    def layer_state(self) -> dict[str, Tensor]:
        return {f"{name}.{k}": v.clone() for name, layer in self.layers.items() for k, v in layer.state_dict().items()}


def named(block: nn.Module, index: int) -> list[tuple[str, Tensor]]:
    return [(f"{index}.{name}", value) for name, value in block.state_dict().items()]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def interrupted_after(tuner: Tuner, steps: int) -> None:
    while tuner.steps_done < steps:
        tuner.step()
    raise KeyboardInterrupt


def images(count: int, seed: int) -> TensorDataset:
    """A bright quarter says the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    x = torch.randn(count, 1, 8, 8, generator=generator)
    for image, label in zip(x, labels.tolist(), strict=True):
        image[0, 4 * (label // 2) :, :][:4, 4 * (label % 2) :][:, :4] += 1.5
    return TensorDataset(x, labels)


def trained(width: int, seed: int, data: TensorDataset) -> nn.Module:
    torch.manual_seed(seed)
    model = Cnn(width)
    x, labels = data.tensors
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(30):
        optimiser.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def made() -> Family:
    data = images(200, 1)
    anchors = {
        name: cut_anchor(Anchor(name, name, trained(width, seed, data), (1, 8, 8), None))
        for name, width, seed in (("small", 6, 1), ("large", 10, 2))
    }
    assert [len(anchor.blocks) for anchor in anchors.values()] == [5, 5]
    plans = [LayerPlan("down", "large", "small", ((1, 2),)), LayerPlan("up", "small", "large", ((2, 3),))]
    layers = {
        plan.name: StitchingLayer(anchors[plan.front].layouts[plan.pairs[0][0]], anchors[plan.end].layouts[plan.pairs[0][1] - 1])
        for plan in plans
    }
    plan = crossed_once(plans)
    return Family(anchors, layers, routes_of(anchors, plan), family_macs(plan, anchors), images(160, 2))


@pytest.fixture
def family(made: Family) -> Family:
    return copy.deepcopy(made)


@pytest.mark.parametrize("mode", ["stitch", "lora", "full"])
def test_routes_gain_on_images_never_seen(family: Family, mode: str) -> None:
    unseen = images(400, 3)
    before = family.accuracies(unseen)
    results = family.tuned(replace(QUICK, mode=mode, steps=60, stitch_steps=20, rank=3 if mode == "lora" else None))
    after = family.accuracies(unseen)
    assert min(before[2:]) < 0.7
    assert all(new > old + 0.15 for old, new in zip(before[2:], after[2:], strict=True))
    assert all(new > old - 0.03 for old, new in zip(before[:2], after[:2], strict=True))
    stitched = [item for item in results if ">" in item.route]
    assert len(stitched) == 2
    assert all(item.improved and item.loss_after < item.loss_before and item.accuracy_after > item.accuracy_before for item in stitched)
    assert len(results) == (4 if mode == "full" else 2)


@pytest.mark.parametrize("mode", ["stitch", "lora"])
def test_anchors_stay_bit_for_bit(family: Family, mode: str) -> None:
    before, layers = [family.state(name) for name in family.anchors], family.layer_state()
    family.tuned(replace(QUICK, mode=mode))
    assert all(same(old, family.state(name)) for old, name in zip(before, family.anchors, strict=True))
    assert not same(layers, family.layer_state())


def test_full_tuning_moves_weights_and_keeps_batch_norm_statistics(family: Family) -> None:
    before = family.state("small")
    family.tuned(replace(QUICK, mode="full", stitch_steps=0))
    after = family.state("small")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("weight" in name for name in moved)
    assert not any("running" in name or "num_batches" in name for name in before.keys() & moved)


@pytest.mark.parametrize("mode", ["stitch", "full", "lora"])
def test_steps_that_wreck_everything_leave_no_trace(family: Family, mode: str) -> None:
    family.tuned(replace(QUICK, steps=40))
    before, layers = [family.state(name) for name in family.anchors], family.layer_state()
    results = family.tuned(replace(QUICK, mode=mode, lr=1e4, lr_weights=1e4, stitch_steps=0))
    assert not any(item.improved for item in results)
    assert all(item.accuracy_after == item.accuracy_before and item.loss_after == item.loss_before for item in results)
    assert all(same(old, family.state(name)) for old, name in zip(before, family.anchors, strict=True))
    assert layers.keys() == family.layer_state().keys()
    assert all(torch.allclose(old, family.layer_state()[name], rtol=0, atol=0) for name, old in layers.items())


def test_routes_are_judged_apart_where_no_layer_is_shared(family: Family) -> None:
    """The wrecked one goes back, the other keeps what it has gained."""
    tuner = family.tuner()
    with tuner:
        while tuner.steps_done < QUICK.steps - 1:
            tuner.step()
        with torch.no_grad():
            for parameter in tuner._groups[0].parameters:
                parameter.fill_(100.0)
        tuner.step()
    down, up = tuner.results()
    assert up.improved
    assert up.accuracy_after > up.accuracy_before
    assert down.accuracy_after >= down.accuracy_before


def test_a_route_of_two_layers_is_measured_as_it_will_be(family: Family) -> None:
    """One of its layers is wrecked and goes back to its start, the other is kept: the route never ran like that in tuning."""
    parts = (Part("small", 0, 2), Part("large", 3, 3), Part("small", 4, 4))
    layer = StitchingLayer(family.anchors["large"].layouts[3], family.anchors["small"].layouts[3])
    family.layers["late"] = layer
    family.routes += [
        StitchedRoute("down-late", (Part("large", 0, 3), Part("small", 4, 4)), ("late",)),
        StitchedRoute("there-and-back", parts, ("up", "late")),
    ]
    family.macs += [1, 1]  # drawn evenly, whatever they cost
    tuner = family.tuner()
    with tuner:
        while tuner.steps_done < 9:
            tuner.step()
        late = next(group for group in tuner._groups if "late" in group.layers)
        with torch.no_grad():
            for parameter in late.parameters:
                parameter.fill_(100.0)
        tuner.step()
        assert not late.improved
    found = {item.route: item for item in tuner.results()}
    assert found["down-late"].loss_after == found["down-late"].loss_before
    again = family.tuner()
    with again:
        again.step()
    assert again.results()[-1].loss_before == pytest.approx(found["there-and-back"].loss_after, rel=1e-4)


def test_flags_and_modes_come_back_after_an_exception(family: Family) -> None:
    block = family.anchors["small"].blocks[1]
    block.train()
    next(block.parameters()).requires_grad_(False)
    layer = family.layers["up"]
    modules = [*(b for anchor in family.anchors.values() for b in anchor.blocks), *family.layers.values()]
    flags = [p.requires_grad for module in modules for p in module.parameters()]
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    tuner = family.tuner()
    with pytest.raises(KeyboardInterrupt), tuner:
        interrupted_after(tuner, 1)
    assert block.training
    assert flags == [p.requires_grad for module in modules for p in module.parameters()]
    assert all(p.grad is None for module in modules for p in module.parameters())
    assert same(before, layer.state_dict())  # nothing was judged yet, so nothing is kept


def test_what_was_kept_survives_an_interruption(family: Family) -> None:
    tuner = family.tuner()
    with pytest.raises(KeyboardInterrupt), tuner:
        interrupted_after(tuner, 11)  # judged after 10
    results = tuner.results()
    assert any(item.improved for item in results)
    again = family.tuner()
    with again:
        again.step()
    assert [item.loss_before for item in again.results()] == pytest.approx([item.loss_after for item in results])


@pytest.mark.parametrize("mode", ["stitch", "full", "lora"])
def test_a_state_is_all_that_a_run_depends_on(made: Family, mode: str) -> None:
    settings = replace(QUICK, mode=mode, flip=True, shift=1, blend=mode != "full", sampling="binned")
    whole, first, second = (copy.deepcopy(made) for _ in range(3))
    with whole.tuner(settings) as tuner:
        while not tuner.done:
            tuner.step()
    results = tuner.results()
    with first.tuner(settings) as tuner:
        while tuner.steps_done < 13:
            tuner.step()
        buffer = io.BytesIO()
        torch.save(tuner.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(5)
    resumed = second.tuner(settings)
    with resumed:
        resumed.load_state_dict(torch.load(buffer, weights_only=True))
        while not resumed.done:
            resumed.step()
    assert resumed.results() == results
    assert same(whole.layer_state(), second.layer_state())
    assert all(same(whole.state(name), second.state(name)) for name in made.anchors)


def test_no_route_falls_below_what_an_earlier_phase_began_with(family: Family) -> None:
    """As if every route had been right on all images before the first phase: whatever the second one finds, nothing is taken."""
    with family.tuner() as tuner:
        tuner.step()
    perfect = {route: Score(score.losses, torch.ones_like(score.hits)) for route, score in tuner.starts.items()}
    before = family.layer_state()
    later = Tuner(
        family.anchors, family.layers, family.routes, family.macs, "large", family.data, replace(QUICK, mode="full"), starts=perfect
    )
    with later:
        while not later.done:
            later.step()
    assert not any(item.improved for item in later.results())
    assert {item.accuracy_before for item in later.results() if ">" in item.route} == {1.0}
    assert same(family.layer_state(), before)


def test_phases_share_one_start(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    begin = Guard.begin

    def noted(self: Guard, routes: Sequence[int], earlier: Mapping[int, Score]) -> None:
        begin(self, routes, earlier)
        begun.append((dict(earlier), dict(self.start)))

    monkeypatch.setattr(Guard, "begin", noted)
    family.tuned(replace(QUICK, mode="full", stitch_steps=QUICK.steps))
    (nothing, first), (given, second) = begun
    assert not nothing
    assert given == first
    assert {route: second[route] for route in first} == first


def test_curves_fall_from_the_start_to_the_end(family: Family) -> None:
    """A point at the start and one a check, of the best so far: it never rises and ends at the result. Phases follow one another."""
    found = family.tuned(replace(QUICK, mode="full", stitch_steps=QUICK.steps))
    for item in found:
        steps, losses = zip(*item.curve, strict=True)
        assert list(steps) == sorted(steps)
        assert (steps[0], steps[-1]) == (0 if ">" in item.route else QUICK.steps, 2 * QUICK.steps)
        assert losses[0] == item.loss_before
        assert losses[-1] == item.loss_after
        assert all(later <= earlier + 1e-6 for earlier, later in pairwise(losses)) or ">" not in item.route


def test_a_seed_decides_everything(made: Family) -> None:
    one, two, other = (copy.deepcopy(made) for _ in range(3))
    torch.manual_seed(1)
    first = one.tuned(replace(QUICK, seed=7))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert two.tuned(replace(QUICK, seed=7)) == first
    other.tuned(replace(QUICK, seed=8))
    assert same(one.layer_state(), two.layer_state())
    assert not same(one.layer_state(), other.layer_state())
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())  # the global random state is left alone


def test_two_half_batches_are_a_whole_one(made: Family) -> None:
    whole, halves = copy.deepcopy(made), copy.deepcopy(made)
    even = TensorDataset(*(part[:64] for part in made.data.tensors))  # 32 to tune on
    settings = replace(QUICK, steps=1, checks=1, held_out=0.5, objective=Objective(features=0.0))
    whole.tuner(settings, data=even)
    with whole.tuner(settings, data=even) as tuner:
        tuner.step()
        one = [parameter.clone() for group in tuner._groups for parameter in group.parameters]
    with halves.tuner(replace(settings, batch_size=16, accumulate=2), data=even) as tuner:
        tuner.step()
        two = [parameter.clone() for group in tuner._groups for parameter in group.parameters]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one, two, strict=True))


def test_labels_are_not_looked_at_where_they_are_ignored(made: Family) -> None:
    one, two = copy.deepcopy(made), copy.deepcopy(made)
    x, labels = two.data.tensors
    two.data = TensorDataset(x, labels.roll(1))
    settings = replace(QUICK, labelled=False)
    assert one.tuned(settings) == two.tuned(settings)
    assert same(one.layer_state(), two.layer_state())


def test_bfloat16_ends_about_where_float32_does(made: Family) -> None:
    one, two = copy.deepcopy(made), copy.deepcopy(made)
    exact, rough = one.tuned(), two.tuned(replace(QUICK, amp="bf16"))
    assert not same(one.layer_state(), two.layer_state())
    assert all(parameter.dtype == torch.float32 for layer in two.layers.values() for parameter in layer.parameters())
    for a, b in zip(exact, rough, strict=True):
        assert a.loss_before == b.loss_before  # what is measured is float32
        assert b.loss_after == pytest.approx(a.loss_after, rel=0.1)


class Together(nn.Module):
    """What two networks say together, as a network."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        return (self.one(x).log_softmax(1) + self.other(x).log_softmax(1)) / 2


@pytest.mark.parametrize("mode", ["stitch", "full"])
def test_all_anchors_may_teach_together(made: Family, mode: Literal["stitch", "full"]) -> None:
    """In full tuning too, where the anchors change, it is what they said at the start."""
    settings = replace(QUICK, mode=mode, stitch_steps=0, objective=Objective(soft=1.0, features=0.0))
    networks = [nn.Sequential(*copy.deepcopy(anchor.blocks)).eval() for anchor in made.anchors.values()]
    results = [copy.deepcopy(made).tuned(settings, teacher) for teacher in ("ensemble", Together(*networks), "large")]
    losses = [[item.loss_after for item in result] for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] != pytest.approx(losses[2], rel=0.05)


def test_a_network_of_its_own_may_teach(made: Family) -> None:
    one, two = copy.deepcopy(made), copy.deepcopy(made)
    settings = replace(QUICK, objective=Objective(features=0.0))
    large = nn.Sequential(*copy.deepcopy(made.anchors["large"].blocks)).train()
    assert one.tuned(settings) == two.tuned(settings, large)
    assert large.training


def test_nan_at_a_cut_is_told(family: Family) -> None:
    x, labels = family.data.tensors
    bad = TensorDataset(torch.where(labels.view(-1, 1, 1, 1) == 0, torch.nan, x), labels)
    with pytest.raises(ExportError, match="what it stitches is NaN or infinite for some of the images to tune on"):
        family.tuner(data=bad)


def test_fallen_routes_are_drawn_more_often(family: Family) -> None:
    tuner = family.tuner(replace(QUICK, mode="full", lr=1e4, lr_weights=1e4, checks=4))
    with tuner:
        while not tuner.done:
            tuner.step()
    assert max(tuner._sampler.weights.values()) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"held_out": 0.0}, "held-out is 0.0"),
        ({"held_out": 1.0}, "held-out is 1.0"),
        ({"rank": 0}, "rank is 0"),
        ({"objective": Objective(temperature=0.0)}, "temperature is 0.0"),
        ({"objective": Objective(soft=0.0)}, "one of the losses"),
        ({"objective": Objective(labels=1.0), "labelled": False}, "a loss of labels"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        replace(QUICK, **options)


def test_nothing_to_tune_or_to_tune_on_is_refused(family: Family) -> None:
    with pytest.raises(ExportError, match="1 images leave none"):
        family.tuner(data=images(1, 0))
    family.routes = family.routes[:2]
    with pytest.raises(ExportError, match="none of the routes"):
        family.tuner()
