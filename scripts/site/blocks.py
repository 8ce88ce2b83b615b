"""The fenced blocks of a page of Markdown: which are commands, and what is to become of them. `tests/test_docs.py` runs them.

Every block names its language. Blocks in `sh`, `console` (commands behind `$ `, and what they print) and `python` are run, in order,
all of a page in one directory and one shell, unless a comment right above says otherwise:

    <!-- needs: WHAT -->     not run: needs hardware or a program that the test's machine may lack
    <!-- tested: FILE, ... -->  not run here: these files of the repository run the same, see `tested.py`
    <!-- as: TEXT; ... -->   beside `tested`: how the files say what they say in other words
    <!-- if: COMMAND -->     run where this command succeeds
    <!-- file: NAME -->      python that the reader saves under this name, for a later block to run
    <!-- output -->          a block that is not run: what the one before it prints, see `alike`
    <!-- prepare: COMMANDS -->  anywhere: run too, for what the reader has and an empty directory has not
    <!-- slow -->            anywhere: the page takes minutes
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

RUN = ("sh", "console", "python")
SHOWN = ("text", "json", "yaml", "toml", "ini", "dockerfile")
KEYS = ("needs", "tested", "as", "if", "file", "output", "prepare", "slow")

_COMMENT = re.compile(r"<!-- (\w+)(?:: *(.*?))? *-->", re.DOTALL)
_NUMBER = re.compile(r"(?<![\[\w.-])\d(?:[\d,.]*\d)?(?:e[-+]?\d+)?")
"""Not the numbers in the name of a route, as in `[0-1]`."""
_UNIT = {"us": "s", "ms": "s", "kB": "B", "MB": "B", "GB": "B", "KMACs": "MACs", "MMACs": "MACs", "GMACs": "MACs"}


@dataclass(frozen=True)
class Block:
    """What stands between two fences, or in a `prepare` comment.

    line:   of the page, where it begins
    marks:  the comments right above it, by their key
    """

    line: int
    language: str
    code: str
    marks: Mapping[str, str]

    @property
    def runs(self) -> bool:
        """Is it to be run, as far as its marks say?"""
        return self.language in RUN and not {"needs", "tested"} & self.marks.keys()


class PageError(Exception):
    """A page whose blocks cannot be read, or do not do what the page says."""


def blocks(text: str) -> list[Block]:
    """All blocks of a page, in order. Raises `PageError` for a fence without a language or a mark that nobody knows."""
    found: list[Block] = []
    marks: dict[str, str] = {}
    lines, place = text.splitlines(), 0
    while place < len(lines):
        line, at = lines[place], place + 1
        place += 1
        if line.startswith("<!--"):
            while "-->" not in line and place < len(lines):
                line, place = f"{line}\n{lines[place]}", place + 1
            if (comment := _COMMENT.fullmatch(line)) is None or comment[1] not in KEYS:
                if place < len(lines) and lines[place].lstrip().startswith("```"):
                    raise PageError(f"line {at}: {line!r} is no mark: there are {', '.join(KEYS)}")
            elif comment[1] == "prepare":
                found.append(Block(at, "sh", comment[2] + "\n", {}))
            elif comment[1] != "slow":
                marks[comment[1]] = comment[2] or ""
        elif fence := re.fullmatch(r"( *)```(\w*)", line):
            indent, language, code = fence[1], fence[2], []
            while place < len(lines) and lines[place].strip() != "```":
                code.append(lines[place].removeprefix(indent))
                place += 1
            place += 1
            if language not in RUN + SHOWN:
                raise PageError(f"line {at}: a block in {language or 'no language'!r}: there are {', '.join(RUN + SHOWN)}")
            found.append(Block(at, language, "\n".join(code) + "\n", marks))
            marks = {}
        elif line.strip() and marks:
            raise PageError(f"line {at}: the mark above is of no block")
    return found


def slow(text: str) -> bool:
    """Does the page say that it takes minutes?"""
    return "\n<!-- slow -->\n" in text


def commands_of(session: str) -> str:
    """The commands of a `console` block."""
    kept, more = [], False
    for line in session.splitlines():
        if line.startswith("$ ") or more:
            kept.append(line.removeprefix("$ "))
            more = line.endswith("\\")
    return "\n".join(kept) + "\n"


def output_of(session: str) -> str:
    """What a `console` block shows besides its commands."""
    kept, more = [], False
    for line in session.splitlines():
        if line.startswith("$ ") or more:
            more = line.endswith("\\")
        else:
            kept.append(line)
    return "\n".join(kept) + "\n"


def alike(shown: str, printed: str) -> bool:
    """Is this what was shown? Numbers may differ, and the prefix of a unit; `...` stands for anything."""
    pattern = r"\s*".join(".*?" if word == "..." else re.escape(word) for word in _words(shown))
    return re.fullmatch(rf"\s*{pattern}\s*", " ".join(_words(printed)), re.DOTALL) is not None


def _words(text: str) -> Iterator[str]:
    for word in re.sub(r"-{3,}", "", text).split():
        yield from (_UNIT.get(part, part) for part in re.findall(r"\.\.\.|\w+|[^\w\s]", _NUMBER.sub("0", word)))
