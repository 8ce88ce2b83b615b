"""The machine that a figure was measured on: what has to stand beside it."""

import os
import platform
from pathlib import Path

import onnxruntime as ort
import psutil

from restnet_runtime import __version__
from restnet_runtime.threads import usable_cores


def describe_machine(cpuinfo: Path = Path("/proc/cpuinfo"), model: Path = Path("/proc/device-tree/model")) -> dict[str, str | int]:
    """Board or processor, cores, memory, and the versions that matter for speed."""
    return {
        "machine": platform.machine(),
        "processor": _board(model) or _processor(cpuinfo) or "unknown",
        "cores": os.cpu_count() or 1,
        "usable_cores": usable_cores(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "restnet_runtime": __version__,
    }


def _board(path: Path) -> str:
    """`Raspberry Pi 5 Model B Rev 1.0`, where a device tree says so."""
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _processor(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
