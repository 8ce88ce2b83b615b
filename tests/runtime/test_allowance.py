"""The allowance: credit is what may still be late, ceilings are of what was seen since the weather changed."""

import random

from restnet_runtime.allowance import SHARE, WINDOWS_S, Allowance


def fed(allowance: Allowance, begin_s: float, seconds: float, *, ratio: float = 1.0, late_every: int = 0) -> float:
    """Twenty requests a second; the time after them."""
    for index in range(int(seconds * 20)):
        begin_s += 0.05
        allowance.observe(begin_s, ratio, late_every > 0 and index % late_every == 0)
    return begin_s


def test_nothing_is_known_before_the_first_request() -> None:
    assert Allowance().take(0.0, None) == (None, None)


def test_credit_is_used_up_by_more_late_ones_than_may_be_and_comes_back() -> None:
    allowance = Allowance()
    now_s = fed(allowance, 0.0, 10.0)
    assert allowance.take(now_s, 20.0)[0] == 1.0
    now_s = fed(allowance, now_s, 60.0, late_every=int(1 / SHARE / 4))
    low = allowance.take(now_s, 20.0)[0]
    assert low is not None
    assert low < 0.0
    now_s = fed(allowance, now_s, 200.0)
    assert allowance.take(now_s, 20.0)[0] == 1.0


def test_ceilings_begin_anew_after_a_change() -> None:
    allowance = Allowance()
    now_s = fed(allowance, 0.0, 70.0, ratio=1.0)
    assert allowance.take(now_s, 20.0)[1] == dict.fromkeys(WINDOWS_S, 1.0)
    allowance.change(now_s)
    now_s = fed(allowance, now_s, 5.0, ratio=2.0)
    assert allowance.take(now_s, 20.0)[1] == {WINDOWS_S[0]: 2.0}


def test_ceilings_are_those_of_sorting_each_window() -> None:
    rng, allowance, seen = random.Random(4), Allowance(), []
    now_s = 0.0
    for _ in range(200):
        for _ in range(rng.randrange(30)):
            now_s += rng.expovariate(20.0)
            seen.append((now_s, rng.gauss(1.0, 0.1)))
            allowance.observe(*seen[-1], False)
        now_s += 1.0  # each call looks anew
        ceilings = allowance.take(now_s, 20.0)[1] or {}
        for window_s, ceiling in ceilings.items():
            ratios = sorted(ratio for at_s, ratio in seen if at_s >= now_s - window_s)
            assert ceiling == ratios[int(0.985 * len(ratios))]
    assert set(ceilings) == set(WINDOWS_S)
