"""Directories that take their place when they are whole: nothing of a run that failed or was killed stays for ever."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from restnet_export.scratch import clear_leftovers, put_in_place, scratch_of

HOLD = """
import sys, time
from pathlib import Path
from restnet_export.scratch import scratch_of
with scratch_of(Path(sys.argv[1])) as path:
    (path / "half").write_text("x")
    print(path.name, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    return tmp_path / "out"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_takes_the_place_of_what_was_there(target: Path) -> None:
    for place in (target, target.with_name("new")):
        with scratch_of(place) as path:
            (path / "young").touch()
            assert path.parent == target.parent
            put_in_place(path, place)
        assert names(place) == ["young"]
    assert names(target.parent) == ["new", "out"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_nothing(target: Path, error: type[BaseException]) -> None:
    def half() -> None:
        with scratch_of(target) as path:
            (path / "half").touch()
            raise error

    with pytest.raises(error):
        half()
    assert (names(target.parent), names(target)) == (["out"], ["old"])


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_interrupted_between_the_two_renames(target: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def interrupted(self: Path, to: Path) -> Path:
        if to == target and ".old-" not in self.name:
            raise error
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(error), scratch_of(target) as path:
        put_in_place(path, target)
    assert (names(target.parent), names(target)) == (["out"], ["old"])


def test_what_a_killed_run_left_is_removed_by_the_next_but_not_what_a_living_one_writes(target: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        left = run.stdout.readline().strip()
        assert left.startswith(".out.")
        assert clear_leftovers(target) == []
        assert names(target.parent) == [left, "out"]
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    assert clear_leftovers(target) == [f"removed {target.parent / left}, left by a run that was killed"]
    assert (names(target.parent), names(target)) == (["out"], ["old"])


def test_a_bundle_that_a_killed_run_had_moved_away_comes_back(target: Path) -> None:
    target.rename(target.with_name(".out.old-0123abcd"))
    assert clear_leftovers(target) == [f"put {target} back, which a run that was killed had moved away"]
    assert (names(target.parent), names(target)) == (["out"], ["old"])
    target.with_name(".out.old-0123abcd").mkdir()
    assert clear_leftovers(target) == [f"removed {target.with_name('.out.old-0123abcd')}, left by a run that was killed"]


@pytest.mark.parametrize("name", [".out.d", ".out.0123abcde", ".out.0123ABCD", ".output.0123abcd", ".out.old-x", "out.0123abcd"])
def test_other_files_stay(target: Path, name: str) -> None:
    target.with_name(name).mkdir()
    assert clear_leftovers(target) == []
    assert name in names(target.parent)


def test_where_there_is_no_directory_there_is_nothing_to_clear(tmp_path: Path) -> None:
    assert clear_leftovers(tmp_path / "missing" / "out") == []
