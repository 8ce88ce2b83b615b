import threading

from restnet_runtime.latencies import Latencies
from restnet_runtime.reading import RouteLatency


def test_nobody_answered() -> None:
    assert Latencies().tick() is None


def test_median_and_95th_percentile_by_route_the_latest_last() -> None:
    latencies = Latencies()
    for latency_ms in range(1, 101):
        latencies.observe("a", float(latency_ms))
    latencies.observe("b", 7.0)
    assert list((latencies.tick() or {}).items()) == [("a", RouteLatency(50.0, 95.0, 100)), ("b", RouteLatency(7.0, 7.0, 1))]
    latencies.observe("a", 1.0)
    assert list(latencies.tick() or {}) == ["b", "a"]


def test_what_is_old_is_forgotten() -> None:
    latencies = Latencies(ticks=2)
    latencies.observe("a", 1.0)
    assert latencies.tick() == {"a": RouteLatency(1.0, 1.0, 1)}
    latencies.observe("a", 3.0)
    assert latencies.tick() == {"a": RouteLatency(1.0, 3.0, 2)}
    assert latencies.tick() == {"a": RouteLatency(3.0, 3.0, 1)}
    assert latencies.tick() is None


def test_many_requests_keep_the_latest() -> None:
    latencies = Latencies(most=3)
    for latency_ms in (9.0, 9.0, 1.0, 2.0, 3.0):
        latencies.observe("a", latency_ms)
    assert latencies.tick() == {"a": RouteLatency(2.0, 3.0, 3)}


def test_takes_requests_from_many_threads_while_ticking() -> None:
    latencies = Latencies(ticks=10**6, most=10**6)
    threads = [threading.Thread(target=lambda: [latencies.observe("a", 1.0) for _ in range(1000)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        latencies.tick()
    for thread in threads:
        thread.join()
    assert latencies.tick() == {"a": RouteLatency(1.0, 1.0, 3000)}
