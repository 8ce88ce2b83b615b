"""Runs that are broken off, by Ctrl-C, by SIGTERM or by kill -9: what they leave, and how they go on. As a user runs them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from restnet_export.cli import main
from restnet_export.scratch import clear_leftovers
from restnet_runtime.bundle import Bundle, open_bundle

NETS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).amax((2, 3)))


def small():
    return Net(12)


def large():
    return Net(16)
"""
STEPS = (6, 9)
"""Of the phases of `FULL`."""
FULL = ("--finetune", "full", "--steps", "9", "--stitch-steps", "6", "--flip", "--shift", "1")
ENDLESS = ("--steps", "100000")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are rounded alike here and in the processes that are started."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command line that saves its state after every step, but for `--out DIR`."""
    root = tmp_path_factory.mktemp("broken-off")
    (root / "nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    x, y = rng.integers(60, 160, (100, 8, 8, 1)), np.arange(100) % 4
    for image, label in zip(x, y, strict=True):
        image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 50
    np.savez(root / "data.npz", x=x.astype(np.uint8), y=y)
    anchors = [f"python:{root / 'nets.py'}:{name}" for name in ("small", "large")]
    inputs = ["--data", f"npz:{root / 'data.npz'}", "--input", "8", "--mean", "0.5", "--std", "0.25"]
    rule = ["--rule", "sn-net", "--kernel", "1", "--batch", "16", "--checkpoint-minutes", "0", "--workers", "1"]
    return ["--anchors", *anchors, *inputs, *rule]


def started(line: list[str], *options: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "restnet_export", *line, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(path: Path, run: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.005)


def weights(out: Path) -> str:
    return open_bundle(out).manifest.files["weights.bin"].sha256


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(line: list[str], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """What a run comes to that nobody breaks off."""
    out = tmp_path_factory.mktemp("whole") / "whole"
    assert main([*line, *FULL, "--out", str(out), "--quiet"]) == 0
    return open_bundle(out)


def reached(state: Path) -> tuple[int, int]:
    """(phase, steps of it that are done) of a saved state; beyond the last phase once there is none any more."""
    try:
        saved = torch.load(state, weights_only=True)
    except FileNotFoundError:
        return len(STEPS), 0
    return saved["phase"], saved["tuner"]["steps_done"]


def killed(line: list[str], out: Path, phase: int) -> int:
    """Kill a run in that phase of tuning. Returns after which step its state was saved, of which there are more to come."""
    for _ in range(5):  # the steps are short: on a busy machine a run may be over before it is killed
        state = out.with_name(f"{out.name}.run") / "state.pt"
        with started(line, *FULL, "--out", str(out)) as run:
            while not state.exists() and run.poll() is None:
                time.sleep(0.005)
            while reached(state)[0] < phase:
                assert run.poll() in (None, 0), run.communicate()
            run.kill()
            assert run.wait() in (0, -signal.SIGKILL), run.communicate()
        at, steps = reached(state)
        if at == phase and 0 < steps < STEPS[phase]:
            assert names(out.parent) == [f"{out.name}.run"]
            return steps
        for path in out.parent.iterdir():
            shutil.rmtree(path)
    raise AssertionError(f"no run could be killed in phase {phase} of tuning")


def check_same(out: Path, whole: Bundle) -> None:
    assert weights(out) == whole.manifest.files["weights.bin"].sha256
    assert [route.accuracy for route in open_bundle(out).routes] == [route.accuracy for route in whole.routes]
    assert names(out.parent) == [out.name]


@pytest.mark.untraced
def test_killed_and_resumed_it_comes_to_the_same_end(
    line: list[str], whole: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cut"
    steps = killed(line, out, 0)

    again = [*line, *FULL, "--out", str(out)]
    capsys.readouterr()
    assert main(again) == 2
    assert f"{out}.run holds an unfinished run: go on with it (--resume), or remove that directory" in capsys.readouterr().err
    assert main([*again, "--steps", "8", "--seed", "1", "--resume"]) == 2
    told = capsys.readouterr().err
    assert (
        f"{out}.run was begun with other settings (seed was 0, is 1; tuning.steps was 9, is 8; tuning.seed was 0, is 1; and 1 more)" in told
    )

    assert main([*again, "--resume"]) == 0
    assert f"going on after step {steps} of 6 of stitch" in capsys.readouterr().out
    check_same(out, whole)


@pytest.mark.untraced
def test_killed_while_everything_is_tuned_and_resumed_it_comes_to_the_same_end(
    line: list[str], whole: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cut"
    steps = killed(line, out, 1)
    assert main([*line, *FULL, "--out", str(out), "--resume"]) == 0
    assert f"going on after step {steps} of 9 of full" in capsys.readouterr().out
    check_same(out, whole)


def test_ctrl_c_keeps_what_is_tuned_and_a_second_one_writes_nothing(line: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(line, *ENDLESS, "--out", str(out)) as run:
        wait_for(tmp_path / "out.run" / "state.pt", run)
        run.send_signal(signal.SIGINT)
        told, errors = run.communicate()
    assert run.returncode == 0
    assert "stopping: the best so far is scored and written; Ctrl-C again writes nothing" in errors
    assert "fine-tuning, stitch stopped after step " in told
    assert told.endswith(f"wrote {out}\n")
    assert names(tmp_path) == ["out"]
    first = open_bundle(out).digest

    with started(line, *ENDLESS, "--out", str(out)) as run:
        wait_for(tmp_path / "out.run" / "state.pt", run)
        run.send_signal(signal.SIGINT)
        assert run.stderr is not None
        while "stopping:" not in run.stderr.readline():
            pass
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate()
    assert run.returncode == 130
    assert errors.splitlines()[-1] == "restnet-export: interrupted, no bundle was written; --resume goes on"
    assert open_bundle(out).digest == first
    assert names(tmp_path) == ["out", "out.run"]


def test_killed_while_latencies_are_measured_it_leaves_what_the_next_run_removes(line: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(line, "--steps", "1", "--latency", "--out", str(out)) as run:
        while not (measured := list(tmp_path.glob(".out.*/out/manifest.json"))):
            assert run.poll() is None, run.communicate()
            time.sleep(0.005)
        assert clear_leftovers(out) == []  # in use
        run.kill()
    assert clear_leftovers(out) == [f"removed {measured[0].parents[1]}, left by a run that was killed"]
    assert names(tmp_path) == ["out.run"]


@pytest.mark.slow
def test_sigterm_leaves_the_state_alone(line: list[str], tmp_path: Path) -> None:
    with started(line, *ENDLESS, "--out", str(tmp_path / "out")) as run:
        wait_for(tmp_path / "out.run" / "state.pt", run)
        run.terminate()
        _, errors = run.communicate()
    assert run.returncode == 143
    assert errors.splitlines()[-1] == "restnet-export: interrupted, no bundle was written; --resume goes on"
    assert (names(tmp_path), names(tmp_path / "out.run")) == (["out.run"], ["state.pt"])


def test_processes_that_are_given_different_things_say_so_and_end(line: list[str], tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1]), "WORLD_SIZE": "2"}
    options = [("--seed", str(rank), "--out", str(tmp_path / "out")) for rank in range(2)]
    runs = [started(line, *given, RANK=str(rank), **address) for rank, given in enumerate(options)]
    try:
        ends = [(run.communicate(timeout=300)[1].splitlines(), run.returncode) for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.communicate()
    told = "restnet-export: processes that tune together must be given the same: seed is 0 on rank 0, 1 on rank 1"
    assert [(told in errors, status) for errors, status in ends] == [(True, 2)] * 2, ends
    assert names(tmp_path) == []


@pytest.mark.slow
def test_two_processes_make_what_one_makes_of_batches_twice_as_large(line: list[str], tmp_path: Path) -> None:
    options = ("--finetune", "full", "--steps", "8", "--stitch-steps", "4", "--loss", "features=0")
    assert main([*line, *options, "--batch", "32", "--out", str(tmp_path / "one"), "--quiet"]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "restnet_export"]
    done = subprocess.run([*command, *line, *options, "--out", str(tmp_path / "two")], capture_output=True, text=True, check=True)
    assert done.stdout.count("wrote ") == 1
    assert names(tmp_path) == ["one", "two"]
    one, two = (np.fromfile(tmp_path / name / "weights.bin", np.float32) for name in ("one", "two"))
    np.testing.assert_allclose(two, one, atol=1e-4)
    assert [route.accuracy for route in open_bundle(tmp_path / "one").routes] == [
        pytest.approx(route.accuracy, abs=0.051) for route in open_bundle(tmp_path / "two").routes
    ]


def torchrun(line: list[str], *options: str) -> subprocess.Popen[str]:
    """Two processes that tune together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "restnet_export", *line, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def whole_of_two(line: list[str], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("two") / "whole"
    with torchrun(line, *FULL, "--out", str(out)) as run:
        errors = run.communicate()[1]
    assert run.returncode == 0, errors
    return open_bundle(out)


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "rank"), [(0, "1"), (1, "0")])
def test_two_processes_of_which_one_is_killed_come_to_the_same_end(
    line: list[str], whole_of_two: Bundle, tmp_path: Path, phase: int, rank: str
) -> None:
    """torchrun ends the other one; started again with --resume, both go on from the state that the first one saved."""
    out = tmp_path / "cut"
    state = out.with_name(f"{out.name}.run") / "state.pt"
    with torchrun(line, *FULL, "--out", str(out)) as run:
        wait_for(state, run)
        while torch.load(state, weights_only=True)["phase"] < phase:
            assert run.poll() is None, run.communicate()
        (mine,) = (child for child in psutil.Process(run.pid).children() if child.environ().get("RANK") == rank)
        mine.kill()
        errors = run.communicate()[1]
    assert run.returncode != 0
    assert "Signal 9 (SIGKILL)" in errors
    assert names(tmp_path) == ["cut.run"]
    left = torch.load(state, weights_only=True)
    assert (left["phase"], 0 < left["tuner"]["steps_done"] < 9) == (phase, True)

    with torchrun(line, *FULL, "--out", str(out), "--resume") as run:
        told, errors = run.communicate()
    assert run.returncode == 0, errors
    assert f"going on after step {left['tuner']['steps_done']} of " in told
    check_same(out, whole_of_two)
