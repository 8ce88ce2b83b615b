"""The clients in examples/: what the camera counts, and what the home is told, against a real server of answers."""

import importlib.util
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SEVEN = (ROOT / "examples/digits/images/7.png").read_bytes()


def load(path: str) -> ModuleType:
    file = ROOT / "examples" / path
    spec = importlib.util.spec_from_file_location(f"example_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


camera, home = load("camera/camera.py"), load("home/watch.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real `restnet-serve` with the digits."""
    code = "import sys; from restnet_runtime.cli import serve; sys.exit(serve(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--port", "0", "--cache", str(tmp_path_factory.mktemp("cache"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        url = process.stdout.readline().rpartition(" ")[2].strip()
        for _ in range(600):
            try:
                home.fetch(f"{url}/readyz")
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.communicate()


class Home:
    """A home: has a camera whose picture can be changed, and takes webhooks."""

    def __init__(self) -> None:
        self.snapshot, self.events = SEVEN, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(outer.snapshot)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.events.append((self.path, self.headers["Content-Type"], json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def house() -> Iterator[Home]:
    made = Home()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_budget_of_a_frame() -> None:
    assert camera.latency_budget_ms(15, 3) == pytest.approx(0.8 * 1000 / 15 - 3)
    with pytest.raises(ValueError, match=r"1000 frames a second leave 0\.8 ms"):
        camera.latency_budget_ms(1000, 3)


class Clock:
    """Time that passes when somebody sleeps or a request takes some."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Answering:
    """A server on a virtual clock: each answer takes what the list says, `None` is refused."""

    def __init__(self, clock: Clock, times_s: list[float | None]) -> None:
        self.clock, self.times_s, self.budgets = clock, iter(times_s), []

    def predict(self, _image: bytes, budget_ms: float, _deadline_ms: float) -> dict[str, Any]:
        self.budgets.append(budget_ms)
        took_s = next(self.times_s)
        if took_s is None:
            raise camera.RefusedError("503: too many")
        self.clock.sleep(took_s)
        return {"route": "slow" if took_s > 0.1 else "quick", "budget_met": took_s <= 0.1}


def watched(times_s: list[float | None], fps: float, seconds: float) -> Any:
    clock = Clock()
    return camera.watch(Answering(clock, times_s), itertools.repeat(b""), fps, 50.0, seconds, clock, clock.sleep)


def test_a_quick_server_answers_every_frame() -> None:
    counts = watched([0.02] * 10, fps=10, seconds=1)
    assert (counts.answered, counts.late, counts.skipped, counts.refused) == (10, 0, 0, 0)
    assert counts.routes == {"quick": 10}


def test_a_slow_answer_is_late_and_what_came_meanwhile_is_skipped() -> None:
    counts = watched([0.02, 0.35, *[0.02] * 6], fps=10, seconds=1)
    # The frame of 0.1 s is answered at 0.45: those of 0.2 and 0.3 are gone, that of 0.4 is the newest.
    assert (counts.answered, counts.late, counts.skipped, counts.over_budget) == (8, 1, 2, 1)


def test_refused_frames_are_counted_and_the_next_one_is_tried() -> None:
    counts = watched([None, 0.02, None, 0.02], fps=4, seconds=1)
    assert (counts.answered, counts.refused) == (2, 2)


def test_the_camera_with_a_real_server(server: str) -> None:
    with closing(camera.Server(server)) as asked:
        look_through(asked)


def look_through(asked: Any) -> None:
    beside = camera.beside_ms(asked, itertools.repeat(SEVEN), 5)
    assert beside > 0
    counts = camera.watch(asked, itertools.repeat(SEVEN), 20, 1000.0, 0.5)
    assert counts.answered + counts.skipped + counts.refused == 10  # the server is given 50 ms for each frame, and may be busy
    assert sum(counts.routes.values()) == counts.answered > 0
    assert asked.predict(SEVEN, 1000.0)["class"] == "7"


def test_the_camera_is_told_why_it_was_refused(server: str) -> None:
    with closing(camera.Server(server)) as asked:
        with pytest.raises(camera.RefusedError, match=r"415: .*no image"):
            asked.predict(b"no image")
        assert asked.predict(SEVEN)["class"] == "7"


def test_steady_ignores_one_odd_frame_and_what_is_not_sure() -> None:
    steady = home.Steady(sure=0.8, times=2)
    said = [
        steady.changed(name, sure)
        for name, sure in [("a", 0.9), ("a", 0.9), ("b", 0.9), ("a", 0.9), ("b", 0.9), ("b", 0.5), ("b", 0.9), ("b", 0.9)]
    ]
    assert said == [False, True, False, False, False, False, False, True]
    assert steady.current == "b"


def test_a_home_is_told_of_a_change_once(server: str, house: Home, capsys: pytest.CaptureFixture[str]) -> None:
    steady = home.Steady(sure=0.8, times=2)

    def look() -> dict[str, Any]:
        return home.predict(server, home.fetch(f"{house.url}/snapshot.jpg"), "1s")

    for digit, times in (("7", 3), ("0", 3)):
        house.snapshot = (ROOT / f"examples/digits/images/{digit}.png").read_bytes()
        home.watch(look, lambda event: home.post(f"{house.url}/api/webhook/door", event), steady, 0.0, times)
    assert [(path, kind, event["class"]) for path, kind, event in house.events] == [
        ("/api/webhook/door", "application/json", "7"),
        ("/api/webhook/door", "application/json", "0"),
    ]
    assert house.events[0][2]["probability"] > 0.8
    assert capsys.readouterr().err == ""


def test_a_camera_that_is_away_is_no_reason_to_end(server: str, house: Home, capsys: pytest.CaptureFixture[str]) -> None:
    house.snapshot = b"no picture"
    told: list[dict[str, Any]] = []
    home.watch(lambda: home.predict(server, home.fetch(house.url)), told.append, home.Steady(0.5, 1), 0.0, 2)
    house.snapshot = SEVEN
    home.watch(lambda: home.predict(server, home.fetch(house.url)), told.append, home.Steady(0.5, 1), 0.0, 1)
    assert [event["class"] for event in told] == ["7"]
    assert capsys.readouterr().err.count("watch.py: ") == 2


def test_templates_of_home_assistant_read_what_is_sent(server: str) -> None:
    """The templates on the page, with a real event and a real /status in their place."""
    jinja2, yaml = pytest.importorskip("jinja2"), pytest.importorskip("yaml")
    page = (ROOT / "docs/how-to/home-assistant.md").read_text()
    parts: dict[str, Any] = {}
    for block in page.split("```yaml\n")[1:]:
        parts |= yaml.safe_load(block.partition("```")[0])
    status = json.loads(home.fetch(f"{server}/status"))
    render = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string
    (rest,) = parts["rest"]
    shown = {
        sensor["name"]: render(sensor["value_template"]).render(value_json=status) for sensor in rest["sensor"] + rest["binary_sensor"]
    }
    assert shown["ReStNet route"] == status["current"]
    assert shown["ReStNet budget"] == "none"
    assert shown["ReStNet keeps its budget"] == "True"
    (automation,) = parts["automation"]
    event = {"class": "parcel", "probability": 0.97}

    class Trigger:
        json = event

    assert render(automation["conditions"][0]).render(trigger=Trigger) == "True"
    assert render(automation["actions"][0]["data"]["message"]).render(trigger=Trigger) == "parcel, 97 % sure"
    payload = render(parts["rest_command"]["restnet_budget"]["payload"]).render(budget="20ms")
    assert json.loads(payload) == {"budget": "20ms"}
