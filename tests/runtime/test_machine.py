"""What stands beside a figure: read from recorded files, and from this machine."""

from pathlib import Path

import onnxruntime
import psutil
import pytest

from restnet_runtime import __version__
from restnet_runtime.machine import describe_machine
from restnet_runtime.threads import usable_cores

X86 = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Gold 6154 CPU @ 3.00GHz\n\nprocessor\t: 1\nmodel name\t: another\n"
ARM = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd\nCPU part\t: 0xd0b\n"


@pytest.mark.parametrize(
    ("cpuinfo", "model", "expected"),
    [
        (X86, None, "Intel(R) Xeon(R) Gold 6154 CPU @ 3.00GHz"),
        (ARM, b"Raspberry Pi 5 Model B Rev 1.0\0", "Raspberry Pi 5 Model B Rev 1.0"),
        (X86, b"NVIDIA Jetson Orin Nano\n\0", "NVIDIA Jetson Orin Nano"),
        (ARM, b"", "unknown"),
        (ARM, None, "unknown"),
        (None, None, "unknown"),
    ],
)
def test_the_board_else_the_processor(tmp_path: Path, cpuinfo: str | None, model: bytes | None, expected: str) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    if model is not None:
        (tmp_path / "model").write_bytes(model)
    assert describe_machine(tmp_path / "cpuinfo", tmp_path / "model")["processor"] == expected


def test_this_machine() -> None:
    machine = describe_machine()
    assert machine["memory_bytes"] == psutil.virtual_memory().total
    assert machine["usable_cores"] == usable_cores() <= int(machine["cores"])
    assert machine["onnxruntime"] == onnxruntime.__version__
    assert machine["restnet_runtime"] == __version__
    assert all(machine.values())
