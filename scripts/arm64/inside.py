"""Run in the machine of `scripts/check-arm64`: install the runtime, serve, ask, take memory away, test. Nothing but the standard library.

Reads /job/job.json, prints a line for each step, and writes /job/out/report.json after each of them, so that what was found by then
is kept where the machine dies. Times are the emulator's: they say what was waited, nothing of a device.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
import xml.etree.ElementTree
from pathlib import Path
from typing import ClassVar

JOB, ENVIRONMENT, GROUPS = Path("/job"), Path("/opt/restnet"), Path("/sys/fs/cgroup")
OUT, BIN, IMAGES = JOB / "out", ENVIRONMENT / "bin", JOB / "suite/examples/digits/images"
PORT = 8080
LITTLE_MB = 160
"""Of memory for a server with the digits bundle: an eighth of a small board."""

TESTS = {
    "what ARM and its pages change": ("pages", "mapping", "packing", "precision", "quantised", "facts", "merging", "cache_writer"),
    "compiling and loading": ("compile", "levels", "loader", "int8"),
    "sensors, with real control groups and PSI": ("sensors", "sensor_trees", "cgroups", "quota", "memory", "machine"),
    "serving": ("engine", "executor", "runtime", "server"),
}
"""Of tests/runtime/test_NAME.py, each group in a process of its own."""
TIMED = ("test_the_program_in_the_readme_works", "test_an_answer_does_not_wait_for_an_acknowledgement")
"""Left out: they ask for milliseconds, of which an emulator needs many more."""
LAST_S = 30
"""Kept of the machine's time, so that the report is whole."""
STARTED_S = time.monotonic()


class Report:
    """What was found, kept on the disk as it grows."""

    def __init__(self, job: dict) -> None:
        self.data = {"job": job, "passed": False, "steps": [], "tests": []}

    def keep(self) -> None:
        (OUT / "report.json").write_text(json.dumps(self.data, indent=1))
        os.sync()

    def step(self, name: str, said: str, seconds: float, ok: bool = True) -> None:
        self.data["steps"].append({"name": name, "said": said, "seconds": round(seconds, 1), "ok": ok})
        self.keep()
        print(f"{'ok' if ok else 'FAILED'}: {name} ({seconds:.0f} s): {said}", flush=True)


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], text=True, capture_output=True, check=False, **options)


def checked(*command: str | Path) -> str:
    done = run(*command)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def install() -> None:
    """As docs/install.md says for a device without a network; the tests' own packages after that."""
    begun = time.monotonic()
    checked("python3", "-m", "venv", ENVIRONMENT)
    made = time.monotonic()
    pip = (BIN / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--find-links", JOB / "wheels")
    checked(*pip, "restnet-runtime")
    took = time.monotonic()
    size = int(checked("du", "-sm", ENVIRONMENT).split()[0])
    print(f"installed: {took - made:.0f} s, {size} MB with pip", flush=True)
    checked(*pip, "pytest", "hypothesis", "httpx")
    checked(BIN / "pip", "uninstall", "--quiet", "--yes", "restnet-runtime")
    found = {"venv_s": round(made - begun, 1), "install_s": round(took - made, 1), "size_mb": size, "emulated": True}
    (OUT / "install.json").write_text(json.dumps(found))


def ask(path: str, *options: str) -> dict:
    return json.loads(
        checked("curl", "--silent", "--show-error", "--fail", "--max-time", "120", *options, f"http://127.0.0.1:{PORT}{path}")
    )


class Server:
    """`restnet-serve` on the digits bundle that comes along, in a control group of its own where a limit is given."""

    begun: ClassVar[list[subprocess.Popen]] = []

    def __init__(self, *options: str, limit_mb: int | None = None) -> None:
        self.group = None
        if limit_mb is not None:
            self.group = GROUPS / "little"
            self.group.mkdir(exist_ok=True)
            (self.group / "memory.max").write_text(str(limit_mb * 2**20))
        self._log = (OUT / f"server-{limit_mb or 'plain'}.txt").open("w")
        begun = time.monotonic()
        self.process = subprocess.Popen(
            [str(BIN / "restnet-serve"), *options], stdout=self._log, stderr=subprocess.STDOUT, preexec_fn=self._enter, cwd="/tmp"
        )
        self.begun.append(self.process)
        while run("curl", "--silent", "--fail", "--output", "/dev/null", f"http://127.0.0.1:{PORT}/readyz").returncode:
            if self.process.poll() is not None or time.monotonic() - begun > 300:
                self.process.kill()
                raise RuntimeError(f"restnet-serve: {self.process.wait()}: {Path(self._log.name).read_text()[-2000:]}")
            time.sleep(0.5)
        self.ready_s = time.monotonic() - begun

    def _enter(self) -> None:
        if self.group is not None:
            (self.group / "cgroup.procs").write_text(str(os.getpid()))

    def wait_loaded(self, most_s: float = 300) -> dict:
        """`/status` once every route is loaded or need not be, or after `most_s`."""
        begun, there = time.monotonic(), len(ask("/routes")["routes"])
        while True:
            status = ask("/status")
            settled = sum(len(status["routes"][name]) for name in ("loaded", "left_out", "outdone", "failed"))
            if settled >= there or time.monotonic() - begun > most_s:
                return status
            time.sleep(2)

    @classmethod
    def kill_left(cls) -> None:
        """What a step that failed has left running."""
        for process in cls.begun:
            if process.poll() is None:
                process.kill()
                process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=120)


