"""How memory is divided among models: held against every division that there is."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restnet_runtime.sharing import WORTH, Offer, Option, Room, Share, divide, hold, prefer, thin


def offer(*options: tuple[int, float], weight: float = 1.0, most: int | None = None, held: int | None = None) -> Offer:
    """Options by (bytes, accuracy), the cheapest first; they are called r0, r1, ..."""
    made = tuple(Option(f"r{place}", size, accuracy) for place, (size, accuracy) in enumerate(options))
    return Offer(made, weight, max(size for size, _ in options) if most is None else most, None if held is None else f"r{held}")


def names(shares: list[Share]) -> list[str | None]:
    return [None if share.option is None else share.option.route for share in shares]


@st.composite
def offers(draw: st.DrawFn) -> list[Offer]:
    made = []
    for _ in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 5))
        options = [(draw(st.integers(1, 60)), draw(st.integers(1, 100)) / 100) for _ in range(count)]
        held = draw(st.none() | st.integers(0, count - 1))
        most = max(size for size, _ in options) + draw(st.integers(0, 40))
        made.append(offer(*options, weight=draw(st.integers(1, 20)) / 20, most=most, held=held))
    return made


@st.composite
def rooms(draw: st.DrawFn) -> Room:
    every = draw(st.integers(-10, 200))
    slack = draw(st.integers(0, 5))
    return Room(every, every - slack - draw(st.integers(0, 20)), slack)


def taken(shares: list[Share]) -> int:
    return sum(0 if share.option is None else share.option.need_bytes for share in shares)


@settings(max_examples=200, deadline=None)
@given(offers(), rooms())
def test_shares_never_exceed_what_there_is(given_offers: list[Offer], room: Room) -> None:
    """Unless the first model's cheapest route alone does: then nothing else is given anything."""
    shares = divide(given_offers, room)
    first = given_offers[0].options[0].need_bytes
    assert shares[0].option is not None
    if first <= room.held_bytes:
        assert sum(share.reserved_bytes for share in shares) <= room.all_bytes
        assert taken(shares) <= room.held_bytes
    else:
        assert all(share.option is None for share in shares[1:])
        assert shares[0].reserved_bytes <= max(first, room.all_bytes)
    for share, one in zip(shares, given_offers, strict=True):
        if share.option is None:
            assert share.reserved_bytes == 0
        else:
            assert share.option in one.options
            assert share.reserved_bytes >= share.option.need_bytes


@settings(max_examples=200, deadline=None)
@given(offers(), rooms())
def test_each_has_its_cheapest_before_any_has_a_better_one(given_offers: list[Offer], room: Room) -> None:
    shares, total = divide(given_offers, room), 0
    for place, (share, one) in enumerate(zip(shares, given_offers, strict=True)):
        first = one.options[0]
        fits = place == 0 or total + first.need_bytes <= (room.entry_bytes if one.held is None else room.held_bytes)
        assert (share.option is not None) == fits
        if share.option is not None:
            total += first.need_bytes
            assert share.option.accuracy >= first.accuracy


@settings(max_examples=200, deadline=None)
@given(offers(), rooms())
def test_what_is_left_over_would_not_buy_any_model_a_better_route(given_offers: list[Offer], room: Room) -> None:
    shares = divide(given_offers, room)
    left = room.entry_bytes - taken(shares)
    for share, one in zip(shares, given_offers, strict=True):
        for option in one.options if share.option is not None else ():
            assert share.option is not None
            better = option.accuracy > share.option.accuracy
            assert not (better and option.need_bytes - share.option.need_bytes <= max(0, left))


@settings(max_examples=150, deadline=None)
@given(offers(), st.integers(0, 250))
def test_what_is_won_is_at_most_one_step_below_the_best_division(given_offers: list[Offer], every: int) -> None:
    """Of those that serve all models; found by trying all."""
    room = Room(every, every)
    if sum(one.options[0].need_bytes for one in given_offers) > every:
        return
    shares = divide(given_offers, room)

    def worth(chosen: tuple[Option, ...]) -> float:
        return sum(one.weight * option.accuracy for one, option in zip(given_offers, chosen, strict=True))

    fitting = [chosen for chosen in product(*(one.options for one in given_offers)) if sum(option.need_bytes for option in chosen) <= every]
    best = max(map(worth, fitting))
    step = max(one.weight * (max(o.accuracy for o in one.options) - one.options[0].accuracy) for one in given_offers)
    found = worth(tuple(share.option for share in shares if share.option is not None))
    assert best - max(0.0, step) - 1e-9 <= found <= best + 1e-9


