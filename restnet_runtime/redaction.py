"""Redaction: messages without the paths of this device, for what is given away."""

import re
from collections.abc import Iterable
from pathlib import Path

_LEFT_OUT = "..."
_PATH = re.compile(
    r"""
    (?<=')(?:\.\.\.)?/[^']*(?=') | (?<=")(?:\.\.\.)?/[^"]*(?=")    # in quotes, as Python and ONNX Runtime write most: spaces belong to it
    | (?:\.\.\.|(?<![\w./]))/[^\s'",;()<>]*
    """,
    re.VERBOSE,
)
_TELLING = 3
"""A path of so many names, or more, ends in a file's; that of a shorter one may be a user's."""


def without_paths(text: str, known: Iterable[Path] = ()) -> str:
    """`text` with every path of this device cut down to what it ends in, as in `.../weights.bin`.

    known: places that messages may speak of, left out whatever characters are in their names, as is the home directory. Of others, a path
    is what begins with something that there is in `/`: nodes of a graph (`/layer1/Conv`) and files of who built a library stay
    """
    for place in sorted({form for one in (*known, *_home()) for form in _forms(one)}, key=len, reverse=True):
        text = re.sub(rf"(?<![\w./-]){re.escape(place)}(?![\w-])", _LEFT_OUT, text)
    return _PATH.sub(lambda match: _cut(match[0]), text)


def _home() -> list[Path]:
    try:
        return [Path.home()]
    except RuntimeError:  # nobody knows it
        return []


def _forms(place: Path) -> set[str]:
    """As it was given, and as it is; none that is but one name."""
    return {str(form) for form in (place, place.absolute(), place.resolve()) if len(form.parts) > 1}


def _cut(path: str) -> str:
    inside, names = path.startswith(_LEFT_OUT), [name for name in path.removeprefix(_LEFT_OUT).split("/") if name]
    if not inside and not (names and Path("/", names[0]).exists()):
        return path
    return f"{_LEFT_OUT}/{names[-1]}" if names and (inside or len(names) >= _TELLING) else _LEFT_OUT
