import math
from pathlib import Path

import pytest

from restnet_runtime.errors import TraceError
from restnet_runtime.ladder import Candidate
from restnet_runtime.profile import RouteProfile
from restnet_runtime.routes import Route
from restnet_runtime.traces import Moment, read_trace, write_trace
from restnet_runtime.weather import LENGTH_S, WEATHER, Climate, make_trace

HEADER = "t_s,cpu_share,memory_available_bytes,slowdown,requests_per_s\n"
CLIMATE = Climate.of(
    [
        Candidate(Route(name, (name,), ("fp32",), macs, 1, 1, accuracy, True), RouteProfile(ms, ms, int(mb * 1e6)))
        for name, macs, accuracy, ms, mb in [("small", 10, 0.8, 10.0, 50), ("large", 40, 0.95, 40.0, 120)]
    ],
    54.0,
)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    moments = [Moment(0.0, 1.0, 2e9, 1.25, 20.0), Moment(0.5, 0.25, math.inf, 1.0, 0.0), Moment(2.5, 1.0, 1e8, 3.0, 7.5)]
    write_trace(tmp_path / "day.csv", moments)
    trace = read_trace(tmp_path / "day.csv")
    assert (trace.name, trace.end_s) == ("day", 4.5)
    assert trace.moments == tuple(moments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line must be t_s,"),
        ("time,cpu\n0,1\n", "the first line must be t_s,"),
        (HEADER + "0,1,1e9,1,5\n", "at least two rows"),
        (HEADER + "1,1,1e9,1,5\n2,1,1e9,1,5\n", "line 2: t_s=1: the first row must be at 0"),
        (HEADER + "0,1,1e9,1,5\n0,1,1e9,1,5\n", "line 3: t_s=0 must be above the 0 of the row before"),
        (HEADER + "0,1,1e9,1,5\n1,1,1e9,1\n", "line 3: 4 fields instead of 5"),
        (HEADER + "0,1,1e9,1,5\n1,much,1e9,1,5\n", "line 3: cpu_share='much' is not a number from 0 to"),
        (HEADER + "0,1,1e9,1,5\n1,1,1e9,-1,5\n", "slowdown='-1' is not a number from 0"),
        (HEADER + "0,1,1e9,1,5\n1,1,1e9,nan,5\n", "slowdown='nan' is not a number"),
        (HEADER + "0,1,1e9,1,5\n1,1,1e9,1,inf\n", "requests_per_s='inf' is not a number"),
        (HEADER + "0,0,1e9,1,5\n1,1,1e9,1,5\n", "cpu_share and slowdown must be above 0"),
        (HEADER + "0,1,1e9,1,1e6\n100,1,1e9,1,5\n", "more than 5,000,000 requests"),
    ],
)
def test_a_bad_trace_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", WEATHER)
def test_weather_is_the_same_each_time_and_of_one_length(name: str) -> None:
    trace = make_trace(name, CLIMATE)
    assert trace == make_trace(name, CLIMATE)
    assert trace.moments[0].t_s == 0
    assert trace.end_s == LENGTH_S
    assert all(moment.stretch > 0 and moment.memory_available_bytes > 0 for moment in trace.moments)


def test_weather_of_no_name_names_what_there_is() -> None:
    with pytest.raises(TraceError, match=r"there is no trace 'hail': give a CSV file, or one of steady, steps, .*all"):
        make_trace("hail", CLIMATE)


def test_the_leak_leaves_less_than_the_large_route_takes_and_the_steps_slow_it_beyond_the_budget() -> None:
    assert min(moment.memory_available_bytes for moment in make_trace("leak", CLIMATE).moments) < 120e6
    assert max(40.0 * moment.stretch for moment in make_trace("steps", CLIMATE).moments) > 54.0
