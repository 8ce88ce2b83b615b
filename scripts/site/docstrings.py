"""For mkdocstrings: docstrings as this project writes them, brought into a form that Markdown shows well.

Here a docstring lists its parameters and fields as lines of `name:  what it is`, continued with deeper lines; Markdown would run them
together. They become a list.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

_FIELD = re.compile(r"((?:\w+)(?:, \w+)*): +(\S.*)")
_INDENTED = re.compile(r"\s+\S")


class Lists(griffe.Extension):
    """Turns runs of `name:  text` into Markdown lists."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = "\n".join(listed(obj.docstring.value.splitlines()))


def listed(lines: list[str]) -> Iterator[str]:
    """The same lines, with each run of fields as a list."""
    within = False
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is not None:
            if not within:
                yield ""
            names = ", ".join(f"`{name}`" for name in field[1].split(", "))
            yield f"- {names}: {field[2]}"
            within = True
        elif within and _INDENTED.match(line):
            yield f"  {line.strip()}"
        else:
            if within and line:
                yield ""
            within = False
            yield line
