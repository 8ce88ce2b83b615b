"""The commands of a device: as processes, the way they are used, and in this one, for what they print and return."""

import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from restnet_runtime import __version__, cli
from restnet_runtime.budget import Budget
from restnet_runtime.bundle import SHIPPED_BUNDLE, Bundle
from restnet_runtime.engine import Engine
from restnet_runtime.units import format_macs

COMMANDS = ("serve", "bench", "inspect")
MIDDLE = "small[0-1]>large[2-4]"


def command(name: str, *arguments: object) -> list[str]:
    """What the console script runs."""
    code = f"import sys; from restnet_runtime.cli import {name}; sys.exit({name}())"
    return [sys.executable, "-c", code, *map(str, arguments)]


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(name, *arguments), capture_output=True, text=True, timeout=120, check=False)


def refusal(capsys: pytest.CaptureFixture[str], name: str, *arguments: object) -> str:
    """The message of a command line that argparse refuses."""
    with pytest.raises(SystemExit) as ended:
        getattr(cli, name)([str(argument) for argument in arguments])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1]


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


class Server:
    """A `restnet-serve` that listens, and a client of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.told: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            self.told.append(line)
            if found := re.fullmatch(r"listening on (http://(?:127\.0\.0\.1|0\.0\.0\.0):\d+)\n", line):
                self.client = httpx.Client(base_url=found[1].replace("0.0.0.0", "127.0.0.1"), trust_env=False, timeout=30)
                return
        raise AssertionError(process.communicate())

    def loaded(self) -> dict[str, object]:
        """The status once every route is loaded."""
        deadline = time.monotonic() + 60
        while True:
            status: dict[str, dict[str, object]] = self.client.get("/status").json()
            if len(status["routes"]["loaded"]) == status["routes"]["known"]:  # type: ignore[arg-type]
                return status
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self) -> tuple[int, str, str]:
        """(exit status, standard output, standard error) after SIGTERM."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, "".join(self.told) + out, err


