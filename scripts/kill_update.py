"""Kill restnet-update at every step and see what restnet-serve finds: kill -9, and with --power a cut of power on a disk of its own.

    python scripts/kill_update.py                                  # kill -9 at each step, and at each change of the file system
    python scripts/kill_update.py --power --page docs/updates.md   # as root, with loop devices: also what an ext4 disk has at that moment

For a cut of power the bundles lie on ext4 in a file behind a loop device. At the step the process is killed and the file copied as it is:
what was written but not synced is still in memory then, and is missing from the copy, as it would be from a disk. The copy is mounted
(its journal is replayed) and served from.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from restnet_runtime.bundle import SHIPPED_BUNDLE, open_bundle
from restnet_runtime.errors import BundleError
from restnet_runtime.install import STEPS, install
from restnet_runtime.versions import versions_of

HEAD, END = "| killed when |", "each time DEST opened whole."
MEANING = {
    "verified": "the new bundle was checked, nothing is written",
    "copying": "a part of a file is copied",
    "copied": "all files are copied and synced",
    "checked": "the copy was checked",
    "named": "the copy has its name among the versions",
    "remembered": "the old version is noted down as the one before",
    "linked": "the new link lies beside the old one",
    "swapped": "the new link has taken its place",
    "adopted": "a directory that was in its place is a version now",
    "pruned": "older versions are removed",
}
KILLED = """
import os, signal, sys
from pathlib import Path
from restnet_runtime.install import install
dest, new, step, nth = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
seen = 0
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def at_step(name):
    global seen
    if name == step:
        seen += 1
        if seen == nth:
            die()
def at_change(event, arguments):
    global seen
    opens = event == "open" and arguments[1] in ("xb", "wb", "a")
    if (opens or event in ("os.rename", "os.mkdir", "os.symlink", "os.remove", "os.rmdir")) and step == "change":
        seen += 1
        if seen == nth:
            die()
sys.addaudithook(at_change)
install(dest, new, on_step=at_step)
"""


@dataclass(frozen=True)
class Row:
    """What was left. way: link or directory, whatever was in DEST's place before; fault: kill or power; served: old or new."""

    way: str
    fault: str
    step: str
    served: str
    leftovers: int
    next_update: str


def make_bundles(root: Path) -> tuple[Path, Path]:
    """The digits, and the same again with another digest."""
    old, new = root / "old", root / "new"
    for path, seed in ((old, 1), (new, 2)):
        shutil.copytree(SHIPPED_BUNDLE, path)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["provenance"]["seed"] = seed
        (path / "manifest.json").write_text(json.dumps(manifest))
    return old, new


def prepare(where: Path, old: Path, way: str) -> Path:
    """DEST in a new directory: a link as restnet-update makes it, or a plain directory as restnet-export writes it."""
    where.mkdir()
    dest = where / "mine"
    if way == "link":
        install(dest, old)
    else:
        shutil.copytree(old, dest)
    os.sync()
    return dest


def run_killed(dest: Path, new: Path, step: str, nth: int = 1) -> bool:
    """Whether it was killed: not where there is no such step."""
    code = subprocess.run([sys.executable, "-c", KILLED, str(dest), str(new), step, str(nth)], capture_output=True, check=False).returncode
    if code not in (0, -9):
        raise SystemExit(f"restnet-update at {step}: exit status {code}")
    return code == -9


