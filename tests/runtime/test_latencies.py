import threading

from restnet_runtime.latencies import Latencies
from restnet_runtime.reading import RouteLatency


def test_nobody_answered() -> None:
    assert Latencies().take(0.0) is None


def test_median_and_95th_percentile_by_route_the_latest_last() -> None:
    latencies = Latencies()
    for latency_ms in range(1, 101):
        latencies.observe("a", 1, float(latency_ms))
    latencies.observe("b", 1, 7.0)
    assert list((latencies.take(0.0) or {}).items()) == [("a", RouteLatency(50.0, 95.0, 100, 1)), ("b", RouteLatency(7.0, 7.0, 1, 1))]
    latencies.observe("a", 1, 1.0)
    assert list(latencies.take(1.0) or {}) == ["b", "a"]


def test_what_is_old_is_forgotten() -> None:
    latencies = Latencies(keep_s=2)
    latencies.observe("a", 1, 1.0)
    assert latencies.take(5.0) == {"a": RouteLatency(1.0, 1.0, 1, 1)}
    latencies.observe("a", 1, 3.0)
    assert latencies.take(6.0) == {"a": RouteLatency(1.0, 3.0, 2, 1)}
    assert latencies.take(7.0) == {"a": RouteLatency(3.0, 3.0, 1, 1)}
    assert latencies.take(8.0) is None


def test_many_requests_keep_the_latest() -> None:
    latencies = Latencies(most=3)
    for latency_ms in (9.0, 9.0, 1.0, 2.0, 3.0):
        latencies.observe("a", 1, latency_ms)
    assert latencies.take(0.0) == {"a": RouteLatency(2.0, 3.0, 3, 1)}


def test_requests_with_another_number_of_threads_are_forgotten() -> None:
    latencies = Latencies()
    latencies.observe("a", 2, 1.0)
    latencies.observe("a", 1, 5.0)
    assert latencies.take(0.0) == {"a": RouteLatency(5.0, 5.0, 1, 1)}


def test_takes_requests_from_many_threads_while_ticking() -> None:
    latencies = Latencies(most=10**6)
    threads = [threading.Thread(target=lambda: [latencies.observe("a", 1, 1.0) for _ in range(1000)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        latencies.take(0.0)
    for thread in threads:
        thread.join()
    assert latencies.take(0.0) == {"a": RouteLatency(1.0, 1.0, 3000, 1)}
