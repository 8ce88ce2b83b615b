"""A real server in a control group of its own, really squeezed: a CPU quota, then memory. From the client's side."""

import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"
MB = 1_000_000


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The benchmark's own groups, client and server."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import control_groups
    import squeeze
    import squeeze_client

    modules: tuple[ModuleType, ...] = (control_groups, squeeze, squeeze_client)
    yield SimpleNamespace(**{module.__name__: module for module in modules})
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


def test_a_squeezed_server_falls_fails_nothing_and_climbs_again(tools: SimpleNamespace, wide_path: Path, tmp_path: Path) -> None:
    """Runs of the wide network take an eighth of a core, and half as much is beside them: a fifth is too little, but not for the next."""
    content = io.BytesIO()
    np.save(content, np.zeros((1, 8, 8), np.float32))
    try:
        with tools.control_groups.boxes("server", "client") as boxes:
            boxes["client"].take(os.getpid())
            box = boxes["server"]
            options = ("--cache", str(tmp_path / "cache"), "--budget", "150ms", "--threads", "1")
            server = tools.squeeze.Server(box, SimpleNamespace(path=wide_path), *options)
            try:
                server.wait()
                took_ms = {one["name"]: one["profile"]["latency_ms"] for one in server.get("/routes")["routes"] if one["profile"]}
                rate = 125 / took_ms["wide"]
                client = tools.squeeze_client.Client(server.url, content.getvalue(), "application/x-npy", rate)
                client.start()
                time.sleep(2.5)
                squeezed_s = time.monotonic()
                box.quota(0.2)
                time.sleep(5)
                eased_s = time.monotonic()
                box.quota(None)
                while server.get("/status")["current"] != "wide" and time.monotonic() < eased_s + 20:
                    time.sleep(0.25)
                time.sleep(1)
                pressed_s = time.monotonic()
                limit = box.used_bytes() - 12 * MB  # of the 28 that the wide one reads
                for _ in range(20):
                    box.limit(limit)
                    time.sleep(0.15)
                ended_s = time.monotonic()
                asked = client.stop()
                alive, killed, status = server.process.poll() is None, box.killed(), server.get("/status")
            finally:
                box.limit(None)
                box.quota(None)
                server.end()
    except tools.control_groups.NoGroupError as error:
        pytest.skip(f"no control groups can be made here: {error}")

    def routes(begin_s: float, end_s: float) -> list[str]:
        return [one.route for one in asked if begin_s <= one.due_s < end_s]

    assert [one for one in asked if not one.ok] == []
    assert (alive, killed) == (True, 0)
    assert routes(squeezed_s - 1, squeezed_s)[-1] == "wide"
    assert "wide" not in routes(squeezed_s + 3, eased_s)
    squeezed = [one.latency_ms for one in asked if squeezed_s + 3 <= one.due_s < eased_s]
    assert sum(ms > 150 for ms in squeezed) < len(squeezed) / 4, "on the wide one nearly all would be late"
    assert "CPU quota of 0.2 cores" in " ".join(one["reason"] for one in status["switches"])
    assert routes(eased_s, pressed_s)[-1] == "wide"
    assert "wide" not in routes(ended_s - 0.5, ended_s)
