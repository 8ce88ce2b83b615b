"""Known vulnerabilities of what constraints.txt pins, by pip-audit; a message where its database cannot be asked.

    python scripts/audit.py           # part of make lint

Ends with 1 where one is found. What is known to have some is asked about too: where it comes back clean, nobody has been asked.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parent.parent / "constraints.txt"
KNOWN = "jinja2==2.4.1"
ACCEPTED: dict[str, str] = {}
"""Vulnerabilities that do not concern this project, by name, each with the reason."""
_LIMIT_S = 120


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "known.txt"
        known.write_text(KNOWN + "\n")
        control = ask(known)
        if isinstance(control, str) or not control:
            why = control if isinstance(control, str) else "what is asked here knows of none, not even of old ones"
            print(f"audit: skipped, the database of vulnerabilities cannot be asked here: {why}")
            return 0
    found = ask(PINS)
    if isinstance(found, str):
        print(f"audit: skipped, {found}")
        return 0
    found = [one for one in found if one["id"] not in ACCEPTED]
    for one in found:
        print(f"audit: {one['package']}: {one['id']}, mended in {', '.join(one['fix_versions']) or 'no version'}")
    print(f"audit: {len(found)} known vulnerabilities in what constraints.txt pins")
    return int(bool(found))


def ask(requirements: Path) -> list[dict[str, Any]] | str:
    """The vulnerabilities of what a file pins, or why there is no answer."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        packages = json.loads(asked.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return f"no answer within {_LIMIT_S} s"
    except (ValueError, KeyError):
        return (asked.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1][:200]
    return [{"package": f"{one['name']} {one['version']}", **each} for one in packages for each in one.get("vulns", ())]


if __name__ == "__main__":
    sys.exit(main())
