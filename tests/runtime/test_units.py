import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restnet_runtime.errors import UnitError
from restnet_runtime.units import format_bytes, format_macs, format_ms, parse_quantity


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("200MFLOPs", "macs", 200e6),
        ("200 MMACs", "macs", 200e6),
        ("1.5gflops", "macs", 1.5e9),
        ("3 TMAC", "macs", 3e12),
        ("12KFLOP", "macs", 12e3),
        ("7macs", "macs", 7),
        ("30ms", "latency_ms", 30),
        (" 30 ms ", "latency_ms", 30),
        ("0.5s", "latency_ms", 500),
        ("250us", "latency_ms", 0.25),
        ("250\u00b5s", "latency_ms", 0.25),
        ("250\u03bcs", "latency_ms", 0.25),
        ("150MB", "memory_bytes", 150e6),
        ("150MiB", "memory_bytes", 150 * 2**20),
        ("2GiB", "memory_bytes", 2 * 2**30),
        ("64kb", "memory_bytes", 64e3),
        ("1KiB", "memory_bytes", 1024),
        ("512B", "memory_bytes", 512),
        (".5GB", "memory_bytes", 0.5e9),
        ("5.MB", "memory_bytes", 5e6),
        ("1e3ms", "latency_ms", 1000),
        ("2E-1s", "latency_ms", 200),
    ],
)
def test_reads_what_people_write(text: str, kind: str, value: float) -> None:
    found, number = parse_quantity(text)
    assert found == kind
    assert number == pytest.approx(value, rel=1e-12)


def test_one_flop_is_one_multiply_accumulate() -> None:
    assert parse_quantity("200MFLOPs") == parse_quantity("200MMACs")


@pytest.mark.parametrize(
    "text", ["", " ", "ms", "30", "-30ms", "+30ms", "30 m s", "1,5ms", "nanms", "infms", "0x10B", "30ms!", "\u0663ms", "1e5"]
)
def test_refuses_what_is_no_quantity(text: str) -> None:
    with pytest.raises(UnitError, match="is not a quantity: give a number with FLOPs/MACs"):
        parse_quantity(text)


@pytest.mark.parametrize("text", ["30m", "30 hours", "5M", "5TB", "3bananas", "3e", "3MFLOPS/s"])
def test_refuses_unknown_units_and_says_which(text: str) -> None:
    with pytest.raises(UnitError, match="give a number with FLOPs/MACs"):
        parse_quantity(text)


@pytest.mark.parametrize("text", ["0ms", "0.0MB", "1e-400s", "1e400s", "1e308TMACs"])
def test_refuses_zero_and_infinity(text: str) -> None:
    with pytest.raises(UnitError, match="must be above zero and finite"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_macs(1843200), "1.84 MMACs"),
        (format_macs(1), "1 MACs"),
        (format_macs(999), "999 MACs"),
        (format_macs(1000), "1 KMACs"),
        (format_macs(999.7e6), "1 GMACs"),
        (format_macs(17.58e9), "17.6 GMACs"),
        (format_macs(999.7e12), "1000 TMACs"),
        (format_macs(2.5e15), "2500 TMACs"),
        (format_bytes(150_000_000), "150 MB"),
        (format_bytes(0), "0 B"),
        (format_bytes(999.7e9), "1000 GB"),
        (format_bytes(-20_000_000), "-20 MB"),
        (format_ms(0.41), "0.41 ms"),
        (format_ms(0.0213), "21.3 us"),
        (format_ms(0.1), "0.1 ms"),
        (format_ms(0.0999), "99.9 us"),
        (format_ms(0.9997), "1 ms"),
        (format_ms(410), "410 ms"),
        (format_ms(1500), "1.5 s"),
        (format_ms(999.7e3), "1000 s"),
        (format_ms(123_456e3), "123456 s"),
    ],
)
def test_writes_three_digits_in_the_unit_that_fits(text: str, expected: str) -> None:
    assert text == expected


amounts = st.floats(min_value=1e-3, max_value=1e18, allow_nan=False)


@pytest.mark.parametrize(
    ("write", "kind"), [(format_macs, "macs"), (format_bytes, "memory_bytes"), (format_ms, "latency_ms")], ids=["macs", "bytes", "ms"]
)
@given(amount=amounts)
def test_what_is_written_reads_back_within_its_digits(write, kind: str, amount: float) -> None:
    found, value = parse_quantity(write(amount))
    assert found == kind
    assert math.isclose(value, amount, rel_tol=0.0051)


@pytest.mark.parametrize("write", [format_macs, format_bytes, format_ms], ids=["macs", "bytes", "ms"])
@given(amount=st.floats(min_value=1, max_value=1e18))
def test_never_writes_an_exponent(write, amount: float) -> None:
    assert "e" not in write(amount)


@given(text=st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        kind, value = parse_quantity(text)
    except UnitError:
        return
    assert kind in ("macs", "latency_ms", "memory_bytes")
    assert 0 < value < math.inf
