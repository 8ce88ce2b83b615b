"""Put the reports of docs/devices/*.json, which `restnet-bench --report` wrote, into the table of docs/devices.md, a row each.

    restnet-bench --report docs/devices/raspberry-pi-5        # on the device
    python scripts/devices_page.py                            # --check: only say whether the page is as it would be made

A virtual ARM board (QEMU's) has no speed of its own: its row says so, and shows none.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from restnet_runtime.device_report import FORMAT
from restnet_runtime.units import format_bytes, format_ms

ROOT = Path(__file__).resolve().parent.parent
PAGE, REPORTS = ROOT / "docs/devices.md", ROOT / "docs/devices"
VIRTUAL_BOARD = "linux,dummy-virt"
HEADER = (
    "device",
    "system",
    "ONNX Runtime",
    "bundle",
    "cheapest route",
    "most accurate route",
    "memory, all routes",
    "budgets",
    "measured",
)


def row(report: dict[str, Any]) -> tuple[str, ...]:
    """Cells of one report, in the order of `HEADER`. Raises `SystemExit` for a report of another format."""
    if report.get("format") != FORMAT:
        raise SystemExit(f"a report of format {report.get('format')!r}: this version makes and reads {FORMAT}")
    facts, routes = report["facts"], report["routes"]
    processor = facts["processor"]
    emulated = facts["board"] == VIRTUAL_BOARD
    device = f"{processor['name'] or 'unknown processor'}, {facts['cores']} cores, {format_bytes(facts['memory_bytes'])}"
    device = f"{facts['board']}: {device}" if facts["board"] and not emulated else device
    device += " (emulated: no speed is shown)" if emulated else ", virtual machine" if processor["virtual"] else ""
    cheapest, best = routes[0], max(routes, key=lambda route: (route["accuracy"] or 0.0, route["macs"]))
    quota = facts["cgroup"]["quota_cores"]
    return (
        device + (f", quota {quota:g} cores" if quota else ""),
        f"{facts['system']}, {facts['machine']}, {facts['python']}",
        ", ".join(f"{name.removeprefix('onnxruntime').strip('-') or 'CPU'} {version}" for name, version in facts["runtimes"].items()),
        f"{report['bundle']} ({report['digest'][:8]}), {len(routes)} routes",
        *("" if emulated else _speed(route) for route in (cheapest, best)),
        format_bytes(report["resident_bytes"]),
        "" if emulated else "; ".join(_outcome(one) for one in report["outcomes"]),
        f"{report['made']}, version {facts['version']}" + ("" if emulated else f", {_conditions(report['after'])}"),
    )


def _speed(route: dict[str, Any]) -> str:
    return f"`{route['name']}` {_share(route['accuracy'])}: {format_ms(route['median_ms'])}, p95 {format_ms(route['p95_ms'])}"


def _outcome(one: dict[str, Any]) -> str:
    met = "" if one["met_share"] is None else f", {one['met_share']:.0%} in time"
    return f"{one['budget']}: {_share(one['accuracy'])}{met}{'' if one['feasible'] else ' (nothing fits)'}"


def _conditions(after: dict[str, Any]) -> str:
    slowed = after["throttled"]
    told = "throttling unknown" if slowed is None else "throttled: " + ", ".join(slowed) if slowed else "not throttled"
    heat = "" if after["temperature_c"] is None else f", {after['temperature_c']:.0f} C"
    return f"load {after['load_1m']:.1f}, {told}{heat}"


def _share(accuracy: float | None) -> str:
    return "?" if accuracy is None else f"{accuracy:.1%}"


def table(reports: list[Path]) -> str:
    lines: list[tuple[str, ...]] = [HEADER, ("---",) * len(HEADER), *(row(json.loads(file.read_text())) for file in reports)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def page(text: str, rows: str) -> str:
    """The page with these rows in place of its table."""
    made, count = re.subn(r"^\| device \|.*\n(?:\|.*\n)*", lambda _: f"{rows}\n", text, count=1, flags=re.MULTILINE)
    if count != 1:
        raise SystemExit(f"{PAGE} has no table that begins with a column `device`")
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description="Reports of devices as a table.")
    parser.add_argument("reports", nargs="*", type=Path, help="print the rows of these instead")
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if the page is not as it would be made")
    args = parser.parse_args()
    if args.reports:
        print(table(args.reports))
        return 0
    old = PAGE.read_text()
    new = page(old, table(sorted(REPORTS.glob("*.json"))))
    if args.check:
        return 0 if new == old else 1
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
