"""Distrust: bundles that failed on trial, kept beside the compiled routes, so that a restart does not begin with one of them."""

import logging
import os
import secrets
from pathlib import Path

log = logging.getLogger(__name__)

_FOLDER = ".failed-bundles"
_MOST = 64
_MOST_CHARACTERS = 1000


class Distrust:
    """One small file for each, named by the digest, that holds the reason. Where nothing can be written nothing is remembered."""

    def __init__(self, cache_root: Path) -> None:
        self._folder = cache_root / _FOLDER

    def note(self, digest: str, reason: str) -> None:
        """That bundle has failed. The latest are kept."""
        scratch = self._folder / f".{secrets.token_hex(4)}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with scratch.open("x", encoding="utf-8") as file:
                file.write(reason[:_MOST_CHARACTERS])
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self._folder / digest)
            for old in sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-_MOST]:
                old.unlink()
        except OSError as error:
            log.warning("a restart will not know that the bundle %s has failed: %s", digest[:16], error)

    def forget(self, digest: str) -> None:
        """It has proven itself since."""
        try:
            (self._folder / digest).unlink(missing_ok=True)
        except OSError as error:
            log.warning("a restart will not know that the bundle %s is trusted again: %s", digest[:16], error)

    def reason(self, digest: str) -> str | None:
        """Why a bundle is not trusted; `None` where nothing is known against it."""
        try:
            return (self._folder / digest).read_text(encoding="utf-8", errors="replace")[:_MOST_CHARACTERS]
        except OSError:
            return None