@pytest.fixture
def serve(family_path: Path, cache_root: Path) -> Iterator[Callable[..., Server]]:
    """A factory of servers of the family on free ports. What is still running at the end is killed."""
    processes = []

    def start(*arguments: object) -> Server:
        line = command("serve", family_path, "--port", 0, "--threads", 1, "--cache", cache_root, *arguments)
        processes.append(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return Server(processes[-1])

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_serve_answers_switches_and_ends(serve: Callable[..., Server], family_bundle: Bundle, family_path: Path) -> None:
    server = serve("--budget", f"{family_bundle.route(MIDDLE).macs}MACs", "--interval", 0.1)
    status = server.loaded()
    assert status["current"] == MIDDLE
    assert server.client.get("/healthz").status_code == 200
    answer = server.client.post("/predict", content=png()).raise_for_status().json()
    assert (answer["route"], answer["budget_met"]) == (MIDDLE, True)
    assert answer["class"] in family_bundle.manifest.classes
    switched = server.client.put("/budget", json={"budget": f"{family_bundle.route('small').macs}MACs"}).raise_for_status().json()
    assert switched["decision"]["route"] == "small"
    after = server.client.post("/predict", content=png()).json()
    assert after["route"] == "small"
    assert server.client.post("/predict", content=png(), headers={"X-Restnet-Budget": "1MACs"}).json()["budget_met"] is False
    code, out, err = server.end()
    assert code == 0
    limit = Budget(macs=family_bundle.route(MIDDLE).macs)
    assert out == f"serving shapes (4 routes) from {family_path}, budget {limit}\nlistening on {str(server.client.base_url).rstrip('/')}\n"
    assert "Traceback" not in err


def test_serve_passes_its_limits_on(serve: Callable[..., Server]) -> None:
    server = serve("--strict", "--max-body", 1000, "--workers", 3, "--max-in-flight", 7, "--budget", "1MACs")
    status = server.loaded()
    assert status["queue"] == {"in_flight": 0, "max_in_flight": 7, "workers": 3, "receiving_bytes": 0}
    small = np.zeros((1, 1, 8, 8), np.float32)
    stream = io.BytesIO()
    np.save(stream, small)
    refused = server.client.post("/predict", content=stream.getvalue())
    assert refused.status_code == 503
    assert "1 MACs" in refused.json()["error"]
    assert server.client.post("/predict", content=bytes(1001)).status_code == 413
    assert server.end()[0] == 0


def test_serve_batches_as_it_is_told(serve: Callable[..., Server]) -> None:
    server = serve("--batching", "auto", "--batch-wait", "500us", "--batch-max", 64)
    status = server.loaded()
    batching: dict[str, object] = status["batching"]  # type: ignore[assignment]
    assert (batching["mode"], batching["max_wait_ms"], batching["max_batch"]) == ("auto", 0.5, 64)
    assert status["queue"]["workers"] == 64  # type: ignore[index]  # fewer could not fill a batch
    assert server.end()[0] == 0


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--batching", "maybe", "choose from 'off', 'on', 'auto'"),
        ("--batch-wait", "2s", "not a wait: give 0 to 1s"),
        ("--batch-wait", "2MB", "not a wait: give 0 to 1s"),
        ("--batch-wait", "soon", "is not a quantity"),
        ("--batch-max", "0", "must be above zero"),
    ],
)
def test_batches_that_cannot_be(option: str, value: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refusal(capsys, "serve", option, value)


def test_serve_on_a_taken_port_says_so_before_anything_is_loaded(family_path: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", family_path, "--cache", tmp_path / "cache", "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"restnet-serve: cannot listen on host 127.0.0.1, port {port}: Address already in use\n"
    assert not (tmp_path / "cache").exists()


def test_serve_stays_on_this_machine_unless_it_is_told_otherwise(family_path: Path, serve: Callable[..., Server]) -> None:
    for host in ("0.0.0.0", "::"):
        found = run("serve", family_path, "--port", 0, "--host", host)
        assert (found.returncode, found.stdout, "add --allow-remote" in found.stderr) == (2, "", True), found.stderr
    server = serve("--host", "0.0.0.0", "--allow-remote")
    assert server.client.get("/readyz", headers={"Host": "any.example"}).status_code in (200, 503)
    assert server.client.get("/routes", headers={"Host": "any.example"}).status_code == 200
    code, _, told = server.end()
    assert (code, "may change budget and pin" in told) == (0, True)


def test_serve_under_load_stays_healthy_refuses_and_ends_in_order(serve: Callable[..., Server]) -> None:
    server = serve("--max-in-flight", 2, "--workers", 2, "--deadline", "5s")
    server.loaded()
    url = str(server.client.base_url)
    ended, told = threading.Event(), threading.Event()
    statuses: list[int] = []
    waited: list[str | None] = []
    broken: list[str] = []

    def ask() -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            while not ended.is_set():
                try:
                    answer = client.post("/predict", files=[("image", ("x.png", png()))] * 20)
                except httpx.TransportError as error:
                    if not told.is_set():
                        broken.append(repr(error))
                    return
                statuses.append(answer.status_code)
                if answer.status_code == 503:
                    waited.append(answer.headers.get("retry-after"))

    clients = [threading.Thread(target=ask) for _ in range(12)]
    for client in clients:
        client.start()
    try:
        deadline, checks = time.monotonic() + 30, []
        while time.monotonic() < deadline and (statuses.count(200) < 20 or statuses.count(503) < 20 or len(checks) < 20):
            started = time.perf_counter()
            assert server.client.get("/healthz").status_code == 200
            assert server.client.get("/readyz").status_code == 200
            checks.append(time.perf_counter() - started)
            assert server.client.get("/status").json()["queue"]["in_flight"] <= 2
        told.set()
        code, _, said = server.end()
    finally:
        ended.set()
        for client in clients:
            client.join()
    assert (code, broken) == (0, []), said
    assert set(statuses) == {200, 503}
    assert min(statuses.count(200), statuses.count(503)) >= 20
    assert set(waited) == {"1"}
    assert sorted(checks)[len(checks) // 2] < 0.5  # two of them, while both cores predict


def test_serve_asks_for_the_token_of_its_file(serve: Callable[..., Server], tmp_path: Path) -> None:
    secret = "0123456789abcdef0123456789abcdef"
    (tmp_path / "token").write_text(secret + "\n")
    server = serve("--token-file", tmp_path / "token", "--require-token", "all")
    assert server.client.get("/routes").status_code == 401
    assert server.client.get("/routes", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    assert server.client.get("/routes", headers={"Host": "elsewhere.example", "Authorization": f"Bearer {secret}"}).status_code == 421
    code, out, told = server.end()
    assert (code, secret in out + told) == (0, False)


def test_serve_takes_a_body_limit_above_what_is_received_at_once_by_default(serve: Callable[..., Server]) -> None:
    server = serve("--max-body", 100_000_000)
    assert server.client.get("/healthz").status_code == 200
    assert server.end()[0] == 0


def test_serve_in_this_process(family_path: Path, cache_root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found: list[int] = []
    over = threading.Event()

    def visit() -> None:
        while not found and not over.is_set():
            try:
                found.append(httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code)
            except httpx.TransportError:
                time.sleep(0.02)
        if found:
            signal.raise_signal(signal.SIGTERM)

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        assert cli.serve([str(family_path), "--cache", str(cache_root), "--port", str(port), "--threads", "1"]) == 0
    finally:
        over.set()
        visitor.join()
    assert found in ([200], [503])
    assert "serving shapes (4 routes)" in capfd.readouterr().out
    assert not {"restnet-controller", "restnet-loader"} & {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_the_server_starts_ends_it_quietly(family_path: Path, tmp_path: Path, number: int, status: int) -> None:
    """With nothing compiled yet: what listens has routes to compile and HTTP to import before the server's own handlers are there."""
    line = command("serve", family_path, "--port", 0, "--cache", tmp_path)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("listening"):
            assert process.poll() is None
        process.send_signal(number)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()  # or leaving waits for one that lost the signal
    assert process.returncode == status
    assert all(re.match(r"\d{4}-\d\d-\d\d .* restnet_runtime\.", entry) for entry in err.splitlines()), err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_terminated_unwinds(name: str, family_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first thing that each does, and what SIGTERM does afterwards is what it did before."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "_open", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(cli, "open_bundle", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    options = ["--port", "0"] if name == "serve" else []
    assert getattr(cli, name)([str(family_path), *options, *(["--cache", str(tmp_path)] if name != "inspect" else [])]) == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_termination_that_becomes_another_error_is_still_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def opened(_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise RuntimeError("Error calling __set_name__") from error  # as Python before 3.12 has it while a class is made

    monkeypatch.setattr(cli, "open_bundle", opened)
    assert cli.inspect([]) == 143
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_python_loses_still_ends_the_start(
    family_path: Path, cache_root: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    """What is raised in a weakref's callback goes nowhere."""
    opened = cli._open

    def lose_it(*given: Any, **named: Any) -> Engine:
        class Thing:
            pass

        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
        with monkeypatch.context() as silent:
            silent.setattr(sys, "unraisablehook", lambda _: None)
            del thing
        assert reference() is None
        return opened(*given, **named)

    monkeypatch.setattr(cli, "_open", lose_it)
    assert cli.serve([str(family_path), "--port", "0", "--cache", str(cache_root)]) == status


def test_serve_says_what_it_does_first(serve: Callable[..., Server]) -> None:
    server = serve()
    server.loaded()
    status, _, err = server.end()
    assert status == 0
    assert re.search(r" restnet_runtime.loader loading small, the first of 4 routes$", err.splitlines()[0]), err
    assert "no route is loaded" not in err


def test_bench_prints_and_writes_what_it_found(family_path: Path, family_bundle: Bundle, cache_root: Path, tmp_path: Path) -> None:
    limit = family_bundle.route(MIDDLE).macs
    options = ("--budget", f"{limit}FLOPs", "--runs", 2, "--threads", 1, "--cache", cache_root, "--json", tmp_path / "bench.json")
    done = run("bench", family_path, *options)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["feasible"] is True
    assert document["budget"]["macs"] == limit
    assert document["chosen"]["name"] == MIDDLE
    assert document["chosen"]["macs"] == limit
    assert document["digest"] == family_bundle.digest
    assert document["machine"]["restnet_runtime"] == __version__
    (chosen,) = [line for line in done.stdout.splitlines() if line.startswith("chosen")]
    assert re.split(r"  +", chosen)[1:4] == [MIDDLE, format_macs(limit), "90.0%"]
    for role in ("cheaper", "dearer"):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(role)]
        assert re.split(r"  +", line)[1] == document[role]["name"]


def test_bench_says_by_its_exit_status_that_nothing_fits(family_path: Path, cache_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.bench([str(family_path), "--budget", "1us", "--runs", "1", "--threads", "1", "--cache", str(cache_root)]) == 1
    assert "small" in capsys.readouterr().out


def test_bench_that_cannot_write_says_so(family_path: Path, cache_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "missing" / "bench.json"
    assert cli.bench([str(family_path), "--runs", "1", "--cache", str(cache_root), "--json", str(target)]) == 2
    assert capsys.readouterr().err == f"restnet-bench: [Errno 2] No such file or directory: '{target}'\n"


def test_inspect_lists_routes_by_cost(family_path: Path, family_bundle: Bundle) -> None:
    done = run("inspect", family_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "shapes: classification, 3 classes, input 1x8x8, 10 segments"
    assert lines[1] == "made by tests, scored on 0 images"
    ordered = sorted(family_bundle.routes, key=lambda route: route.macs)
    rows = [re.split(r"  +", line) for line in lines[4:-1]]
    assert [row[0] for row in rows] == [route.name for route in ordered]
    assert [row[1] for row in rows] == [format_macs(route.macs) for route in ordered]
    assert [row[4:] for row in rows] == [["80.0%", "yes"], ["85.0%", "yes"], ["90.0%", "yes"], ["95.0%", "yes"]]
    assert lines[-1].startswith(f"verified {len(family_bundle.manifest.files)} files, ")
    assert family_bundle.digest in lines[-1]


def test_inspect_without_a_bundle_takes_the_one_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.inspect([]) == 0
    assert capsys.readouterr().out.startswith("digits: classification, 10 classes, input 1x8x8, ")
    assert SHIPPED_BUNDLE.name == "digits"


def test_inspect_refuses_damage(own_family: Callable[[], Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = own_family()
    weights = bytearray((path / "weights.bin").read_bytes())
    weights[0] ^= 1
    (path / "weights.bin").write_bytes(weights)
    assert cli.inspect([str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("restnet-inspect: weights.bin: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_bundle_is_one_line(name: str, tmp_path: Path) -> None:
    done = run(name, tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"restnet-{name}: {tmp_path / 'nowhere'}: cannot be opened: No such file or directory\n"


@pytest.mark.parametrize("name", ["serve", "bench"])
def test_a_cache_that_cannot_be_is_one_line(name: str, family_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert getattr(cli, name)([str(family_path), "--cache", str(tmp_path / "file")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"restnet-{name}: no cache can be made under {tmp_path / 'file'}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_version(name: str) -> None:
    told = run(name, "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"usage: restnet-{name} ")
    if name != "inspect":
        assert "200MFLOPs or 200MMACs" in told.stdout
    assert run(name, "--version").stdout.startswith(f"restnet-{name} {__version__}\npython ")


@pytest.mark.parametrize("name", ["serve", "bench"])
@pytest.mark.parametrize(
    ("budget", "told"),
    [("200parsecs", "unknown unit 'parsecs'"), ("0ms", "above zero"), ("1ms,2ms", "limits latency_ms twice"), ("1ms,", "empty")],
)
def test_a_budget_that_cannot_be_read(name: str, budget: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, name, "--budget", budget)
    assert line.startswith(f"restnet-{name}: error: argument --budget: ")
    assert told in line


@pytest.mark.parametrize(
    ("name", "option", "value", "told"),
    [
        ("serve", "--port", "65536", "is not a port"),
        ("serve", "--port", "-1", "is not a port"),
        ("serve", "--port", "http", "is not a port"),
        ("serve", "--threads", "0", "must be above zero"),
        ("serve", "--threads", "1.5", "is not a number"),
        ("serve", "--interval", "nan", "must be above zero"),
        ("serve", "--interval", "soon", "is not a number"),
        ("serve", "--workers", "-2", "must be above zero"),
        ("serve", "--max-body", "0", "must be above zero"),
        ("serve", "--max-in-flight", "0", "must be above zero"),
        ("serve", "--workers", "1000000000", "below a thousand million"),
        ("bench", "--runs", "0", "must be above zero"),
        ("serve", "--cache-size", "500", "is not a quantity"),
        ("bench", "--cache-size", "5ms", "is not a size: give a number with B, kB, MB or GB"),
    ],
)
def test_numbers_out_of_range(name: str, option: str, value: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, name, f"{option}={value}")
    assert line.startswith(f"restnet-{name}: error: argument {option}: ")
    assert told in line


def test_the_installed_script_is_this_function(family_path: Path) -> None:
    script = Path(sys.executable).with_name("restnet-inspect")
    if not script.exists():
        pytest.skip("the package is not installed beside this interpreter")
    done = subprocess.run([script, family_path], capture_output=True, text=True, check=True)
    assert done.stdout == run("inspect", family_path).stdout


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--plot", "p.png"), "--plot"),
        (("--spread", "0.1"), "--spread"),
        (("--arrivals", "random"), "--arrivals"),
        (("--arrivals", "even"), "--arrivals"),
        (("--explain", "--compare", "plain"), "--explain"),
        (("--trace", "steady", "--compare", "plain"), "--compare"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_do_nothing_is_refused(options: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.bench(list(options)) == 2
    assert capsys.readouterr().err.startswith(f"restnet-bench: {named}")
