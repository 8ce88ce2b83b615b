"""The commands as Markdown: what each says for --help, as tables."""

import contextlib
import html
import io
import os
import re
from collections.abc import Callable, Iterator
from unittest import mock

COMMANDS = ("restnet-export", "restnet-serve", "restnet-bench", "restnet-inspect", "restnet-sign", "restnet-update")
_OPTION = re.compile(r"  (\S.*?)(?:  +(\S.*))?")
_GROUP = re.compile(r"(\S.*):")


def render() -> str:
    """All commands, each under a heading of its own."""
    return "\n".join(_command(name, help_of(name)) for name in COMMANDS)


def help_of(name: str) -> str:
    """What `NAME --help` prints, without line breaks in what it says of an option."""
    printed = io.StringIO()
    with mock.patch.dict(os.environ, {"COLUMNS": "10000"}), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        _main(name)(["--help"])
    return printed.getvalue()


def _main(name: str) -> Callable[[list[str]], int]:
    if name == "restnet-export":
        from restnet_export.cli import main

        return main
    from restnet_runtime import cli, sign_cli, update_cli

    mains = {"restnet-serve": cli.serve, "restnet-bench": cli.bench, "restnet-inspect": cli.inspect}
    return {**mains, "restnet-sign": sign_cli.main, "restnet-update": update_cli.main}[name]


def _command(name: str, text: str) -> str:
    head, lines = [], iter(text.splitlines())
    next(lines)  # the usage, which the tables say again
    out = [f"## {name}", ""]
    groups: list[tuple[str, list[tuple[str, str]]]] = []
    for line in lines:
        if (group := _GROUP.fullmatch(line)) and (groups or group[1] in ("options", "positional arguments")):
            groups.append((group[1], []))
        elif groups and line.startswith(" " * 20):
            option, said = groups[-1][1][-1]
            groups[-1][1][-1] = (option, f"{said} {line.strip()}".strip())
        elif groups and (option := _OPTION.fullmatch(line)):
            groups[-1][1].append((option[1], option[2] or ""))
        elif not groups:
            head.append(line)
    out += _introduction(head)
    for title, options in groups:
        out += ["", f"**{title[0].upper()}{title[1:]}**", "", "| | |", "|---|---|"]
        out += [f"| {_code(option)} | {_text(said)} |" for option, said in options]
    return "\n".join(out) + "\n"


def _introduction(lines: list[str]) -> Iterator[str]:
    """Words as they are, indented lines as examples."""
    fenced = False
    for line in lines:
        if line.startswith("  ") != fenced:
            fenced = not fenced
            yield "```text" if fenced else "```"
        yield line.removeprefix("  ")
    if fenced:
        yield "```"


def _code(option: str) -> str:
    return f"<code>{html.escape(option).replace('|', '&#124;')}</code>"


def _text(said: str) -> str:
    return re.sub(r"([|*_<\[\]])", r"\\\1", said) if said else ""