def predict(number: int) -> dict:
    return ask("/predict?top_k=1", "--form", f"image=@{IMAGES / f'{number}.png'}")


def right() -> tuple[int, str]:
    answers = [predict(number) for number in range(10)]
    routes = sorted({answer["route"] for answer in answers})
    return sum(answer["class"] == str(number) for number, answer in enumerate(answers)), ", ".join(routes)


def serve(report: Report) -> None:
    begun = time.monotonic()
    server = Server()
    report.step("/readyz", "200 with an empty cache", server.ready_s)
    status = server.wait_loaded()
    routes = status["routes"]
    report.data["status"] = status
    said = f"{len(routes['loaded'])} loaded, {len(routes['outdone'])} need not be"
    report.step("routes", said, time.monotonic() - begun, len(routes["loaded"]) > 1 and not routes["failed"] and not routes["left_out"])
    begun = time.monotonic()
    count, routes = right()
    report.step("/predict, ten images", f"{count} of 10 right on {routes}", time.monotonic() - begun, count >= 9)
    begun = time.monotonic()
    ask("/budget", "--request", "PUT", "--header", "Content-Type: application/json", "--data", '{"budget": "300kFLOPs"}')
    count, routes = right()
    report.step("a budget of 300kFLOPs", f"{count} of 10 right on {routes}", time.monotonic() - begun, count >= 8 and routes == "cnn-s")
    reading = ask("/status")["reading"]
    pressure = {name: value for name, value in reading.items() if "pressure" in name}
    report.data["reading"] = reading
    lacking = [name for name, value in pressure.items() if value is None]
    said = "without " + ", ".join(lacking) if lacking else ", ".join(sorted(pressure))
    report.step("/status: pressure", said, 0, bool(pressure) and not lacking)
    missing = sorted(name for name, value in reading.items() if value is None and "pressure" not in name)
    report.step("/status: not to be read here", ", ".join(missing), 0)
    begun = time.monotonic()
    code = server.stop()
    report.step("SIGTERM", f"exit status {code}", time.monotonic() - begun, code == 0)
    server = Server()
    report.step("/readyz", "200 with a full cache", server.ready_s)
    server.stop()


def squeeze(report: Report) -> None:
    begun = time.monotonic()
    server = Server(limit_mb=LITTLE_MB)
    reading = server.wait_loaded(120)["reading"]
    count, routes = right()
    events = dict(line.split() for line in (server.group / "memory.events").read_text().splitlines())
    peak_mb = int((server.group / "memory.peak").read_text()) // 2**20 if (server.group / "memory.peak").exists() else None
    left_mb = reading["memory_available_bytes"] / 1e6
    said = f"{count} of 10 right on {routes}; {left_mb:.0f} MB left of it, peak {peak_mb} MB, {events['oom_kill']} killed"
    code = server.stop()
    ok = count >= 8 and events["oom_kill"] == "0" and reading["memory_available_bytes"] < LITTLE_MB * 2**20 and code == 0
    report.step(f"a control group of {LITTLE_MB} MB", f"{said}; SIGTERM: exit status {code}", time.monotonic() - begun, ok)


