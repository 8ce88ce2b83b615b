"""Download the wheels of the device install for each Python and processor it is offered for, and say what they come to.

    python scripts/wheels.py [--python 3.10 3.11 3.12 3.13] [--machine x86_64 aarch64] [--ends pinned newest lowest]
                             [--extra sign] [--keep DIR]

Asks pip with --only-binary=:all:, so a dependency without a wheel for one of them fails the run: no device is to need a compiler. Prints
a row for each: what is downloaded, what it is unpacked (what lies on the disk before Python compiles it), and the oldest glibc that
all of them accept, which tells the oldest system. Exits 1 if a combination cannot be had. pip evaluates the markers of dependencies for the
interpreter that it runs on, so `python3.X` is used where it is on the path; where it is not, the row says so.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ends import ENDS, constraints, dependencies

PYTHONS, MACHINES = ("3.10", "3.11", "3.12", "3.13"), ("x86_64", "aarch64")
GLIBC = range(17, 35)
"""Minor versions of glibc 2 that are taken: 2.34 is older than what Debian 12, Raspberry Pi OS 12 and Ubuntu 22.04 have."""


def interpreter(python: str) -> tuple[str, bool]:
    """A `python3.X` that runs and has pip, or this one; and whether it is the one asked for."""
    for name in (f"python{python}", sys.executable):
        path = shutil.which(name)
        if path is None:
            continue
        asked = [path, "-c", "import sys, pip; print('%d.%d' % sys.version_info[:2])"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        if told == python or path == shutil.which(sys.executable):
            return path, told == python
    raise SystemExit("this Python has no pip")


def download(python: str, machine: str, end: str, folder: Path, extras: Sequence[str]) -> subprocess.CompletedProcess[str]:
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in reversed(GLIBC)] + [f"manylinux2014_{machine}"]
    limits = folder / "constraints"
    limits.write_text("\n".join(constraints(end, python, machine)) + "\n")
    command = [interpreter(python)[0], "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", python]
    command += [word for name in (f"cp{python.replace('.', '')}", "abi3", "none") for word in ("--abi", name)]
    command += [word for name in platforms for word in ("--platform", name)]
    command += ["--constraint", str(limits), "--dest", str(folder / "wheels")]
    command += [f"{one.name}{one.specifier}" for one in dependencies(python, machine, extras)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def glibc_minor(wheel: Path) -> int:
    """The oldest glibc 2.N that the wheel accepts; 0 for one that is pure Python."""
    named = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", wheel.name)]
    named += [17] if "manylinux2014" in wheel.name else []
    named += [12] if "manylinux2010" in wheel.name else []
    return min(named, default=5 if "manylinux1_" in wheel.name else 0)


def unpacked_bytes(wheel: Path) -> int:
    with zipfile.ZipFile(wheel) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def main() -> int:
    parser = argparse.ArgumentParser(description="Wheels of the device install for every Python and processor.")
    parser.add_argument("--python", nargs="+", default=PYTHONS, metavar="3.X")
    parser.add_argument("--machine", nargs="+", default=MACHINES, choices=MACHINES)
    parser.add_argument("--ends", nargs="+", default=["pinned"], choices=ENDS)
    parser.add_argument("--extra", nargs="+", default=[], help="with what an extra asks for too, such as sign")
    parser.add_argument("--most", type=float, default=250.0, metavar="MB", help="that they may be unpacked (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the wheels below it, in DIR/END-PYTHON-MACHINE")
    args = parser.parse_args()
    failed = []
    print(f"{'':7} {'python':7} {'machine':8} {'wheels':>6} {'download':>9} {'unpacked':>9}  glibc  markers of")
    for end in args.ends:
        for python in args.python:
            for machine in args.machine:
                with tempfile.TemporaryDirectory() as folder:
                    place = Path(folder) if args.keep is None else args.keep / f"{end}-{python}-{machine}"
                    place.mkdir(parents=True, exist_ok=True)
                    done = download(python, machine, end, place, args.extra)
                    wheels = sorted((place / "wheels").glob("*")) if done.returncode == 0 else []
                    odd = [one.name for one in wheels if one.suffix != ".whl"]
                    row = f"{end:7} {python:7} {machine:8}"
                    if done.returncode != 0 or odd:
                        failed.append(row)
                        print(f"{row} FAILED: {' '.join(odd) or done.stderr.strip()[-600:]}", flush=True)
                        continue
                    size, unpacked = sum(one.stat().st_size for one in wheels) / 1e6, sum(map(unpacked_bytes, wheels)) / 1e6
                    minor = max(map(glibc_minor, wheels))
                    own = python if interpreter(python)[1] else "this Python"
                    print(f"{row} {len(wheels):6} {size:6.1f} MB {unpacked:6.1f} MB   2.{minor}  {own}", flush=True)
                    if unpacked > args.most:
                        failed.append(row)
                        print(f"{row} FAILED: more than {args.most:g} MB")
    print(f"{len(failed)} failed" if failed else "every combination has its wheels")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