def digest_served(dest: Path, cache: Path) -> str:
    """The digest of the bundle that a restnet-serve, started now, answers a prediction with."""
    command = [sys.executable, "-c", "import sys; from restnet_runtime.cli import serve; sys.exit(serve())"]
    process = subprocess.Popen(
        [*command, str(dest), "--port", "0", "--cache", str(cache)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = next((line.split()[-1] for line in process.stdout if line.startswith("listening on ")), None)
        if url is None:
            _, told = process.communicate()
            raise SystemExit(f"restnet-serve {dest} does not start: {told}")
        body = json.dumps({"inputs": [[[[0.0] * 8] * 8]]}).encode()
        request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
        deadline = time.monotonic() + 600
        while True:
            try:
                with urllib.request.urlopen(request, timeout=600) as answer:
                    assert "route" in json.load(answer)
                break
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        with urllib.request.urlopen(f"{url}/status", timeout=600) as answer:
            return str(json.load(answer)["bundle"]["digest"])
    finally:
        process.terminate()
        process.communicate()


def leftovers(dest: Path) -> list[str]:
    """What a killed run left: names that are neither a version nor `previous` nor the lock."""
    store = versions_of(dest)
    inside = [path.name for path in store.iterdir() if path.name.startswith(".")] if store.is_dir() else []
    return sorted([*inside, *(path.name for path in dest.parent.glob(f".{dest.name}.*"))])


def look(way: str, fault: str, step: str, dest: Path, old: Path, new: Path, cache: Path) -> Row:
    """Serve from what is left, then update once more."""
    names = {open_bundle(old).digest: "old", open_bundle(new).digest: "new"}
    served = names[digest_served(dest, cache)]
    left = len(leftovers(dest))
    install(dest, new)
    after = names[open_bundle(dest).digest]
    return Row(way, fault, step, served, left, "done" if after == "new" and not leftovers(dest) else "FAILED")


def steps_of(way: str) -> Sequence[str]:
    return [step for step in STEPS if way == "directory" or step != "adopted"]


def by_kill(root: Path, old: Path, new: Path, cache: Path) -> Iterator[Row]:
    for way in ("link", "directory"):
        for step in steps_of(way):
            dest = prepare(root / f"{way}-{step}", old, way)
            if not run_killed(dest, new, step):
                raise SystemExit(f"there is no step {step} for a {way}")
            yield look(way, "kill", step, dest, old, new, cache)


def by_power(root: Path, old: Path, new: Path, cache: Path) -> Iterator[Row]:
    for way in ("link", "directory"):
        for step in steps_of(way):
            place = root / f"power-{way}-{step}"
            place.mkdir()
            disk, after = place / "disk.ext4", place / "after.ext4"
            with disk.open("wb") as file:
                file.truncate(48 * 2**20)
            subprocess.run(["mkfs.ext4", "-q", str(disk)], check=True)
            with mounted(disk, place / "before") as mount:
                dest = prepare(mount / "bundles", old, way)
                if not run_killed(dest, new, step):
                    raise SystemExit(f"there is no step {step} for a {way}")
                shutil.copyfile(disk, after)  # what the disk has: nothing is synced or unmounted before
            with mounted(after, place / "after") as mount:
                yield look(way, "power", step, mount / "bundles" / "mine", old, new, cache)


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    at.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


def by_change(root: Path, old: Path, new: Path) -> int:
    """Kill before the first change of the file system, the second, ...: DEST opens each time, and the next update succeeds. How many."""
    count = 0
    for way in ("link", "directory"):
        for nth in range(1, 1000):
            dest = prepare(root / f"{way}-change-{nth}", old, way)
            if not run_killed(dest, new, "change", nth):
                break
            try:
                open_bundle(dest)
                install(dest, new)
            except BundleError as error:
                raise SystemExit(f"killed before change {nth} of a {way}: {error}") from error
            if open_bundle(dest).digest != open_bundle(new).digest or leftovers(dest):
                raise SystemExit(f"killed before change {nth} of a {way}: the next update left {leftovers(dest)}")
            count += 1
    return count


def render(rows: Sequence[Row], changes: int) -> str:
    """The table in Markdown."""
    faults = list(dict.fromkeys(row.fault for row in rows))
    titles = {"kill": "kill -9", "power": "power cut"}
    lines = ["| killed when | " + " | ".join(f"{titles[fault]}, DEST a {way}" for fault in faults for way in ("link", "directory")) + " |"]
    lines.append("|---|" + "---|" * 2 * len(faults))
    found = {(row.fault, row.way, row.step): row for row in rows}
    for step in STEPS:
        cells = []
        for fault in faults:
            for way in ("link", "directory"):
                row = found.get((fault, way, step))
                if row is None:
                    cells.append("")
                    continue
                left = f", {row.leftovers} left over" if row.leftovers else ""
                cells.append(f"{row.served}{left}" + ("" if row.next_update == "done" else f", next update {row.next_update}"))
        lines.append(f"| `{step}`: {MEANING[step]} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"{len(rows)} runs killed, {len(rows)} servers started on what was left and answered a prediction; {len(rows)} further updates "
        f"succeeded and left nothing over. Killed before each single change of the file system as well: "
        f"{changes} runs, each time DEST opened whole.",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--power", action="store_true", help="cut the power too: as root, with mkfs.ext4 and loop devices")
    parser.add_argument("--page", type=Path, help="put the table into this page, in place of the one that it has")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="restnet-kill-") as folder:
        root = Path(folder)
        old, new = make_bundles(root)
        rows = list(by_kill(root, old, new, root / "cache"))
        rows += by_power(root, old, new, root / "cache") if args.power else ()
        table = render(rows, by_change(root, old, new))
    print(table)
    if args.page is not None:
        text = args.page.read_text()
        placed = re.compile(f"{re.escape(HEAD)}.*?{re.escape(END)}", re.DOTALL)
        if not placed.search(text):
            raise SystemExit(f"{args.page} has no table that begins with {HEAD}")
        args.page.write_text(placed.sub(lambda _: table, text))
    return 0 if all(row.next_update == "done" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
