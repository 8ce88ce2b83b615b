"""The allowance: credit is what may still be late, ceilings are of what was seen since the weather changed."""

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
