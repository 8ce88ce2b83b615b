"""Traces: what a device leaves to the server over time, and how many requests come. Made here, recorded, or written by hand.

A trace is a CSV with the header `t_s,cpu_share,memory_available_bytes,slowdown,requests_per_s`; each row holds until the
next one, the last one as long as the one before it.
"""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from restnet_runtime.errors import TraceError

COLUMNS = ("t_s", "cpu_share", "memory_available_bytes", "slowdown", "requests_per_s")
_MOST_REQUESTS = 5_000_000


@dataclass(frozen=True)
class Moment:
    """One row.

    t_s:                     seconds since the start
    cpu_share:               of the processor time that the profiles were measured with, what is left: 0.5 makes runs twice as long
    memory_available_bytes:  what this process may take, what it has included; infinite where it is not known
    slowdown:                how much longer runs take beside that: heat, memory bandwidth
    requests_per_s:          requests that arrive
    """

    t_s: float
    cpu_share: float
    memory_available_bytes: float
    slowdown: float
    requests_per_s: float

    @property
    def stretch(self) -> float:
        """How much longer than profiled a run takes."""
        return self.slowdown / self.cpu_share


@dataclass(frozen=True)
class Trace:
    """Rows in the order of time, from 0 on, at least one; it ends at `end_s`."""

    name: str
    moments: tuple[Moment, ...]
    end_s: float


def read_trace(path: Path) -> Trace:
    """The trace in a CSV file, named after it. Raises `TraceError` naming file, line and what is wrong, or `OSError`."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.reader(file))
    if not rows or tuple(cell.strip() for cell in rows[0]) != COLUMNS:
        raise TraceError(f"{path}: the first line must be {','.join(COLUMNS)}")
    moments: list[Moment] = []
    requests = 0.0
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        moment = _moment(f"{path}, line {number}", row)
        if not moments and moment.t_s != 0:
            raise TraceError(f"{path}, line {number}: t_s={moment.t_s:g}: the first row must be at 0")
        if moments and moment.t_s <= moments[-1].t_s:
            raise TraceError(f"{path}, line {number}: t_s={moment.t_s:g} must be above the {moments[-1].t_s:g} of the row before")
        requests += moments[-1].requests_per_s * (moment.t_s - moments[-1].t_s) if moments else 0
        if requests > _MOST_REQUESTS:
            raise TraceError(f"{path}, line {number}: more than {_MOST_REQUESTS:,} requests until here")
        moments.append(moment)
    if len(moments) < 2:
        raise TraceError(f"{path}: at least two rows are needed below the first line")
    last = moments[-1].t_s
    return Trace(path.stem, tuple(moments), last + (last - moments[-2].t_s))


def write_row(moment: Moment) -> str:
    """One line, without its end. Memory that is not known is left empty."""
    memory = "" if moment.memory_available_bytes == math.inf else f"{moment.memory_available_bytes:.0f}"
    return f"{moment.t_s:.3f},{moment.cpu_share:.4g},{memory},{moment.slowdown:.4g},{moment.requests_per_s:.6g}"


def write_trace(path: Path, moments: Iterable[Moment]) -> None:
    """As `read_trace` reads it."""
    path.write_text("\n".join([",".join(COLUMNS), *(write_row(moment) for moment in moments)]) + "\n", encoding="utf-8")


def _moment(where: str, row: list[str]) -> Moment:
    if len(row) != len(COLUMNS):
        raise TraceError(f"{where}: {len(row)} fields instead of {len(COLUMNS)} ({','.join(COLUMNS)})")
    values = [
        math.inf if name == "memory_available_bytes" and not text.strip() else _number(where, name, text)
        for name, text in zip(COLUMNS, row, strict=True)
    ]
    moment = Moment(*values)
    if moment.cpu_share == 0 or moment.slowdown == 0:
        raise TraceError(f"{where}: cpu_share and slowdown must be above 0")
    return moment


def _number(where: str, name: str, text: str) -> float:
    most = {"cpu_share": 1024.0, "slowdown": 1e6, "requests_per_s": 1e6, "t_s": 1e8, "memory_available_bytes": 1e18}[name]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise TraceError(f"{where}: {name}={text.strip()[:40]!r} is not a number from 0 to {most:g}")
    return value
