"""Versions: where `restnet-update` keeps the bundles that a path has led to (`install.py`)."""

from pathlib import Path

PREVIOUS = "previous"


def versions_of(dest: Path) -> Path:
    """Where the versions of DEST lie."""
    return dest.with_name(f"{dest.name}.versions")


def previous_of(dest: Path) -> Path | None:
    """The bundle that DEST led to before, where there is one that it does not lead to now."""
    previous = versions_of(dest.absolute()) / PREVIOUS
    if not previous.is_dir() or (dest.exists() and previous.resolve() == dest.resolve()):
        return None
    return previous
