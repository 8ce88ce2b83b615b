"""What became of squeezed servers: figures of each phase, floors, and the page."""

import math
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import Floor, Result, command, machine_line
from squeeze_client import Asked, p95_ms

WINDOW_S = 1.0
"""Of the sliding window that a 95th percentile is of."""
CALM_S = 1.0
"""For so long p95 must stay inside to count as inside again."""
INSIDE_S, UP_S = 3.0, 15.0
OURS = "restnet"
SQUEEZES = ("0.5 cores", "1 core", "a neighbour", "memory falls")


@dataclass(frozen=True)
class Phase:
    """Seconds since the beginning. alive, killed: of the server, and processes the kernel has killed, at its end."""

    name: str
    begin_s: float
    end_s: float
    alive: bool
    killed: int


@dataclass(frozen=True)
class Sample:
    """Of the server's group."""

    at_s: float
    used_bytes: int
    limit_bytes: int | None
    anonymous_bytes: int
    throttled_s: float


@dataclass
class Course:
    """One server under the plan. asked: with `due_s` since the beginning."""

    name: str
    asked: list[Asked]
    phases: list[Phase]
    samples: list[Sample]
    status: dict[str, Any]
    log: str
    accuracies: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls, name: str, asked: list[Asked], phases: list[Phase], samples: list[Sample], began: float, status: dict[str, Any], log: str
    ) -> "Course":
        moved = [replace(one, due_s=one.due_s - began) for one in asked if one.due_s >= began and one.due_s < began + phases[-1].end_s]
        return cls(name, moved, phases, samples, status, log)

    def within(self, begin_s: float, end_s: float) -> list[Asked]:
        due = [one.due_s for one in self.asked]
        return self.asked[bisect_left(due, begin_s) : bisect_left(due, end_s)]

    def window_p95_ms(self, at_s: float) -> float:
        """Of the requests that were due in the `WINDOW_S` before; what failed counts as endless."""
        found = [one.latency_ms if one.ok else 1e9 for one in self.within(at_s - WINDOW_S, at_s)]
        return p95_ms(found) if found else 0.0


def inside_again_s(course: Course, phase: Phase, budget_ms: float) -> float | None:
    """Seconds from a phase's beginning until p95 is inside the budget and stays there for `CALM_S`; 0 where it never left.

    `None`: it was not inside again by the phase's end.
    """
    times = [one.due_s + 1e-6 for one in course.within(phase.begin_s, phase.end_s)]
    late = [at_s for at_s in times if course.window_p95_ms(at_s) > budget_ms]
    if not late:
        return 0.0
    since = phase.begin_s
    for at_s in [*late, phase.end_s + CALM_S]:
        if at_s - since > CALM_S + WINDOW_S and since > phase.begin_s:
            break
        since = at_s
    if since >= phase.end_s - CALM_S:
        return None
    return since - phase.begin_s


def up_again_s(course: Course, phase: Phase, best: str) -> float | None:
    """Seconds from a phase's beginning until a request was answered by the best route or a better one; `None`: none was."""
    least = course.accuracies.get(best) or 0.0
    asked = course.within(phase.begin_s, phase.end_s)
    return next((one.due_s - phase.begin_s for one in asked if one.ok and (course.accuracies.get(one.route or "") or 0.0) >= least), None)


def row_of(course: Course, phase: Phase, budget_ms: float, best: str) -> dict[str, Any]:
    asked = course.within(phase.begin_s, phase.end_s)
    routes = [one.route for one in asked if one.ok]
    in_time = [one for one in asked if one.ok and one.latency_ms <= budget_ms]
    used = [one.used_bytes for one in course.samples if phase.begin_s <= one.at_s < phase.end_s]
    return {
        "policy": course.name,
        "phase": phase.name,
        "requests": len(asked),
        "failed": sum(not one.ok for one in asked),
        "late": sum(one.ok and one.latency_ms > budget_ms for one in asked),
        "p95_ms": p95_ms([one.latency_ms for one in asked]),
        "inside_again_s": inside_again_s(course, phase, budget_ms),
        "up_again_s": up_again_s(course, phase, best),
        "accuracy_mean": sum(course.accuracies[name or ""] or 0.0 for name in routes) / max(1, len(routes)),
        "accuracy_in_time": sum(course.accuracies[one.route or ""] or 0.0 for one in in_time) / max(1, len(asked)),
        "switches": sum(one != other for one, other in pairwise(routes)),
        "routes": len(set(routes)),
        "used_bytes": max(used, default=0),
        "alive": phase.alive,
        "killed": phase.killed,
    }


