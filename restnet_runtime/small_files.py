"""Small files of `/proc` and `/sys`: read whole and quickly, and missing where they cannot be read or hold something else."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

_MOST_BYTES = 1 << 20


def read_text(path: str | Path) -> str | None:
    """The file's text without the white space around it; `None` where it cannot be read. Bytes that are no UTF-8 are kept escaped."""
    try:
        # Not open(): four times as long for a file of a few bytes, and some thirty of them are read every second.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    try:
        content = b""
        while (part := os.read(descriptor, 1 << 16)) and len(content) < _MOST_BYTES:
            content += part
        return os.fsdecode(content).strip()
    except OSError:  # a sensor that is asleep, a group that was removed
        return None
    finally:
        os.close(descriptor)


def read_integer(path: str | Path) -> int | None:
    """A whole number with or without a sign, else `None`."""
    return integer(read_text(path))


def integer(text: str | None) -> int | None:
    """Longer than any 64-bit number is garbled."""
    if text is None or len(text) > 21:
        return None
    digits = text[1:] if text.startswith("-") else text
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else None


def read_keyed(path: str | Path, *names: str) -> dict[str, int]:
    """Of lines of a name and a whole number, as in `cpu.stat` and `memory.stat`, those with these names; what is not there is left out."""
    found = {}
    for line in (read_text(path) or "").split("\n"):
        name, _, rest = line.partition(" ")
        if name in names and (value := integer(rest)) is not None:
            found[name] = value
    return found


def list_names(folder: str | Path) -> list[str]:
    """What a folder holds; nothing where there is none."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - iterdir() makes a path of each, which takes longer than to read the file
    except OSError:
        return []


def numbered(folder: Path, prefix: str) -> list[Path]:
    """The entries of a folder that are named `prefix` and a number, by number; none where there is no folder."""
    names = list_names(folder)
    numbers = sorted(int(name[len(prefix) :]) for name in names if re.fullmatch(re.escape(prefix) + "[0-9]{1,6}", name))
    return [folder / f"{prefix}{number}" for number in numbers]


class Turns:
    """True at the first asking and then at every `every`-th: for what changes slowly or takes long to read."""

    def __init__(self, every: int) -> None:
        self._turns = self._cycle(every)

    def __call__(self) -> bool:
        return next(self._turns)

    @staticmethod
    def _cycle(every: int) -> Iterator[bool]:
        while True:
            yield True
            for _ in range(every - 1):
                yield False
