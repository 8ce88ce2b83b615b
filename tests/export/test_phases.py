"""The stopwatch of an export."""

from restnet_export.phases import Phases


def test_each_phase_ends_where_the_next_begins() -> None:
    now = [10.0]
    phases = Phases(lambda: now[0])
    for name, seconds in (("load", 1.5), ("fit", 2.0), ("load", 0.25)):
        phases.begin(name)
        now[0] += seconds
    phases.end()
    now[0] += 100
    phases.end()
    assert phases.seconds == {"load": 1.75, "fit": 2.0}
    assert str(phases) == "took 3.8 s: load 1.8, fit 2.0"


def test_nothing_ran() -> None:
    assert str(Phases()) == "took 0.0 s: "
