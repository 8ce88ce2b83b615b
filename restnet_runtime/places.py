"""Places: where this package keeps files that it can make again."""

import logging
import os
import stat
from pathlib import Path

logger = logging.getLogger(__name__)


def default_cache_root() -> Path:
    """`$RESTNET_CACHE`, else `restnet-runtime` in the user's cache directory, else (read-only home) a private one for temporary files.

    Raises `OSError` when not even that can be made.
    """
    if named := os.environ.get("RESTNET_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        root = (Path(base) if base else Path.home() / ".cache") / "restnet-runtime"
        root.mkdir(parents=True, exist_ok=True)
        if os.access(root, os.W_OK):
            return root
    except (OSError, RuntimeError):
        pass
    return _temporary_root()


def _temporary_root() -> Path:
    """The same directory at every start, unless somebody else could have put something there: then a fresh one."""
    import tempfile  # not above: it is not for every start

    root = Path(tempfile.gettempdir()) / f"restnet-runtime-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        found = root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            fresh = Path(tempfile.mkdtemp(prefix="restnet-runtime-"))
            logger.warning("%s is not a directory of this user alone: compiled routes go to %s", root, fresh)
            return fresh
    return root
