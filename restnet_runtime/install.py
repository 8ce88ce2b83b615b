"""Installing: a bundle put in the place of another on disk, so that a crash or a loss of power at any point leaves one of the two.

    DEST                       a link to the bundle that is served
    DEST.versions/
      3f1c0a9b2d4e5f60/        a bundle, by the first 16 digits of its digest; never changed
      previous                 a link to what DEST led to before
      .previous                what that is to become, while DEST is exchanged
      .incoming-1a2b3c4d/      being copied
      .outgoing-1a2b3c4d/      being removed
      lock                     held (flock) by the run that installs

Files are copied and synced under another name, checked where they lie, renamed, and only then led to. What a killed run left is
removed by the next one.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.errors import BundleError, SignatureError, UpdateError
from restnet_runtime.graphs import check_graphs
from restnet_runtime.interface import breaks
from restnet_runtime.links import put_link, scratch_link, sync
from restnet_runtime.manifest import MANIFEST_FILE
from restnet_runtime.units import format_bytes
from restnet_runtime.versions import PENDING, PREVIOUS, is_held, previous_of, settle, versions_of

if TYPE_CHECKING:
    from restnet_runtime.signatures import Keyring

STEPS: Final = ("verified", "copying", "copied", "checked", "named", "remembered", "linked", "swapped", "adopted", "pruned")
"""What `install` tells of, in this order; `copying` after each piece, `adopted` where DEST was a directory."""
KEPT = 2
"""Versions beside the one that is served."""
_SIGNATURES = "signatures.json"
_PIECE_BYTES = 2**20
_SPARE_BYTES = 2**20


@dataclass(frozen=True)
class Installed:
    """bundle: what DEST leads to now. before: the directory that it led to, `None` where there was none. changed: it is another one."""

    bundle: Bundle
    before: Path | None
    changed: bool


def install(
    dest: Path,
    new: Path,
    *,
    keys: "Keyring | None" = None,
    other_interface: bool = False,
    keep: int = KEPT,
    on_step: Callable[[str], object] = lambda _: None,
) -> Installed:
    """Let `dest` lead to a copy of the bundle `new`.

    keys:             of which one must have signed it
    other_interface:  it may take other inputs, or have another number of classes, than what is there
    keep:             versions that stay beside it, the one before among them
    Raises `BundleError` for a bundle that must not be used, `UpdateError` where it cannot be put there, and `OSError`.
    """
    dest = _placed(dest)
    source = open_bundle(new, keys=keys)
    check_graphs(source)
    before = _open_current(dest)
    broken = None if before is None or other_interface else breaks(before.manifest, source.manifest)
    if broken is not None:
        raise UpdateError(f"{new}: {broken}, and their clients would not understand: --other-interface, if that is wanted")
    on_step("verified")
    with _locked(versions_of(dest)) as store:
        _clear(dest, store)
        version = _find(store, source, keys) or _copy(source, store, keys, on_step)
        led_to = _leads_to(dest)
        if led_to is not None and led_to == version.resolve():
            return Installed(open_bundle(version, keys=keys), led_to, changed=False)
        _lead(dest, store, version, on_step, remember=_worth_going_back_to(dest, source.digest))
        _prune(dest, store, keep)
        on_step("pruned")
    return Installed(open_bundle(version, keys=keys), led_to, changed=True)


def roll_back(dest: Path, *, keys: "Keyring | None" = None) -> Installed:
    """Let `dest` lead to what it led to before. Raises what `install` does."""
    dest = _placed(dest)
    with _locked(versions_of(dest), make=False) as store:
        _clear(dest, store)
        version, led_to = previous_of(dest), _leads_to(dest)
        if version is None:
            raise UpdateError(f"{dest}: there is no version before this one to go back to")
        target = version.resolve()
        try:
            bundle = open_bundle(target, keys=keys)
        except SignatureError:
            raise
        except BundleError as error:
            raise UpdateError(f"{target}, the version before, must not be used: {error}") from error
        _lead(dest, store, target, lambda _: None)
    return Installed(bundle, led_to, changed=True)


@dataclass(frozen=True)
class Version:
    """name: that of the bundle, or what is wrong with it. current, previous: DEST leads to it, or led to it before."""

    path: Path
    name: str
    current: bool
    previous: bool


def list_versions(dest: Path) -> list[Version]:
    """The versions of DEST, the oldest first. Raises `UpdateError` where nothing was installed."""
    dest = _placed(dest)
    store = versions_of(dest)
    if not store.is_dir():
        raise UpdateError(f"{store}: is not there: nothing was installed here")
    current, link = _leads_to(dest), previous_of(dest)
    previous = None if link is None else link.resolve()
    return [Version(path, _name_of(path), path.resolve() == current, path.resolve() == previous) for path in _versions(store)]


def _name_of(path: Path) -> str:
    try:
        return open_bundle(path, weights_later=True).manifest.name
    except BundleError as error:
        return str(error)


def _worth_going_back_to(dest: Path, digest: str) -> bool:
    """Is what is there whole, and another than the bundle of that digest, which may have been signed once more?"""
    try:
        return open_bundle(dest).digest != digest
    except BundleError:
        return False


def _lead(dest: Path, store: Path, version: Path, on_step: Callable[[str], object], *, remember: bool = True) -> None:
    """The exchange itself. What was there is remembered first, and becomes the version before only once DEST leads elsewhere."""
    led_to = _leads_to(dest)
    if remember and dest.is_symlink() and led_to is not None:
        inside = led_to.parent == store.resolve()
        put_link(scratch_link(store / PREVIOUS, led_to.name if inside else str(led_to)), store / PENDING)
    on_step("remembered")
    scratch = scratch_link(dest, f"{store.name}/{version.name}" if version.parent.resolve() == store.resolve() else str(version))
    sync(dest.parent)
    on_step("linked")
    try:
        old = put_link(scratch, dest)
    except (OSError, UpdateError):
        scratch.unlink(missing_ok=True)
        raise
    on_step("swapped")
    settle(dest, store)
    sync(store)
    if old is not None:
        _adopt(old, store)
        on_step("adopted")


def _copy(source: Bundle, store: Path, keys: "Keyring | None", on_step: Callable[[str], object]) -> Path:
    """A version: what the manifest lists, the manifest, and signatures; everything on disk when this returns."""
    names = [MANIFEST_FILE, *source.manifest.files, *([_SIGNATURES] if (source.path / _SIGNATURES).is_file() else [])]
    needed = sum(entry.bytes for entry in source.manifest.files.values()) + _SPARE_BYTES
    free = shutil.disk_usage(store).free
    if free < needed:
        raise UpdateError(f"{store}: has {format_bytes(free)} free, the bundle needs {format_bytes(needed)} beside those that are there")
    scratch = store / f".incoming-{secrets.token_hex(4)}"
    scratch.mkdir()
    try:
        for name in names:
            (scratch / name).parent.mkdir(exist_ok=True)
            _copy_file(source.path / name, scratch / name, on_step)
        for folder in {(scratch / name).parent for name in names} | {scratch}:
            sync(folder)
        on_step("copied")
        copied = open_bundle(scratch, keys=keys)
        if copied.digest != source.digest:
            raise BundleError(MANIFEST_FILE, f"of {source.path} was changed while it was copied")
        on_step("checked")
        version = _free_name(store, source.digest)
        scratch.rename(version)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    sync(store)
    on_step("named")
    return version


def _copy_file(source: Path, target: Path, on_step: Callable[[str], object]) -> None:
    with source.open("rb") as read, target.open("xb") as written:
        while piece := read.read(_PIECE_BYTES):
            written.write(piece)
            written.flush()
            on_step("copying")
        os.fsync(written.fileno())


def _find(store: Path, source: Bundle, keys: "Keyring | None") -> Path | None:
    """The same bundle with the same signatures, if it is there already, and whole."""
    signatures = _signatures_of(source.path)
    for path in sorted(store.glob(f"{source.digest[:16]}*")):
        try:
            if _signatures_of(path) == signatures and open_bundle(path, keys=keys).digest == source.digest:
                return path
        except (BundleError, OSError):  # damaged since: it is copied once more, under another name
            continue
    return None


def _signatures_of(path: Path) -> bytes | None:
    """The digest of a bundle is that of its manifest: signed once more it is the same, and another version all the same."""
    file = path / _SIGNATURES
    return file.read_bytes() if file.is_file() else None


def _free_name(store: Path, digest: str) -> Path:
    names = (f"{digest[:16]}{f'.{number}' if number else ''}" for number in range(1000))
    return next(store / name for name in names if not os.path.lexists(store / name))


def _adopt(path: Path, store: Path) -> None:
    """A bundle that was a directory in DEST's place becomes a version, and the one before."""
    try:
        name = _free_name(store, open_bundle(path, weights_later=True).digest)
    except BundleError:
        name = store / f"damaged-{secrets.token_hex(4)}"
    path.rename(name)
    sync(path.parent)
    put_link(scratch_link(store / PREVIOUS, name.name), store / PREVIOUS)