def test(report: Report, name: str, files: tuple[str, ...], options: list[str]) -> bool:
    begun = time.monotonic()
    slug = re.sub("[^a-z]+", "-", name)
    results = Path(f"/tmp/{slug}.xml")
    command = [BIN / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", f"--junit-xml={results}", "--durations=10"]
    command += [f"tests/runtime/test_{file}.py" for file in files]
    command += ["-k", " and ".join(f"not {name}" for name in TIMED)]
    with (OUT / f"tests-{slug}.txt").open("w") as log:
        try:
            whole = [*map(str, command), *options]
            longest_s = max(1.0, report.data["job"]["minutes"] * 60 - LAST_S - (time.monotonic() - STARTED_S))
            rc = subprocess.run(whole, cwd=JOB / "suite", stdout=log, stderr=subprocess.STDOUT, timeout=longest_s, check=False).returncode
        except subprocess.TimeoutExpired:
            rc = None
    row = {"name": name, "files": list(files), "seconds": round(time.monotonic() - begun, 1), "rc": rc, "failures": [], "skipped": {}}
    row |= {"passed_count": 0, "failed_count": 0, "skipped_count": 0}
    if rc is not None and results.exists():
        for case in xml.etree.ElementTree.parse(results).iter("testcase"):
            kinds = {child.tag: child.get("message") or "" for child in case}
            if "failure" in kinds or "error" in kinds:
                row["failed_count"] += 1
                why = kinds.get("failure") or kinds.get("error") or ""
                row["failures"].append(f"{case.get('classname')}::{case.get('name')}: {why[:300]}")
            elif "skipped" in kinds:
                row["skipped_count"] += 1
                row["skipped"][kinds["skipped"]] = row["skipped"].get(kinds["skipped"], 0) + 1
            else:
                row["passed_count"] += 1
    report.data["tests"].append(row)
    said = "past its time" if rc is None else f"{row['passed_count']} passed, {row['failed_count']} failed, {row['skipped_count']} skipped"
    report.step(f"tests: {name}", said, row["seconds"], rc == 0)
    return rc == 0


def check(job: dict) -> bool:
    report = Report(job)
    report.data["install"] = json.loads((OUT / "install.json").read_text())
    begun = time.monotonic()
    (wheel,) = (JOB / "wheels").glob("restnet_runtime-*.whl")
    checked(BIN / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", wheel)
    checked(BIN / "pip", "check")
    report.step("pip install, pip check", f"{wheel.name}, Python {platform.python_version()}", time.monotonic() - begun)
    begun = time.monotonic()
    report.data["version"] = checked(BIN / "restnet-serve", "--version")
    report.step("restnet-serve --version", f"{os.sysconf('SC_PAGE_SIZE')} bytes a page", time.monotonic() - begun)
    print(report.data["version"], flush=True)
    for part in (serve, squeeze):
        begun = time.monotonic()
        try:
            part(report)
        except Exception as error:
            report.step(part.__name__, f"{type(error).__name__}: {error}", time.monotonic() - begun, ok=False)
            Server.kill_left()
    if job["tests"] != ["none"]:
        chosen = {"chosen": tuple(job["tests"])} if job["tests"] else TESTS
        for name, files in chosen.items():
            test(report, name, files, job["options"])
    report.data["passed"] = all(step["ok"] for step in report.data["steps"])
    report.data["memory_events"] = (GROUPS / "work/memory.events").read_text()
    report.keep()
    return report.data["passed"]


def main() -> int:
    job = json.loads((JOB / "job.json").read_text())
    if not (shell := Path("/bin/sh")).exists():  # packages are unpacked here, and nobody has asked which one is to be it
        shell.symlink_to("bash")
    if job["what"] == "install":
        install()
        return 0
    return 0 if check(job) else 1


if __name__ == "__main__":
    sys.exit(main())
