from restnet_runtime.budget import Budget
from restnet_runtime.explain import explain, render
from restnet_runtime.ladder import Candidate
from restnet_runtime.policy import History, decide
from restnet_runtime.profile import RouteProfile
from restnet_runtime.reading import Reading
from restnet_runtime.routes import Route

FAMILY = [
    Candidate(Route(name, (name,), ("fp32",), macs, 1, 1, accuracy, True), None if ms is None else RouteProfile(ms, ms, 50_000_000))
    for name, macs, accuracy, ms in [
        ("small", 10, 0.8, 10.0),
        ("middle", 20, 0.9, 20.0),
        ("large", 40, 0.95, 40.0),
        ("new", 50, 0.97, None),
    ]
]


def test_every_route_has_the_limit_that_rules_it_out() -> None:
    budget = Budget(macs=30, latency_ms=25.0)
    verdicts = explain(FAMILY, decide(Reading(), budget, FAMILY, History(), 0.0))
    assert [(one.route, one.verdict, one.limits) for one in verdicts] == [
        ("small", "fits", ()),
        ("middle", "chosen", ()),
        ("large", "ruled out", ("latency", "macs")),
        ("new", "ruled out", ("latency", "macs")),
    ]
    assert verdicts[2].why == "latency 40 ms over the limit of 25 ms; macs 40 MACs over the limit of 30 MACs"
    assert "not profiled" in verdicts[3].why
    assert all(one.route in render(verdicts) for one in verdicts)


def test_a_route_that_serves_without_fitting_says_so() -> None:
    verdicts = explain(FAMILY, decide(Reading(), Budget(macs=5), FAMILY, History(), 0.0))
    assert verdicts[0].why == "serves although macs 10 MACs over the limit of 5 MACs"
    floor = explain(FAMILY, decide(Reading(), Budget(min_accuracy=0.93), FAMILY, History(), 0.0))
    assert floor[0].limits == ("accuracy",)