def best_route(course: Course) -> str:
    """The most accurate that answered in peace."""
    peace = course.phases[0]
    names = {one.route for one in course.within(peace.begin_s, peace.end_s) if one.route}
    return max(names, key=lambda name: course.accuracies[name] or 0.0)


HEADER = ("policy", "phase", "p95", "late", "failed", "inside again", "best again", "accuracy", "in time", "switches", "memory", "server")


def report(result: Result, courses: Sequence[Course], budget_ms: float) -> None:
    """Rows, cells and floors of all courses."""
    result.title = f"Live squeeze, budget {budget_ms:g} ms"
    result.header = HEADER
    ours: list[list[dict[str, Any]]] = []
    for course in courses:
        best = best_route(course)
        rows = [row_of(course, phase, budget_ms, best) for phase in course.phases]
        result.rows += rows
        result.cells += [_cells(row) for row in rows]
        if course.name.startswith(OURS):
            ours.append(rows)
            problems = sorted({one.problem for one in course.asked if one.problem})
            result.notes += [
                *([] if len(ours) > 1 else [f"best route in peace: {best}"]),
                *(f"problem: {problem}" for problem in problems[:5]),
            ]
    if ours:
        result.floors += _floors(ours)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["policy"],
        row["phase"],
        f"{row['p95_ms']:.0f} ms",
        f"{row['late'] / max(1, row['requests']):.1%}",
        str(row["failed"]),
        _seconds(row["inside_again_s"]),
        _seconds(row["up_again_s"]),
        f"{row['accuracy_mean']:.2%}",
        f"{row['accuracy_in_time']:.2%}",
        str(row["switches"]),
        f"{row['used_bytes'] / 1e6:.0f} MB",
        "killed" if not row["alive"] or row["killed"] else "alive",
    )


def _floors(rounds: list[list[dict[str, Any]]]) -> list[Floor]:
    """Of times the median of the rounds, of all else the worst."""
    again = f"p95 ({WINDOW_S:g} s window) inside the budget again"
    phases = list(zip(*rounds, strict=True))
    floors = [
        _soon(same[0]["phase"], again, [row["inside_again_s"] for row in same], INSIDE_S) for same in phases if same[0]["phase"] in SQUEEZES
    ]
    floors += [
        _soon(same[0]["phase"], "best route again", [row["up_again_s"] for row in same], UP_S)
        for same in phases
        if same[0]["phase"].endswith("again")
    ]
    rows = [row for one in rounds for row in one]
    failed = sum(row["failed"] for row in rows)
    floors.append(Floor("failed requests", "-", "0", f"{failed} of {sum(row['requests'] for row in rows)}", failed == 0))
    dead = any(row["killed"] or not row["alive"] for row in rows)
    floors.append(Floor("killed by the kernel", "-", "never", "killed" if dead else "never", not dead))
    return floors


