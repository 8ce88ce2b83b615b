"""Probes and the KL divergence between what they tell, against the formulas written out."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from restnet_export.cuts import Cut, CutAnchor
from restnet_export.data import Images, Samples
from restnet_export.layouts import Layout
from restnet_export.plans import AnchorShape
from restnet_export.probes import MeanKL, Probe, measure_divergence, pooled
from restnet_export.promise import depth_distance, measure_promise
from restnet_export.similarity import measure_similarity
from restnet_runtime.errors import ExportError
from restnet_runtime.manifest import Preprocessing

torch.set_num_threads(1)
SIDE = 4


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_probabilities(*shape: int, seed: int = 0) -> Tensor:
    return torch.log_softmax(2 * noise(*shape, seed=seed), -1)


def test_the_mean_over_batches_is_torchs_kl() -> None:
    fronts, ends = [log_probabilities(50, 5, seed=seed) for seed in (1, 2, 3)], [log_probabilities(50, 5, seed=seed) for seed in (4, 5)]
    mean = MeanKL()
    for part in (slice(0, 20), slice(20, 50)):
        mean.update([front[part] for front in fronts], [end[part] for end in ends])
    expected = [[float(functional.kl_div(end, front, reduction="batchmean", log_target=True)) for end in ends] for front in fronts]
    assert mean.result() == pytest.approx(np.array(expected), abs=1e-12)
    same = MeanKL()
    same.update(fronts, fronts)
    assert np.diag(same.result()) == pytest.approx(0, abs=1e-12)


def test_no_image_no_result() -> None:
    with pytest.raises(ExportError, match="no image"):
        MeanKL().result()


def test_memory_does_not_grow_with_the_images() -> None:
    mean = MeanKL()
    for seed in range(5):
        mean.update([log_probabilities(8, 4, seed=seed)] * 3, [log_probabilities(8, 4, seed=seed + 9)] * 2)
    assert {name: np.shape(value) for name, value in vars(mean).items()} == {"_images": (), "_cross": (3, 2), "_own": (3,)}


@pytest.mark.parametrize(
    ("layout", "by_hand"),
    [
        (Layout("map", 3, 4, 5), lambda x: x.mean((2, 3))),
        (Layout("map_last", 3, 4, 5), lambda x: x.mean((1, 2))),
        (Layout("vector", 6, 1, 1), lambda x: x),
        (Layout("tokens", 3, 2, 2), lambda x: x.mean(1)),
        (Layout("tokens", 3, 2, 2, 2), lambda x: torch.cat([x[:, 0], x[:, 1], x[:, 2:].mean(1)], 1)),
    ],
)
def test_pooling_knows_the_layout(layout: Layout, by_hand: object) -> None:
    x = noise(7, *layout.shape)
    assert torch.equal(pooled(x, layout), by_hand(x))  # type: ignore[operator]


def test_a_probe_finds_the_head_behind_pooled_features() -> None:
    layout, head = Layout("map", 6, 3, 3), noise(6, 4, seed=1)
    probe = Probe(layout)
    for seed in range(20):
        x = noise(64, *layout.shape, seed=seed)
        probe.add(x, 30 * x.mean((2, 3)) @ head)
    probe.finish()
    x = noise(200, *layout.shape, seed=99)
    told, expected = probe.log_probabilities(x), torch.log_softmax(30 * x.mean((2, 3)) @ head, 1)
    assert float((told.argmax(1) == expected.argmax(1)).double().mean()) > 0.95


def net(name: str, width: int, seed: int, blocks: int = 2) -> CutAnchor:
    """Linear maps of (1, 4, 4) that keep all of it; the head tells 3 classes."""
    torch.manual_seed(seed)
    stem = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, width))
    body = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(blocks)]
    layouts = tuple(Layout("vector", width, 1, 1) for _ in range(blocks + 1))
    cuts = tuple(Cut("", "", layout.shape) for layout in layouts)
    return CutAnchor(name, "", (1, SIDE, SIDE), cuts, layouts, (stem, *body, nn.Linear(width, 3)), (blocks,))


@pytest.fixture(scope="module")
def samples() -> Samples:
    pixels = np.random.default_rng(0).integers(0, 256, (150, SIDE, SIDE, 1), dtype=np.uint8)
    images = Images("noise", np.zeros(150, np.int64), None, lambda index: pixels[index])
    return Samples(images, Preprocessing(mode="L", mean=(0.5,), std=(0.25,)), (1, SIDE, SIDE))


def test_a_twin_expects_what_is_told_and_a_stranger_does_not(samples: Samples) -> None:
    small, twin, stranger = net("small", 8, 0), net("twin", 8, 0), net("stranger", 8, 1)
    found = measure_divergence([small, twin, stranger], [("small", "twin"), ("small", "stranger"), ("stranger", "small")], samples)
    assert {pair: values.shape for pair, values in found.items()} == dict.fromkeys(found, (3, 3))
    assert np.diag(found["small", "twin"]) == pytest.approx(0, abs=1e-9)
    assert (np.diag(found["small", "stranger"]) > 0.01).all()
    assert not np.allclose(found["small", "stranger"], found["stranger", "small"].T)


def test_what_each_selection_promises(samples: Samples) -> None:
    anchors = [net("small", 8, 0), net("large", 12, 1, blocks=4)]
    similarity = measure_similarity(anchors, samples)
    cka = measure_promise("cka", anchors, similarity, samples)
    assert {pair: values.shape for pair, values in cka.items()} == {("large", "small"): (5, 3)}
    for select in ("kl", "windows"):
        promise = measure_promise(select, anchors, similarity, samples)  # type: ignore[arg-type]
        assert {pair: values.shape for pair, values in promise.items()} == {("large", "small"): (5, 3), ("small", "large"): (3, 5)}
        assert all((values <= 0).all() for values in promise.values())
    depth = measure_promise("windows", anchors, similarity, samples)["small", "large"]
    assert [int(row.argmax()) for row in depth] == [0, 2, 4]


def test_depth_is_told_in_stages_or_in_shares() -> None:
    by_stage = depth_distance(AnchorShape("s", (1, 2)), AnchorShape("l", (2, 2)))
    assert by_stage == pytest.approx(np.abs(np.array([0, 1, 1.5, 2])[:, None] - np.array([0, 0.5, 1, 1.5, 2])[None, :]))
    in_shares = depth_distance(AnchorShape("s", (2,)), AnchorShape("l", (1, 3)))
    assert in_shares == pytest.approx(np.abs(np.array([0, 0.5, 1])[:, None] - np.array([0, 0.25, 0.5, 0.75, 1])[None, :]))
