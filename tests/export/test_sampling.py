"""Which images and routes a step sees."""

from collections import Counter

import pytest
import torch

from restnet_export.sampling import MAX_WEIGHT, ImageOrder, RouteSampler, split_of
from restnet_runtime.errors import ExportError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_round_has_every_image_once() -> None:
    order = ImageOrder(range(10, 20), 4, generator())
    rounds = [[index for _ in range(3) for index in order.next()] for _ in range(2)]
    assert all(sorted(seen) == list(range(10, 20)) for seen in rounds)
    assert rounds[0] != rounds[1]


def test_a_round_goes_on_where_it_stopped() -> None:
    source = generator()
    order = ImageOrder(range(10), 4, source)
    order.next()
    state, random = order.state_dict(), source.get_state()
    expected = [order.next() for _ in range(5)]
    other = generator(9)
    resumed = ImageOrder(range(10), 4, other)
    resumed.load_state_dict(state)
    other.set_state(random)
    assert [resumed.next() for _ in range(5)] == expected


def test_held_out_images_are_not_tuned_on() -> None:
    held_out, tuned_on = split_of(50, 0.2, generator())
    assert len(held_out) == 10
    assert sorted(held_out + tuned_on) == list(range(50))
    assert sorted(split_of(50, 0.2, generator(), fitted=40)[0]) == list(range(40, 50)), "none that layers were fitted on"
    held_out, tuned_on = split_of(50, 0.2, generator(), fitted=45)
    assert sorted(held_out + tuned_on) == list(range(50))
    assert set(range(45, 50)) < set(held_out)
    assert len(held_out) == 10
    assert len(split_of(100_000, 0.2, generator())[0]) == 512
    assert [len(part) for part in split_of(2, 0.01, generator())] == [1, 1]
    with pytest.raises(ExportError, match="1 images leave none"):
        split_of(1, 0.5, generator())


COSTS = {3: 10, 5: 11, 7: 12, 8: 13, 9: 100}


def counts(kind: str, count: int, draws: int = 600, favoured: int | None = None) -> Counter[int]:
    sampler = RouteSampler(COSTS, kind, count, generator())  # type: ignore[arg-type]
    if favoured is not None:
        sampler.favour(favoured)
    return Counter(route for _ in range(draws) for route in sampler.draw())


def test_random_draws_all_alike() -> None:
    found = counts("random", 1, 1000)
    assert sum(found.values()) == 1000
    assert all(150 < found[route] < 250 for route in COSTS)


def test_sandwich_has_the_cheapest_and_the_dearest_and_others() -> None:
    found = counts("sandwich", 1)
    assert found[3] == found[9] == 600
    assert found[5] + found[7] + found[8] == 600


def test_binned_tunes_each_stretch_of_cost_alike() -> None:
    found = counts("binned", 2)
    assert found[9] == 600  # alone in its stretch
    assert all(100 < found[route] < 200 for route in (3, 5, 7, 8))


def test_favoured_routes_come_more_often() -> None:
    assert counts("random", 1, 1000, favoured=7)[7] > 280
    sampler = RouteSampler(COSTS, "random", 1, generator())
    for _ in range(10):
        sampler.favour(7)
    sampler.favour(1)  # not among them
    assert sampler.weights[7] == MAX_WEIGHT
    other = RouteSampler(COSTS, "random", 1, generator())
    other.load_state_dict(sampler.state_dict())
    assert other.weights == sampler.weights


def test_no_more_than_there_are() -> None:
    assert RouteSampler(COSTS, "random", 99, generator()).draw() == list(COSTS)
    assert RouteSampler({}, "random", 2, generator()).draw() == []
    assert RouteSampler({4: 7}, "sandwich", 2, generator()).draw() == [4]
