import os
from pathlib import Path

import pytest

from restnet_runtime.small_files import Turns, integer, numbered, read_integer, read_keyed, read_text


def test_reads_what_is_there_without_white_space_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(" 42 \n")
    (tmp_path / "large").write_text("x" * 200_000)
    assert read_text(tmp_path / "a") == "42"
    assert read_text(tmp_path / "large") == "x" * 200_000
    assert read_text(tmp_path / "missing") is None
    assert read_text(tmp_path) is None
    assert read_text("a\0b") is None


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert not read_text(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("-7", -7), ("18446744073709551615", 2**64 - 1), ("9" * 21, None), ("", None), ("-", None), ("7.5", None), ("max", None)],
)
def test_whole_numbers(tmp_path: Path, text: str, number: int | None) -> None:
    (tmp_path / "n").write_text(f"{text}\n")
    assert integer(text) == number
    assert read_integer(tmp_path / "n") == number


@pytest.mark.parametrize("text", ["٣", "²", None])
def test_other_digits_are_no_numbers(text: str | None) -> None:
    assert integer(text) is None


def test_only_lines_of_a_known_name_and_a_number_count(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("a 1\nb x\nc\nd 2 3\ne 5\n")
    assert read_keyed(tmp_path / "stat", "a", "b", "c", "d") == {"a": 1}
    assert read_keyed(tmp_path / "missing", "a") == {}


def test_numbered_entries_come_by_number(tmp_path: Path) -> None:
    for name in ("zone10", "zone9", "zone", "zone1x", "other2"):
        (tmp_path / name).mkdir()
    assert [path.name for path in numbered(tmp_path, "zone")] == ["zone9", "zone10"]
    assert numbered(tmp_path / "missing", "zone") == []


def test_turns() -> None:
    due = Turns(3)
    assert [due() for _ in range(7)] == [True, False, False, True, False, False, True]