def _soon(phase: str, what: str, found_s: list[float | None], most_s: float) -> Floor:
    """found_s: of each round; `None`: never."""
    times_s = [math.inf if one is None else one for one in found_s]
    middle_s = sorted(times_s)[len(times_s) // 2]  # of an even number the later one
    figure = _seconds(middle_s) if len(times_s) == 1 else f"{_seconds(middle_s)} (rounds: {', '.join(map(_seconds, times_s))})"
    return Floor(f"{phase}: {what}", "-", f"<= {most_s:g} s", figure, middle_s <= most_s)


def _seconds(value: float | None) -> str:
    return "never" if value is None or value == math.inf else f"{value:.1f} s"


INTRODUCTION = f"""\
A real `restnet-serve` runs in a control group of its own, and the group is squeezed: its CPU quota, a neighbour that burns
both cores, its memory limit. A client outside of the group sends JPEG images at even times, whatever became of those before, and counts
lateness from those times: what a user sees, HTTP, decoding and waiting included. The same is done to what one would have without us: the
large anchor, and the small one, each pinned (`--pin`). All these groups go before whatever else runs on the machine.

*inside again*: from the beginning of the phase until p95 over a sliding window of {WINDOW_S:g} s is inside the budget and stays there for
{CALM_S:g} s more; 0 where it never left. *best again*: until the first answer as accurate as the best of the peace. *late*: answers
over the budget. *accuracy*: mean over the answers of what was published for the route (the weights here are random); *in time*: the same,
with nothing for an answer that was late or failed.
Of times the median of the rounds is held against the floor, of failures all of them.
*memory*: the most that the group was charged with. *killed*: by the kernel's own
counter."""

SURPRISE = """## What the measurement taught

**The server was its own worst neighbour.** The first squeeze looked hopeless: in perfect peace 5 of 100 requests of ResNet-50 took three
times as long as the others. Nothing outside did that. What did was care for good predictions: a device that is never quite quiet
has its routes run in turns again and again, to learn how quick each is beside the others; a turn takes both cores for a third of a second,
and whatever request came meanwhile was late. And as the CPU quota fell, so did the number of threads, every route was loaded anew, and
each was measured anew, on half a core, which took most of what the quota had left; what was found was wrong by six times (224 ms
for a ResNet-18 that takes 36), and the controller believed it. Measuring is work like any other. Now it takes half a percent of the
time beside requests, one round at a time, and none while they are late or there is a quota; and after a change of
threads routes are *estimated* until a quiet moment comes: what is off alike for all of them, the slowdown takes in.

**A quota is not a slower processor.** Whoever has used up his share of 100 ms stands still until the next begins, so the latency of
*all* routes jumps at once, and no slowdown measured on one says anything of another: by it even the smallest looked hopeless, and the
controller went up and down between the ends. What a quota bears is arithmetic (requests x time x threads, and the processor time that each
takes beside its run, which is measured), so it is reckoned before a request is late (`restnet_runtime/quota.py`, `beside.py`), and the
quota is looked at four times a second.

**What the kernel calls inactive is not free.** In a group whose weights just do not fit they are read again and again, and all of their
pages are on the kernel's list of inactive ones. Counted as free page cache, they counted twice: as memory of the server and as memory that
it could still take. A process with 80 MB of weights under a limit of 60 MB seemed to have 100, so the controller stayed on a route that
did not fit, and requests took seconds. Page cache that is mapped is in use (`restnet_runtime/cgroups.py`).

**An outlier is not a slowdown.** On a device whose slowest requests take three times as long as the others, those are what raises an alarm.
What they showed was taken for the slowdown, and multiplied by the tail once more: predictions came out seven times too long, the route went
down to the smallest and up again a second later, eleven times in 8 seconds, in perfect peace too. And what a neighbour's time slices do
is no slowdown either: a run stands still for 40 ms whether it takes 5 ms or 30, so what has to be reckoned with is a sum and not a product
(`restnet_runtime/stalls.py`).

**A route between is not worth the way down.** While memory fell, a route just below the large one fitted for half a second; to keep it, the
smallest one was released, and a moment later there was no memory to load it into. It stays loaded now as long as memory may fall further.

The host of this machine is shared too: in bad moments even the small anchor is late in peace: compare within one run."""


def write_page(page: Path, result: Result, courses: Sequence[Course], picture: Path | None) -> None:
    from restnet_runtime.machine import describe_machine

    when = time.strftime("%Y-%m-%d", time.gmtime())
    lines = ["# The live squeeze", "", f"Written by `{command()}` on {when}, on {machine_line(describe_machine())}.", "", INTRODUCTION, ""]
    lines += [f"{result.notes[0][:1].upper()}{result.notes[0][1:]}.", ""]
    if picture:
        lines += [f"![latency, route and memory over time]({picture.name})", ""]
    lines += ["| floor | asked | figure | |", "|---|---|---|---|"]
    lines += [f"| {one.what} | {one.floor} | {one.figure} | {'met' if one.met else 'missed'} |" for one in result.floors]
    header = result.header[1:]
    for course in courses:
        lines += ["", f"## {course.name}", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        lines += [f"| {' | '.join(cells[1:])} |" for cells in result.cells if cells[0] == course.name]
        if course.name.startswith(OURS) and course.status:
            lines += ["", "Its own words for the switches (`/status`), the last twenty:", ""]
            lines += [f"- {one['before']} -> {one['after']}: {one['reason']}" for one in course.status["switches"][-20:]]
    lines += ["", SURPRISE]
    page.write_text("\n".join(lines) + "\n")
