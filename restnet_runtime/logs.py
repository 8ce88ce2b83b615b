"""Logs: one line for each event, for people or, with `--log-format json`, one JSON object."""

import json
import logging
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

LogFormat = Literal["text", "json"]
FORMATS: tuple[LogFormat, ...] = ("text", "json")


_MODEL: ContextVar[Callable[[], str | None] | None] = ContextVar("model", default=None)


def log_for(model: Callable[[], str | None]) -> None:
    """From now on what this thread logs is of a model. model: its name, `None` where that need not be told."""
    _MODEL.set(model)


def _model(record: logging.LogRecord) -> str | None:
    """The model that a line is of, where there are several: as the line has it, else as its thread does."""
    given: str | None = getattr(record, "model", None)
    known = _MODEL.get()
    return given if given is not None or known is None else known()


class TextLines(logging.Formatter):
    """Time, logger and message; before it the model, where there are several."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  as logging calls it
        model = _model(record)
        if model is not None:
            record.message = f"{model}: {record.message}"
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    """`time` (UTC), `level`, `logger`, `message`, `model` where there are several, and what the event has: `event`, then fields."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": at, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if (model := _model(record)) is not None:
            line["model"] = model
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logs(form: LogFormat) -> None:
    """Log to standard error from level INFO on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def quiet_parsers() -> None:
    """What decoders say of each damaged upload is in its answer already: in the log it would be a client's to fill."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    _quiet_libtiff()


def _quiet_libtiff() -> None:
    """It writes to standard error past Python. Where Pillow has it within itself, or nothing tells what is loaded, it goes on."""
    import ctypes

    import PIL._imaging  # noqa: F401  which loads it

    with suppress(OSError, AttributeError):
        loaded = set(re.findall(r"/\S*/libtiff\S*\.so\S*", Path("/proc/self/maps").read_text()))
        for path in loaded:
            library = ctypes.CDLL(path)
            for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
                handle = getattr(library, name)
                handle.argtypes, handle.restype = [ctypes.c_void_p], ctypes.c_void_p
                handle(None)