def _clear(dest: Path, store: Path) -> None:
    """Remove what killed runs left. Needs the lock: whoever holds it is the only one who writes here."""
    settle(dest, store)
    for path in [*store.glob(".incoming-*"), *store.glob(".outgoing-*"), *store.glob(".previous.link-*")]:
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
    for path in dest.parent.glob(f".{dest.name}.link-*"):
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():  # exchanged, and not moved away any more
            _adopt(path, store)


def _prune(dest: Path, store: Path, keep: int) -> None:
    """Keep what DEST leads to, what it led to before, what a server uses, and the latest others.

    A server that refuses one new bundle after the other serves the last good one all the while. What goes is renamed first: none is
    ever half there.
    """
    held = {_leads_to(dest), (store / PREVIOUS).resolve()}
    versions = [path for path in _versions(store) if path.resolve() not in held]
    spare = max(0, keep - 1)
    for path in versions[: len(versions) - spare]:
        if is_held(path):
            continue
        gone = store / f".outgoing-{secrets.token_hex(4)}"
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _versions(store: Path) -> list[Path]:
    """The oldest first."""
    found = [path for path in store.iterdir() if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")]
    return sorted(found, key=lambda path: (path.stat().st_ctime_ns, path.name))


def _placed(dest: Path) -> Path:
    """DEST as an absolute path, its own link not followed. Raises `UpdateError` where something is in its place that is no bundle."""
    dest = dest.parent.resolve() / dest.name
    if dest.name in ("", "..") or not dest.parent.is_dir():
        raise UpdateError(f"{dest}: there is no directory {dest.parent} to install into")
    if os.path.lexists(dest) and not dest.is_symlink() and not (dest / MANIFEST_FILE).is_file():
        raise UpdateError(f"{dest}: is in the way: it is no bundle and no link to one, so it is not replaced")
    if dest.is_mount():
        raise UpdateError(f"{dest}: something is mounted there, so no link can take its place: install to a name below it")
    return dest


def _leads_to(dest: Path) -> Path | None:
    """The directory that DEST is, or leads to."""
    return dest.resolve() if dest.exists() else None


def _open_current(dest: Path) -> Bundle | None:
    """What is there, as far as it can be read: a damaged bundle has no interface to keep to."""
    try:
        return open_bundle(dest, weights_later=True)
    except BundleError:
        return None


@contextmanager
def _locked(store: Path, make: bool = True) -> Iterator[Path]:
    if make:
        store.mkdir(exist_ok=True)
        sync(store.parent)
    elif not store.is_dir():
        raise UpdateError(f"{store}: is not there: nothing was installed here, so there is nothing to go back to")
    with (store / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UpdateError(f"{store}: another restnet-update is at work here") from error
        yield store