@settings(max_examples=200, deadline=None)
@given(offers(), rooms())
def test_what_is_held_is_kept_while_it_fits_and_only_gets_better(given_offers: list[Offer], room: Room) -> None:
    kept = hold(given_offers, room)
    before = [one.holds() for one in given_offers]
    fits = sum(option.need_bytes for option in before if option is not None) <= room.held_bytes
    assert (kept is not None) == (fits and before[0] is not None)
    if kept is not None:
        assert taken(kept) <= room.held_bytes
        for share, had in zip(kept, before, strict=True):
            assert (share.option is None) == (had is None)
            if share.option is not None and had is not None:
                assert share.option.accuracy >= had.accuracy
        assert hold([had_of(one, share) for one, share in zip(given_offers, kept, strict=True)], room) == kept, "asked again it is the same"


def had_of(one: Offer, share: Share) -> Offer:
    return Offer(one.options, one.weight, one.most_bytes, None if share.option is None else share.option.route)


SMALL, LARGE = (10, 0.8), (50, 0.9)


def test_room_for_one_large_and_one_small_goes_to_whom_more_is_asked_of() -> None:
    busy, idle = offer(SMALL, LARGE, weight=0.9), offer(SMALL, LARGE, weight=0.1)
    assert names(divide([busy, idle], Room(70, 70))) == ["r1", "r0"]
    assert names(divide([idle, busy], Room(70, 70))) == ["r0", "r1"]
    assert names(divide([busy, busy], Room(70, 70))) == ["r1", "r0"], "of equals the first"
    assert names(divide([busy, idle], Room(100, 100))) == ["r1", "r1"]
    assert names(divide([idle, busy], Room(19, 19))) == ["r0", None]


def test_what_no_better_route_can_use_is_divided_evenly() -> None:
    shares = divide([offer((10, 0.8), most=100), offer((10, 0.8), most=12), offer((10, 0.8), most=100)], Room(80, 80))
    assert [share.reserved_bytes for share in shares] == [34, 12, 34]
    shares = divide([offer((10, 0.8)), offer((10, 0.8))], Room(100, 80, 6))
    assert [share.reserved_bytes for share in shares] == [13, 13], "each its part of the slack, and no more than it has a use for"


def test_what_comes_needs_more_room_than_what_is_there() -> None:
    new, there = offer(SMALL, LARGE), offer(SMALL, LARGE, held=1)
    room = Room(65, 58)
    assert names(divide([offer(SMALL, held=0), new], room)) == ["r0", "r0"]
    assert names(divide([offer(SMALL, held=0), there], room)) == ["r0", "r1"]


def test_another_division_has_to_win_enough() -> None:
    room = Room(70, 70)
    held = [offer(SMALL, LARGE, weight=0.45, held=1), offer(SMALL, LARGE, weight=0.55, held=0)]
    kept, fresh = hold(held, room), divide(held, room)
    assert kept is not None
    assert (names(kept), names(fresh)) == (["r1", "r0"], ["r0", "r1"])
    assert prefer(held, fresh, kept) == (False, True)
    even = [offer(SMALL, LARGE, weight=0.5 - WORTH / 3, held=1), offer(SMALL, LARGE, weight=0.5 + WORTH / 3, held=0)]
    kept = hold(even, room)
    assert kept is not None
    assert prefer(even, divide(even, room), kept) == (False, False)


def test_a_model_does_not_rest_for_the_better_route_of_another() -> None:
    held = [offer(SMALL, LARGE, held=1), offer(SMALL, LARGE)]
    room = Room(55, 55)
    kept = hold(held, room)
    assert kept is not None
    assert names(kept) == ["r1", None]
    fresh = divide(held, room)
    assert names(fresh) == ["r0", "r0"]
    assert prefer(held, fresh, kept)[0]


def test_a_route_that_is_no_more_accurate_than_a_smaller_one_is_no_option() -> None:
    options = [Option("first", 10, 0.5), Option("a", 30, 0.8), Option("b", 40, 0.8), Option("c", 50, 0.7), Option("d", 60, 0.9)]
    assert [option.route for option in thin(options)] == ["first", "a", "d"]


@pytest.mark.parametrize("every", [-5, 0, 5])
def test_the_first_always_serves(every: int) -> None:
    assert names(divide([offer(SMALL), offer(SMALL)], Room(every, every))) == ["r0", None]
