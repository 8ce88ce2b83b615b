"""The state of an unfinished run, beside the bundle that it will write: `OUT.run/state.pt`, whole or not there at all.

It is written now and then, so that a run that was killed goes on from there (`--resume`) to the result that it would have had, and removed
when the bundle is written.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from restnet_runtime.errors import ExportError, SpecError
from restnet_runtime.links import sync

_STATE = "state.pt"


class Run:
    """A run that may be broken off; use it as a context manager, and `begin` when it is known what it depends on.

    every_s:  seconds between two states
    resume:   go on from the state of an earlier process, if there is one
    first:    among several processes only one holds the directory and saves; the others read
    """

    def __init__(self, out: Path, every_s: float, resume: bool = False, first: bool = True) -> None:
        target = out.resolve()
        self.state: Mapping[str, Any] | None = None
        self._root = target.with_name(f"{target.name}.run")
        self._every_s, self._resume, self._first = every_s, resume, first
        self._identity: Mapping[str, str] = {}
        self._saved_at = time.monotonic()
        self._descriptor: int | None = None

    def __enter__(self) -> "Run":
        """Raises `ExportError` where an unfinished run would be lost, because it was not asked to go on."""
        if self.unfinished and not self._resume:
            raise ExportError(f"{self._root} holds an unfinished run: go on with it (--resume), or remove that directory")
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is None:
            return
        with suppress(OSError):
            self._root.rmdir()  # where nothing is in it: broken off before the first state
        os.close(self._descriptor)
        self._descriptor = None

    @property
    def unfinished(self) -> bool:
        """Is there a state to go on from?"""
        return (self._root / _STATE).exists()

    @property
    def due(self) -> bool:
        """Has enough time gone by since the last state?"""
        return time.monotonic() - self._saved_at >= self._every_s

    def begin(self, identity: Mapping[str, str]) -> None:
        """Hold the directory, and read the state where the run goes on.

        identity: what the result depends on, by name
        Raises `ExportError` where the directory is in use or cannot be made, `SpecError` where its state is damaged or of another identity.
        """
        self._identity = dict(identity)
        if self._first:
            self._hold()
        self.state = _read(self._root, self._identity) if self._resume and self.unfinished else None
        self._saved_at = time.monotonic()

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state by this one: tensors, numbers, strings, and lists and dictionaries of them. Raises `ExportError`."""
        self._saved_at = time.monotonic()  # where it fails too: the next try comes in its time
        young = self._root / f"{_STATE}.new"
        try:
            with young.open("wb") as file:
                torch.save({"identity": self._identity, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            young.replace(self._root / _STATE)
            sync(self._root)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where the disk is full
            young.unlink(missing_ok=True)
            raise ExportError(f"the state of the run cannot be written to {self._root}: {_line(error)}") from error

    def finish(self) -> None:
        """The bundle is written: nothing is left to go on with."""
        if self._descriptor is not None:
            shutil.rmtree(self._root, ignore_errors=True)

    def _hold(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._root, os.O_RDONLY)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExportError(f"{self._root} is in use by another run") from error
        except OSError as error:
            raise ExportError(f"the state of the run cannot be kept in {self._root}: {error.strerror}") from error


def _read(root: Path, identity: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        state: Mapping[str, Any] = torch.load(root / _STATE, map_location="cpu", weights_only=True)
        before = dict(state["identity"])
    except Exception as error:  # torch raises what it trips over
        raise SpecError(f"the state of the run in {root} cannot be read, remove it to begin anew: {_line(error)}") from error
    if before != identity:
        names = [name for name in dict.fromkeys([*identity, *before]) if before.get(name) != identity.get(name)]
        changed = "; ".join(f"{name} was {before.get(name, 'not there')}, is {identity.get(name, 'not there')}" for name in names[:3])
        more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
        raise SpecError(f"{root} was begun with other settings ({changed}{more}): give those again, or remove it to begin anew")
    return state


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), "") or type(error).__name__
