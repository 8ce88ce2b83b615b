"""The Python API on the digits that ship: real bundle, real sessions, real threads."""

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from restnet_runtime import Budget, Prediction, Runtime
from restnet_runtime.errors import ClosedError, CompileError, ImageError, InfeasibleError, InputError, UnitError
from restnet_runtime.preprocess import Preprocessor
from restnet_runtime.sessions import infer

SMALL, MIDDLE, LARGE = "cnn-s", "cnn-l[0-1]>cnn-s[2-3]", "cnn-l"


@pytest.fixture(scope="module")
def opened(cache_root: Path) -> Iterator[Runtime]:
    """The digits, every route loaded."""
    with Runtime(cache=cache_root, threads=1, keep_all=True) as rt:
        assert rt.wait_loaded(60)
        yield rt


@pytest.fixture
def rt(opened: Runtime) -> Iterator[Runtime]:
    """The same for every test, and put back: nothing limits it and nothing is pinned."""
    yield opened
    opened.budget = None
    opened.pin = None


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (12, 9, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(seed)).save(stream, "PNG")
    return stream.getvalue()


def prepared(rt: Runtime, *seeds: int) -> np.ndarray:
    manifest = rt._engine.executor.bundle.manifest
    return Preprocessor(manifest.preprocessing, manifest.input.shape).from_files([png(seed) for seed in seeds])


def logits(rt: Runtime, x: np.ndarray, route: str = LARGE) -> np.ndarray:
    """What the route's session itself answers."""
    return infer(rt._engine.executor._residents[route].session, x)


def kinds(folder: Path, rt: Runtime) -> dict[str, Callable[[int], object]]:
    def path(seed: int) -> Path:
        (folder / f"{seed}.png").write_bytes(png(seed))
        return folder / f"{seed}.png"

    return {
        "path": path,
        "text": lambda seed: str(path(seed)),
        "bytes": png,
        "bytearray": lambda seed: bytearray(png(seed)),
        "memoryview": lambda seed: memoryview(png(seed)),
        "Pillow": lambda seed: Image.fromarray(pixels(seed)),
        "Pillow, not read": lambda seed: Image.open(path(seed)),
        "pixels": pixels,
        "prepared": lambda seed: prepared(rt, seed)[0],
    }


