"""The state of an unfinished run on disk: whole or not there, of the same settings or refused, of one run at a time."""

import resource
from pathlib import Path

import pytest
import torch

from restnet_export.runs import Run
from restnet_runtime.errors import ExportError, SpecError

IDENTITY = {"steps": "10", "images": "96 abc"}


def saved(out: Path, **state: object) -> None:
    with Run(out, 60) as run:
        run.begin(IDENTITY)
        run.save(state)


def test_a_state_comes_back(tmp_path: Path) -> None:
    saved(tmp_path / "out", tuner={"values": [torch.arange(3.0)], "steps_done": 4}, phase=1)
    with Run(tmp_path / "out", 60, resume=True) as run:
        run.begin(dict(reversed(IDENTITY.items())))
        assert run.state is not None
        assert (run.state["phase"], run.state["tuner"]["steps_done"]) == (1, 4)
        assert run.state["tuner"]["values"][0].tolist() == [0, 1, 2]
        run.finish()
    assert list(tmp_path.iterdir()) == []


def test_without_a_state_there_is_nothing_to_go_on_from_and_nothing_left(tmp_path: Path) -> None:
    with Run(tmp_path / "out", 60, resume=True) as run:
        run.begin(IDENTITY)
        assert run.state is None
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_is_not_lost(tmp_path: Path) -> None:
    saved(tmp_path / "out", phase=0)
    with pytest.raises(ExportError, match=r"out.run holds an unfinished run: go on with it \(--resume\), or remove that directory"):
        Run(tmp_path / "out", 60).__enter__()
    assert (tmp_path / "out.run" / "state.pt").exists()


def test_other_settings_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "out", phase=0)
    with (
        Run(tmp_path / "out", 60, resume=True) as run,
        pytest.raises(SpecError, match=r"other settings \(steps was 10, is 12; rule was not there, is all\): give those again"),
    ):
        run.begin({**IDENTITY, "steps": "12", "rule": "all"})
    assert (tmp_path / "out.run" / "state.pt").exists()


@pytest.mark.parametrize("content", [b"", b"no state", None])
def test_a_damaged_state_is_refused(tmp_path: Path, content: bytes | None) -> None:
    saved(tmp_path / "out", phase=0)
    path = tmp_path / "out.run" / "state.pt"
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with Run(tmp_path / "out", 60, resume=True) as run, pytest.raises(SpecError, match="cannot be read, remove it to begin anew"):
        run.begin(IDENTITY)


def test_a_state_with_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / "out.run").mkdir()
    torch.save({"identity": IDENTITY, "phase": Trap()}, tmp_path / "out.run" / "state.pt")
    with Run(tmp_path / "out", 60, resume=True) as run, pytest.raises(SpecError, match="cannot be read"):
        run.begin(IDENTITY)
    assert not (tmp_path / "sprung").exists()


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    with Run(tmp_path / "out", 60) as run, Run(tmp_path / "out", 60) as other:
        run.begin(IDENTITY)
        with pytest.raises(ExportError, match=r"out.run is in use by another run"):
            other.begin(IDENTITY)
        run.save({"phase": 0})
    assert (tmp_path / "out.run" / "state.pt").exists()


def test_a_full_disk_keeps_the_state_before(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Run(tmp_path / "out", 60) as run:
        run.begin(IDENTITY)
        run.save({"phase": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(ExportError, match=r"the state of the run cannot be written to .*out.run: "):
                run.save({"phase": 2, "tensor": torch.zeros(100_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "out.run").iterdir()] == ["state.pt"]
    assert torch.load(tmp_path / "out.run" / "state.pt", weights_only=True)["phase"] == 1


@pytest.mark.parametrize(("every_s", "due"), [(0.0, True), (3600.0, False)])
def test_a_state_is_due_when_the_time_has_come(tmp_path: Path, every_s: float, due: bool) -> None:
    with Run(tmp_path / "out", every_s) as run:
        run.begin(IDENTITY)
        assert run.due is due
