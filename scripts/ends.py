"""The two ends of the ranges in pyproject.toml, and what constraints.txt has between, as constraints for pip.

    python scripts/ends.py lowest > constraints-lowest.txt
    python scripts/ends.py pinned --python 3.13

lowest: each dependency of the device install at its lower bound; newest: no constraint; pinned: constraints.txt. Markers are evaluated for
the Python asked for (default: this one), because pip evaluates them for the interpreter that it runs on.
"""

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]

try:
    from packaging.requirements import Requirement
except ImportError:  # pip brings it along
    from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
ENDS = ("lowest", "pinned", "newest")


def dependencies(python: str, machine: str = platform.machine(), extras: Sequence[str] = ()) -> list[Requirement]:
    """Of the device install and of extras, those whose markers hold there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    unknown = [extra for extra in extras if extra not in project["optional-dependencies"]]
    if unknown:
        raise SystemExit(f"there is no extra {unknown[0]}: there are {', '.join(project['optional-dependencies'])}")
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return _holding([Requirement(line) for line in lines], python, machine)


def constraints(end: str, python: str, machine: str = platform.machine()) -> list[str]:
    """Lines `name==version`."""
    if end == "newest":
        return []
    if end == "lowest":
        return [f"{one.name}=={_lower(one)}" for one in dependencies(python, machine)]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return [f"{one.name}{one.specifier}" for one in _holding([Requirement(line) for line in lines], python, machine)]


def _holding(requirements: list[Requirement], python: str, machine: str) -> list[Requirement]:
    there = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine, "extra": ""}
    return [one for one in requirements if one.marker is None or one.marker.evaluate(there)]


def _lower(requirement: Requirement) -> str:
    bounds = [one.version for one in requirement.specifier if one.operator in (">=", "==")]
    if len(bounds) != 1 or not any(one.operator in ("<", "==") for one in requirement.specifier):
        raise SystemExit(f"{requirement} in pyproject.toml: give a range with both ends, as >=1.2,<2")
    return bounds[0]


def main() -> int:
    parser = argparse.ArgumentParser(description="Constraints for one end of the ranges in pyproject.toml.")
    parser.add_argument("end", choices=ENDS)
    parser.add_argument("--python", default=".".join(map(str, sys.version_info[:2])), help="as 3.12 (default: this one)")
    args = parser.parse_args()
    print(*constraints(args.end, args.python), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