KINDS = ["path", "text", "bytes", "bytearray", "memoryview", "Pillow", "Pillow, not read", "pixels", "prepared"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_however_it_is_held(rt: Runtime, tmp_path: Path, kind: str) -> None:
    make = kinds(tmp_path, rt)[kind]
    answer = rt.predict(make(0))
    expected = logits(rt, prepared(rt, 0))[0]
    assert isinstance(answer, Prediction)
    np.testing.assert_allclose(answer.logits, expected, atol=1e-5)
    assert (answer.index, answer.name) == (expected.argmax(), rt.classes[expected.argmax()])
    powers = np.exp(expected - expected.max())
    assert answer.probability == pytest.approx(powers.max() / powers.sum(), rel=1e-4)
    assert (answer.route, answer.budget_met, answer.budget, answer.reason) == (LARGE, True, None, None)
    assert answer.macs == 1852736
    assert answer.latency_ms > 0
    several = rt.predict([make(0), make(1)])
    assert [one.index for one in several] == logits(rt, prepared(rt, 0, 1)).argmax(-1).tolist()


def test_a_list_is_answered_by_a_list_whatever_is_in_it(rt: Runtime, tmp_path: Path) -> None:
    makers = kinds(tmp_path, rt)
    answers = rt.predict([makers[kind](seed) for seed, kind in enumerate(KINDS)])
    expected = logits(rt, prepared(rt, *range(len(KINDS))))
    np.testing.assert_allclose(np.stack([answer.logits for answer in answers]), expected, atol=1e-5)
    assert len(rt.predict([png(0)])) == 1
    assert len(rt.predict((png(0), png(1)))) == 2


def test_how_many_classes_are_listed(rt: Runtime) -> None:
    assert [len(rt.predict(png(0), top_k=count).top) for count in (1, 3, 99)] == [1, 3, 10]
    top = rt.predict(png(0)).top
    assert len(top) == 5
    assert [one.probability for one in top] == sorted((one.probability for one in top), reverse=True)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (b"no image", ImageError, "no image that is decoded here"),
        ("/no/such/file.png", FileNotFoundError, "No such file"),
        ("a\0b", InputError, "no path"),
        (b"", ImageError, "empty"),
        (None, InputError, "an input of type NoneType: give a path"),
        (7, InputError, "an input of type int"),
        ([], InputError, "an empty list"),
        ([png(0), b"x"], ImageError, "image 1 of 2: 1 bytes"),
        ([[1, 2], [3, 4]], InputError, "image 0 of 2: an input of type list"),
        (np.zeros((2, 1, 8, 8), np.float32), InputError, r"give a list of images, as list\(x\)"),
        (np.zeros((8, 8, 1), np.float32), InputError, r"give \(1, 8, 8\)"),
        (np.zeros((4, 4, 2), np.uint8), InputError, "with C one of 1, 3, 4"),
        (np.full((1, 8, 8), np.nan, np.float32), InputError, "finite"),
        (np.array(["a"]), InputError, "real numbers"),
        (Image.new("RGB", (8000, 8000)), ImageError, "the limit is 50000000"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_image(rt: Runtime, image: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rt.predict(image)
    assert rt.predict(png(0)).route == LARGE


def test_wishes_that_make_no_sense(rt: Runtime, cache_root: Path) -> None:
    with pytest.raises(UnitError, match="fast"):
        rt.predict(png(0), budget="fast")
    with pytest.raises(UnitError):
        rt.budget = "fast"
    with pytest.raises(InputError, match="top_k is 0"):
        rt.predict(png(0), top_k=0)
    with pytest.raises(InputError, match="no route 'x' in this bundle: it has"):
        rt.pin = "x"
    with pytest.raises(InputError, match="top_k is -1"):
        Runtime(cache=cache_root, top_k=-1)


def test_a_smaller_budget_moves_to_a_cheaper_route_and_none_lifts_it(rt: Runtime) -> None:
    assert rt.predict(png(0)).route == LARGE
    rt.budget = "600kFLOPs"
    assert str(rt.budget) == "600 KMACs"
    answer = rt.predict(png(0))
    assert (answer.route, answer.budget_met) == (MIDDLE, True)
    np.testing.assert_allclose(answer.logits, logits(rt, prepared(rt, 0), MIDDLE)[0], atol=1e-5)
    rt.budget = Budget(macs=200_000)
    assert rt.predict(png(0)).route == SMALL
    rt.budget = None
    assert rt.predict(png(0)).route == LARGE


def test_the_budget_of_a_call_is_of_that_call_only(rt: Runtime) -> None:
    assert rt.predict(png(0), budget="600kFLOPs").route == MIDDLE
    assert rt.predict(png(0), budget=Budget(macs=200_000)).route == SMALL
    assert rt.predict(png(0)).route == LARGE
    answer = rt.predict(png(0), budget="1FLOPs")
    assert (answer.route, answer.budget_met) == (SMALL, False)
    assert (answer.budget or "").startswith("1 MACs, "), "the device's own memory limit is in force too"
    assert answer.reason
    with pytest.raises(InfeasibleError):
        rt.predict(png(0), budget="200kFLOPs,99%")


def test_strict_refuses_what_does_not_fit(cache_root: Path) -> None:
    with Runtime(cache=cache_root, threads=1, strict=True, budget="1FLOPs") as rt, pytest.raises(InfeasibleError, match="no route fits"):
        rt.predict(png(0))


def test_a_pinned_route(rt: Runtime) -> None:
    rt.pin = MIDDLE
    assert (rt.pin, rt.predict(png(0)).route) == (MIDDLE, MIDDLE)
    rt.pin = None
    assert rt.predict(png(0)).route == LARGE


def test_what_it_tells_of_itself(rt: Runtime) -> None:
    routes = rt.routes
    assert [route.name for route in routes][:2] == [SMALL, MIDDLE]
    assert [route.name for route in routes if route.current] == [LARGE]
    assert all(route.loaded and route.profile is not None for route in routes)
    status = rt.status()
    assert (status.bundle.name, status.current, status.controlling) == ("digits", LARGE, True)
    assert (status.queue.in_flight, status.queue.max_in_flight) == (0, None)
    assert status.model_dump_json()
    assert repr(rt) == "<Runtime digits: 7 routes, budget none>"
    assert rt.classes == tuple("0123456789")


def test_events_tell_each_switch_and_why(rt: Runtime) -> None:
    events = rt.events(20)
    first = next(events)
    assert (first.kind, first.route, first.budget) == ("decision", LARGE, "none")
    rt.budget = "600kFLOPs"
    switch = next(event for event in events if event.kind == "switch")
    assert switch.switch is not None
    assert (switch.switch.before, switch.switch.after, switch.budget) == (LARGE, MIDDLE, "600 KMACs")
    assert "new budget" in switch.switch.reason
    reading = next(event for event in events if event.kind == "reading")
    assert reading.reading is not None
    assert reading.reading.own_memory_bytes
    events.close()
    started = time.monotonic()
    assert [event.kind for event in rt.events(0.1)] == ["decision"]
    assert time.monotonic() - started < 5


def test_many_threads_while_the_budget_changes(rt: Runtime) -> None:
    files = [png(seed) for seed in range(10)]
    x = prepared(rt, *range(10))
    expected = {name: [logits(rt, row[None], name)[0] for row in x] for name in (SMALL, MIDDLE, LARGE)}
    over = threading.Event()

    def change() -> None:
        while not over.is_set():
            for budget in (None, "600kFLOPs", "200kFLOPs"):
                rt.budget = budget
                time.sleep(0.002)

    def ask(index: int) -> str:
        answer = rt.predict(files[index % 10])
        np.testing.assert_allclose(answer.logits, expected[answer.route][index % 10], atol=1e-5)
        return answer.route

    changer = threading.Thread(target=change)
    changer.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            routes = set(pool.map(ask, range(800)))
    finally:
        over.set()
        changer.join()
    assert routes == {SMALL, MIDDLE, LARGE}
    assert rt.status().queue.in_flight == 0


def held_open(folder: Path) -> int:
    """How many files under `folder` this process has open."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed since
            links.append(descriptor.readlink())
    return sum(link.is_relative_to(folder) for link in links)


def test_closed_in_the_middle_what_runs_is_answered_and_the_rest_refused(cache_root: Path) -> None:
    process = psutil.Process()
    children, before, held = process.children(), set(threading.enumerate()), held_open(cache_root)
    rt = Runtime(cache=cache_root, threads=1)
    answered, refused = [0] * 6, [""] * 6

    def ask(index: int) -> None:
        while True:
            try:
                rt.predict(png(index))
            except ClosedError as error:
                refused[index] = str(error)
                return
            answered[index] += 1

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    while min(answered) < 3:
        time.sleep(0.01)
    assert held_open(cache_root) > held
    events = rt.events()
    next(events)
    closers = [threading.Thread(target=rt.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    for thread in [*threads, *closers]:
        thread.join(30)
        assert not thread.is_alive()
    assert set(refused) == {"this runtime is closed: open another one"}
    assert {event.kind for event in events} <= {"switch", "reading"}, "it ends"
    assert set(threading.enumerate()) <= before
    assert process.children() == children
    assert held_open(cache_root) == held


def test_nothing_works_after_close(cache_root: Path) -> None:
    with Runtime(cache=cache_root, threads=1) as rt:
        assert not rt.closed
    assert rt.closed
    rt.close()

    def set_budget() -> None:
        rt.budget = "30ms"

    def set_pin() -> None:
        rt.pin = SMALL

    uses = [lambda: rt.predict(png(0)), set_budget, set_pin, lambda: rt.routes, rt.status, rt.events, rt.wait_loaded, rt.__enter__]
    for use in uses:
        with pytest.raises(ClosedError, match="is closed"):
            use()
    assert "closed" in repr(rt)


def test_where_no_route_can_be_loaded_in_time_nothing_is_left(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with pytest.raises(CompileError, match="no route is loaded: not yet"):
        Runtime(cache=tmp_path, threads=1, ready_s=1e-3)
    assert set(threading.enumerate()) <= before


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_import_is_light() -> None:
    done = python("import sys, restnet_runtime\nprint(sorted({'numpy', 'onnxruntime', 'PIL', 'pydantic', 'fastapi'} & set(sys.modules)))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.usefixtures("opened")
def test_it_takes_no_http_and_ends_by_itself_without_close(cache_root: Path) -> None:
    code = """
import sys, numpy
from restnet_runtime import Runtime
rt = Runtime(sys.argv[1] if len(sys.argv) > 1 else __import__("restnet_runtime.bundle").bundle.SHIPPED_BUNDLE)
print(rt.predict(numpy.zeros((8, 8), numpy.uint8)).name in rt.classes)
print(sorted({'uvicorn', 'fastapi', 'starlette', 'pydantic', 'onnx', 'torch'} & set(sys.modules)))
"""
    done = python(code, RESTNET_CACHE=str(cache_root))
    assert (done.returncode, done.stdout) == (0, "True\n[]\n"), done.stderr


@pytest.mark.usefixtures("opened")
def test_a_program_that_ends_while_routes_are_loaded_ends_well(cache_root: Path) -> None:
    """Three in ten aborted: a thread within ONNX Runtime does not survive being ended by Python."""
    code = "from restnet_runtime import Runtime\nRuntime().predict(__import__('numpy').zeros((8, 8), 'uint8'))"
    for _ in range(8):
        done = python(code, RESTNET_CACHE=str(cache_root))
        assert (done.returncode, done.stderr) == (0, "")


def test_the_program_in_the_readme_works(cache_root: Path, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    program = readme.partition("from restnet_runtime import Runtime\n")[2].partition("```")[0]
    (tmp_path / "seven.png").write_bytes(png(7))
    image = repr(str(tmp_path / "seven.png"))
    for shown, here in (('"mine"', "SHIPPED_BUNDLE"), ('"seven.png"', image), ("timeout_s=2", "timeout_s=0.1")):
        assert shown in program
        program = program.replace(shown, here)
    code = f"from restnet_runtime.bundle import SHIPPED_BUNDLE\nfrom restnet_runtime import Runtime\n{program}"
    done = python(code, RESTNET_CACHE=str(cache_root))
    assert done.returncode == 0, done.stderr
    answer, first = done.stdout.splitlines()[:2]
    assert answer.endswith("True")
    assert first.startswith("decision cnn-"), "whichever is loaded by then"
