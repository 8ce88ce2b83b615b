import math
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.budget import Budget
from restnet_runtime.errors import UnitError

budgets = st.builds(
    Budget,
    macs=st.none() | st.integers(1, 10**15),
    latency_ms=st.none() | st.floats(1e-3, 1e7),
    memory_bytes=st.none() | st.integers(1, 10**13),
)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("200MFLOPs,30ms,150MB", Budget(200_000_000, 30.0, 150_000_000)),
        ("150MiB, 200 MMACs", Budget(macs=200_000_000, memory_bytes=157_286_400)),
        ("30ms", Budget(latency_ms=30.0)),
        ("", Budget()),
        (" None ", Budget()),
        ("1.5B", Budget(memory_bytes=1)),
        ("0.5B", Budget(memory_bytes=1)),
        ("2.9FLOPs", Budget(macs=2)),
    ],
)
def test_reads_any_subset_in_any_order(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("30ms,20ms", "limits latency_ms twice"),
        ("1MMACs,2MFLOPs", "limits macs twice"),
        ("30ms,", "has an empty part"),
        (",", "has an empty part"),
        ("30ms;150MB", "is not a quantity"),
        ("30ms,none", "is not a quantity"),
        ("30 parsecs", "unknown unit 'parsecs'"),
        ("0ms", "must be above zero and finite"),
    ],
)
def test_says_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(UnitError, match=message):
        Budget.parse(text)


@pytest.mark.parametrize("field", ["macs", "latency_ms", "memory_bytes"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_limits_are_above_zero_and_finite(field: str, value: float) -> None:
    with pytest.raises(UnitError, match=f"budget {field}={value!r} must be above zero and finite"):
        Budget(**{field: value})


def test_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Budget().macs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (Budget(), "none"),
        (Budget(latency_ms=30.0), "30 ms"),
        (Budget(200_000_000, 30.0, 150_000_000), "200 MMACs, 30 ms, 150 MB"),
    ],
)
def test_writes_its_limits(budget: Budget, text: str) -> None:
    assert str(budget) == text


@given(budget=budgets)
def test_what_it_writes_reads_back_within_three_digits(budget: Budget) -> None:
    again = Budget.parse(str(budget))
    for name in ("macs", "latency_ms", "memory_bytes"):
        before, after = getattr(budget, name), getattr(again, name)
        assert (before is None) == (after is None)
        if before is not None:
            assert math.isclose(before, after, rel_tol=0.0051, abs_tol=0.5 if name != "latency_ms" else 0)


@given(
    macs=st.integers(1, 10**9),
    latency_us=st.integers(1, 10**9),
    memory_kib=st.integers(1, 10**9),
)
def test_whole_numbers_are_read_exactly(macs: int, latency_us: int, memory_kib: int) -> None:
    budget = Budget.parse(f"{memory_kib}KiB,{macs}MACs,{latency_us}us")
    assert (budget.macs, budget.memory_bytes) == (macs, memory_kib * 1024)
    assert budget.latency_ms == pytest.approx(latency_us / 1000, rel=1e-12)


def _allows(budget: Budget, macs: int, latency_ms: float, memory_bytes: int) -> bool:
    return (
        (budget.macs is None or macs <= budget.macs)
        and (budget.latency_ms is None or latency_ms <= budget.latency_ms)
        and (budget.memory_bytes is None or memory_bytes <= budget.memory_bytes)
    )


@given(one=budgets, other=budgets, macs=st.integers(1, 10**15), latency_ms=st.floats(1e-3, 1e7), memory_bytes=st.integers(1, 10**13))
def test_narrowed_allows_exactly_what_both_allow(one: Budget, other: Budget, macs: int, latency_ms: float, memory_bytes: int) -> None:
    both = _allows(one, macs, latency_ms, memory_bytes) and _allows(other, macs, latency_ms, memory_bytes)
    assert _allows(one.narrowed(other), macs, latency_ms, memory_bytes) == both


@given(one=budgets, other=budgets)
def test_narrowing_keeps_no_limit_and_order_out_of_it(one: Budget, other: Budget) -> None:
    assert one.narrowed(Budget()) == one
    assert one.narrowed(other) == other.narrowed(one)
    assert one.narrowed(one) == one
