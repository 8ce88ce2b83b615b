"""Make docs/arm64.md from what `scripts/check-arm64` found in its machines.

python scripts/arm64_page.py build/arm64/reports/*.json
"""

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs/arm64.md"
KINDS = {"4k": "pages of 4 KB, Cortex-A72 as in a Raspberry Pi 4", "16k": "pages of 16 KB, Cortex-A76 as in a Raspberry Pi 5"}
HEAD = """# On an emulated 64-bit ARM machine

`make check-arm64` boots Debian 12 on `qemu-system-aarch64` with a kernel, memory, cgroup v2 and PSI of its own, without a network, installs
the aarch64 wheels of the device install as [install.md](install.md) says, and runs in it what follows. This page is its output, written
by `python scripts/arm64_page.py build/arm64/reports/*.json`.

**Everything here is emulated.** It says whether the runtime installs, serves and answers right on ARM. Seconds are what the emulator took,
on a machine that had other work: they say nothing of a device's speed.
"""
SKIPPED = """## Not run

Tests of the exporter and whatever imports torch; those marked slow; those of benchmarks, of the documentation and of what HTTP bodies
say; two that ask for milliseconds, of which an emulator needs many more (`TIMED` in `scripts/arm64/inside.py`). There is no CPU
frequency, no temperature and no firmware in such a machine: those sensors are tested on trees of files
(`tests/runtime/test_sensor_trees.py`).
"""


def cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def table(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell(one) for one in line) + " |" for line in lines) + "\n"


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]


def section(report: dict[str, Any]) -> str:
    job, install = report["job"], report["install"]
    parts = [f"## {_title(KINDS[job['pages']])}\n"]
    failed = [step["name"] for step in report["steps"] if not step["ok"]]
    ended = "finished" if "memory_events" in report else "was broken off; what is here is what was done by then"
    said = f"**Failed: {', '.join(failed)}.**" if failed else "Nothing failed."
    parts.append(f"{job['date']}, QEMU {job['qemu'].removeprefix('version ')}: the run {ended}. {said}")
    parts.append(f"\nThe device install from wheels: {install['install_s']:.0f} s emulated, {install['size_mb']} MB with pip.\n")
    parts.append("```text\n" + report.get("version", "").rstrip() + "\n```\n")
    rows = [(step["name"], step["said"], f"{step['seconds']:.0f} s", "yes" if step["ok"] else "**no**") for step in report["steps"]]
    parts.append(table(("step", "found", "emulated", "passed"), rows))
    for tests in report["tests"]:
        parts.append(f"{_title(tests['name'])}: {', '.join(f'`test_{name}.py`' for name in tests['files'])}.\n")
        lines = [f"- failed: {cell(one)}" for one in tests["failures"]]
        lines += [f"- skipped, {count}: {cell(why)}" for why, count in tests["skipped"].items()]
        if lines:
            parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def page(reports: list[dict[str, Any]]) -> str:
    return "\n".join([HEAD, *map(section, reports), SKIPPED])


def main(paths: list[str]) -> int:
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    reports = sorted((json.loads(Path(path).read_text()) for path in paths), key=lambda report: list(KINDS).index(report["job"]["pages"]))
    PAGE.write_text(page(reports))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
