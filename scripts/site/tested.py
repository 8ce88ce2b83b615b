"""Does the file that a `tested` mark names run what the block says? `tests/test_docs.py` asks for every such block.

A command is found where one line of the file has its words in that order, whatever else stands before, between and after: what the
page writes as `pip install NAME` a script may run as `"$bin/pip" install --quiet NAME`. Of a path the last name counts. `sudo`,
comments, the directory `.` and redirections do not. A page of the documentation counts with the blocks of it that run. What a file has
in other words, as a test in Python has, is quoted by the mark `as`: one text for each command that is not found.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from blocks import Block, PageError, blocks, commands_of

_COMMENT = re.compile(r"(?:^|(?<=\s))#.*$", re.MULTILINE)
_LEFT_OUT = re.compile(r"sudo|\.|&|\d?[<>].*|")


def words(line: str) -> list[str]:
    """Of a command, or of a line of a file: without quotes, and paths without their directories."""
    plain = (word.strip("(),;") for word in re.split(r"[\s\"']+", _COMMENT.sub("", line)))
    named = (word if "://" in word else word.rstrip("/").rpartition("/")[2] for word in plain)
    return [word for word in named if not _LEFT_OUT.fullmatch(word)]


def lines(code: str) -> list[str]:
    """Those that backslashes join are one; without comments and empty ones."""
    return [line for one in _COMMENT.sub("", re.sub(r"\\\n", " ", code)).splitlines() if (line := one.strip())]


def commands(block: Block) -> list[str]:
    code = commands_of(block.code) if block.language == "console" else block.code
    return [part.strip() for line in lines(code) for part in line.split("&&")]


def missing(block: Block, root: Path) -> list[str]:
    """The commands of a block marked `tested` that its files do not run, and quotations of `as` that they do not have.

    Raises `PageError` for a file that is not there, and where the quotations are not as many as the commands that need one.
    """
    texts = [_run_by(root / name.strip()) for name in block.marks["tested"].split(",")]
    ran = [words(line) for text in texts for line in lines(text)]
    wanting = [command for command in commands(block) if not any(_in_order(words(command), line) for line in ran)]
    if "as" not in block.marks:
        return wanting
    quoted = [" ".join(quotation.split()) for quotation in block.marks["as"].split("; ")]
    if len(quoted) != len(wanting):
        raise PageError(f"line {block.line}: {len(quoted)} quotations for {len(wanting)} commands that are not found: {wanting}")
    return [quotation for quotation in quoted if not any(quotation in " ".join(text.split()) for text in texts)]


def _run_by(path: Path) -> str:
    if not path.is_file():
        raise PageError(f"{path} is not there")
    if path.suffix != ".md":
        return path.read_text()
    return "\n".join(
        commands_of(block.code) if block.language == "console" else block.code for block in blocks(path.read_text()) if block.runs
    )


def _in_order(wanted: Sequence[str], found: Sequence[str]) -> bool:
    rest = iter(found)
    return bool(wanted) and all(word in rest for word in wanted)
