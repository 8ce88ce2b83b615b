"""Stalls: runs that stand still, told from noise and from a slowdown."""

from restnet_runtime.stalls import Stalls

LIMIT_MS = 80.0


def fed(*runs_ms: float, profile_ms: float = 10.0, every_s: float = 0.05) -> tuple[Stalls, float]:
    """Stalls that have seen such runs at even times, and the time of the last one."""
    stalls, now_s = Stalls(), 100.0
    for run_ms in runs_ms:
        now_s += every_s
        stalls.observe(now_s, run_ms, profile_ms, run_ms > LIMIT_MS)
    return stalls, now_s


def test_a_few_late_runs_among_quick_ones_stood_still() -> None:
    stalls, now_s = fed(*([15.0] * 8 + [95.0]) * 4)
    assert stalls.take(now_s, 1.5) == 80.0, "what the run took beyond what it takes at this slowdown"


def test_it_is_reckoned_with_for_a_while_and_forgotten() -> None:
    stalls, now_s = fed(*([15.0] * 8 + [95.0]) * 4)
    assert stalls.take(now_s, 1.5) == 80.0
    assert stalls.take(now_s + 3.5, 1.5) == 80.0, "nothing new was seen"
    assert stalls.take(now_s + 4.5, 1.5) is None


def test_single_ones_are_accidents() -> None:
    stalls, now_s = fed(*[15.0] * 30, 95.0, 95.0, 95.0)
    assert stalls.take(now_s, 1.5) is None


def test_what_a_slowdown_explains_is_none() -> None:
    stalls, now_s = fed(*([70.0] * 8 + [95.0]) * 4)
    assert stalls.take(now_s, 7.0) is None, "noise around seven times the profile"
    assert stalls.take(now_s, 1.5) is not None, "the same at a slowdown that does not explain them"


def test_few_requests_tell_nothing() -> None:
    stalls, now_s = fed(*[95.0] * 6, every_s=0.5)
    assert stalls.take(now_s, 1.5) is None
