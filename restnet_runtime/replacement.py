"""Replacement: a file whose content is replaced whole or not at all."""

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes, sync: bool = True) -> None:
    """Replace `path` by `data`: a crash of this process leaves the old file or the new one; with `sync` a crash of the machine does too."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:  # a full disk: what was written of it helps nobody
        scratch.unlink(missing_ok=True)
        raise
