"""Runs the blocks of a page in one directory and one shell, and compares what they print with what the page shows."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from blocks import Block, PageError, alike, commands_of, output_of

_PORT = re.compile(r"\b80[89]\d\b")


def run(page: Sequence[Block], folder: Path, environment: Mapping[str, str], timeout_s: float) -> list[Block]:
    """The blocks that ran, all that are to be run but those whose `if` said no.

    Ports 8080 to 8099 become free ones. What a page leaves running is ended. Raises `PageError` with what a block printed that failed.
    """
    inner = folder / ".blocks"
    inner.mkdir()
    with_ports = _ports()
    script = ["set -e -o pipefail"]
    for number, block in enumerate(page):
        if not block.runs:
            continue
        code = with_ports(commands_of(block.code) if block.language == "console" else block.code)
        if "file" in block.marks:
            (folder / block.marks["file"]).write_text(code)
            command = ":"
        elif block.language == "python":
            (inner / f"{number}.py").write_text(code)
            command = f"python {inner / f'{number}.py'}"
        else:
            (inner / f"{number}.sh").write_text(code)
            command = f". {inner / f'{number}.sh'}"
        where = f">{inner / f'{number}.out'} 2>{inner / f'{number}.err'}"
        script += [f"if {block.marks.get('if', 'true')}; then", f"  echo {number} >>{inner / 'begun'}", f"  {command} {where}", "fi"]
    (inner / "page.sh").write_text("\n".join(script) + "\n")
    failure = _execute(inner / "page.sh", folder, environment, timeout_s)
    begun = [int(line) for line in (inner / "begun").read_text().split()] if (inner / "begun").exists() else []
    if failure:
        said = "".join(file.read_text(errors="replace") for file in sorted(inner.glob(f"{begun[-1]}.[eo]*"))) if begun else ""
        block = page[begun[-1]] if begun else page[0]
        raise PageError(f"line {block.line}: {failure}\n{block.code}-- printed:\n{said[-3000:]}")
    for number in begun:
        _compare(page, number, (inner / f"{number}.out").read_text(), with_ports)
    return [page[number] for number in begun]


def _compare(page: Sequence[Block], number: int, printed: str, with_ports: Callable[[str], str]) -> None:
    block = page[number]
    following = page[number + 1] if number + 1 < len(page) else None
    if block.language == "console":
        shown, line = output_of(block.code), block.line
    elif following is not None and "output" in following.marks:
        shown, line = following.code, following.line
    else:
        return
    if shown.strip() and not alike(with_ports(shown), printed):
        raise PageError(f"line {line}: the page shows\n{shown}-- but this was printed:\n{printed[-3000:]}")


def _execute(script: Path, folder: Path, environment: Mapping[str, str], timeout_s: float) -> str:
    """Runs it, ends whatever it left running, and tells what went wrong, if anything did."""
    shell = subprocess.Popen(
        ["bash", str(script)],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        status = shell.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return f"has not ended after {timeout_s:.0f} s"
    finally:
        _end(shell)
    return f"exit status {status}" if status else ""


def _end(shell: subprocess.Popen[bytes]) -> None:
    """Its whole process group: kindly, so that servers clean up, then surely."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, sent)
        for _ in range(100):
            shell.poll()
            if not alive(shell.pid):
                return
            time.sleep(0.05)


def alive(group: int) -> list[int]:
    """The processes of a group that run; one that has ended counts no more, also where nobody has asked for its status yet."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _ports() -> Callable[[str], str]:
    taken: dict[str, str] = {}

    def free(found: re.Match[str]) -> str:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return taken.setdefault(found[0], str(listener.getsockname()[1]))

    return lambda code: _PORT.sub(free, code)
