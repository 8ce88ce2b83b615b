"""Facts: what a report of a bug or of figures must say of the device and of the versions on it. `restnet-serve --version` prints them."""

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from restnet_runtime import __version__
from restnet_runtime.cgroups import GroupFinder, limits_of
from restnet_runtime.processor import Processor, read_processor
from restnet_runtime.small_files import read_text
from restnet_runtime.threads import usable_cores
from restnet_runtime.units import format_bytes

_PACKAGES = ("numpy", "onnx", "pillow", "fastapi", "starlette", "uvicorn", "pydantic", "psutil", "torch", "timm", "onnxscript")
"""Those that are installed are named; the last three are the exporter's."""

_CONTROLLERS = ("memory", "cpu")


@dataclass(frozen=True)
class CgroupFacts:
    """versions: of control groups with memory or CPU that this process is in (`v1`, `v2`). Limits are `None` where none is set.

    missing: which of `memory` and `cpu` no group has: no limit of that can be set, or is kept to, as where a kernel was started without
    """

    versions: tuple[str, ...]
    memory_limit_bytes: int | None
    quota_cores: float | None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """The device as this process sees it.

    runtimes:   what is installed of ONNX Runtime, by package: `onnxruntime`, `onnxruntime-gpu`
    packages:   other packages with their versions
    system:     `Debian GNU/Linux 12 (bookworm)`
    board:      from the device tree, as `Raspberry Pi 5 Model B Rev 1.0`; `None` where there is none
    processor:  with its instructions
    cores, usable_cores:  of the machine, and those that this process may use
    page_bytes: 4096, or 16384 on a Raspberry Pi 5
    pressure:   does the kernel tell what waits (PSI)?
    """

    version: str
    python: str
    bits: int
    runtimes: dict[str, str]
    packages: dict[str, str]
    system: str
    kernel: str
    machine: str
    libc: str
    board: str | None
    processor: Processor
    cores: int
    usable_cores: int
    memory_bytes: int
    page_bytes: int
    cgroup: CgroupFacts
    pressure: bool


def gather_facts(root: Path = Path("/")) -> Facts:
    """Of this process; files are read below `root`. ONNX Runtime is not imported: where it cannot be, this can still be told."""
    return Facts(
        version=__version__,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        bits=64 if sys.maxsize > 2**32 else 32,
        runtimes=_versions(sorted({name for name in _installed() if name.startswith("onnxruntime")})),
        packages=_versions(_PACKAGES),
        system=_system(read_text(root / "etc/os-release") or ""),
        kernel=platform.release(),
        machine=platform.machine(),
        libc=" ".join(platform.libc_ver()).strip() or "unknown",
        board=(read_text(root / "proc/device-tree/model") or "").strip("\0 \n") or None,
        processor=read_processor(root / "proc/cpuinfo"),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(root),
        memory_bytes=_memory_bytes(),
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        cgroup=_cgroup(root),
        pressure=(read_text(root / "proc/pressure/cpu") or "").startswith("some "),
    )


def _memory_bytes() -> int:
    """0 where there is no /proc to read it from, as in a bare chroot: whoever reports a bug has enough of them already."""
    try:
        return int(psutil.virtual_memory().total)
    except OSError:
        return 0


def providers() -> tuple[str, ...]:
    """Execution providers of the ONNX Runtime that is installed. Imports it."""
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def describe(facts: Facts) -> str:
    """For a terminal, a line for each kind of fact."""
    lines = (
        ("python", f"{facts.python}, {facts.bits} bit"),
        ("onnxruntime", ", ".join(f"{name} {version}" for name, version in facts.runtimes.items()) or "not installed"),
        ("packages", ", ".join(f"{name} {version}" for name, version in facts.packages.items())),
        ("system", f"{facts.system}, Linux {facts.kernel}, {facts.libc}, {facts.machine}"),
        ("board", facts.board or "no device tree says"),
        ("processor", describe_processor(facts)),
        ("instructions", f"{' '.join(facts.processor.features) or 'unknown'}; int8 dot product: {yes_or_no(facts.processor.dot_product)}"),
        ("memory", f"{format_bytes(facts.memory_bytes) if facts.memory_bytes else 'unknown'}, pages of {facts.page_bytes // 1024} KiB"),
        ("cgroup", describe_cgroup(facts.cgroup)),
        ("pressure", f"PSI: {yes_or_no(facts.pressure)}"),
    )
    return "\n".join(f"{name:13}{text}" for name, text in lines)


def describe_processor(facts: Facts) -> str:
    """`Cortex-A76, 4 cores`; how many are usable where not all are."""
    cores = f"{facts.cores} core{'s' if facts.cores != 1 else ''}"
    usable = "" if facts.usable_cores == facts.cores else f", {facts.usable_cores} usable"
    return f"{facts.processor.name or 'unknown'}, {cores}{usable}{', virtual machine' if facts.processor.virtual else ''}"


def describe_cgroup(cgroup: CgroupFacts) -> str:
    if not cgroup.versions:
        return "none with memory or CPU"
    memory = "none" if cgroup.memory_limit_bytes is None else format_bytes(cgroup.memory_limit_bytes)
    quota = "none" if cgroup.quota_cores is None else f"{cgroup.quota_cores:g} cores"
    without = "".join(f", without the {'CPU' if name == 'cpu' else name} controller" for name in cgroup.missing)
    return f"{' and '.join(cgroup.versions)}{without}; memory limit {memory}, CPU quota {quota}"


def print_version(command: str) -> None:
    """`restnet-serve 0.1.0` and the facts. ONNX Runtime is imported last: on a processor that it is not for, that ends the process."""
    try:
        print(f"{command} {__version__}\n{describe(gather_facts())}", flush=True)
        try:
            told = ", ".join(providers())
        except ImportError as error:
            told = f"ONNX Runtime cannot be imported: {error}"
        print(f"{'providers':13}{told}", flush=True)
    except BrokenPipeError:  # `| head -1`; Python would complain of it once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _versions(names: tuple[str, ...] | list[str]) -> dict[str, str]:
    return dict(_found(names))


def _found(names: tuple[str, ...] | list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _installed() -> Iterator[str]:
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            yield name.lower().replace("_", "-")


def _system(text: str) -> str:
    named = [line.partition("=")[2].strip("\"'") for line in text.splitlines() if line.startswith("PRETTY_NAME=")]
    return named[0] if named else "unknown system"


def _cgroup(root: Path) -> CgroupFacts:
    groups = GroupFinder(root, "self").find()
    limits = limits_of(groups)
    listed = {name for group in groups.v2 for name in (read_text(group / "cgroup.controllers") or "").split()}
    v1 = {name for name, found in (("memory", groups.memory_v1), ("cpu", groups.cpu_v1)) if found}
    v2 = listed & set(_CONTROLLERS)
    versions = tuple(version for version, found in (("v1", v1), ("v2", v2)) if found)
    return CgroupFacts(versions, limits.limit_bytes, limits.quota_cores, tuple(name for name in _CONTROLLERS if name not in v1 | v2))


def yes_or_no(found: bool | None) -> str:
    """What a kernel may not tell."""
    return "unknown" if found is None else "yes" if found else "no"
