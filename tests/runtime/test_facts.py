"""What a report says of the device: from files as boards have them, and of this machine."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy
import onnxruntime
import psutil
import pytest

from restnet_runtime import __version__
from restnet_runtime.facts import describe, gather_facts
from restnet_runtime.processor import read_processor

XEON = "processor\t: {0}\nmodel name\t: Intel(R) Xeon(R) Processor\nflags\t\t: fpu sse4_1 avx avx2 fma hypervisor avx512f avx512_vnni\n"
CELERON = "processor\t: {0}\nmodel name\t: Intel(R) Celeron(R) N5105 @ 2.00GHz\nflags\t\t: fpu sse4_1 sse4_2\n"
ARM = "processor\t: {0}\nBogoMIPS\t: 108.00\nFeatures\t: {1}\nCPU implementer\t: 0x41\nCPU part\t: {2}\n"
A76 = "fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
A72 = "fp asimd evtstrm crc32 cpuid"


def cores(*blocks: str) -> str:
    return "\n".join(blocks) + "\n"


@pytest.mark.parametrize(
    ("cpuinfo", "name", "features", "dot_product", "virtual"),
    [
        (cores(XEON.format(0), XEON.format(1)), "Intel(R) Xeon(R) Processor", "sse4_1 avx avx2 fma avx512f avx512_vnni", True, True),
        (CELERON.format(0), "Intel(R) Celeron(R) N5105 @ 2.00GHz", "sse4_1", False, False),
        (cores(*(ARM.format(i, A76, "0xd0b") for i in range(4))), "Cortex-A76", "asimd asimdhp asimddp", True, False),
        (cores(*(ARM.format(i, A72, "0xd08") for i in range(4))), "Cortex-A72", "asimd", False, False),
        # What only some cores can do is no feature.
        (cores(ARM.format(0, A76, "0xd0b"), ARM.format(1, A72, "0xd03")), "1x Cortex-A76, 1x Cortex-A53", "asimd", False, False),
        (ARM.format(0, A72, "0xfff"), "ARM processor 0x41, part 0xfff", "asimd", False, False),
        ("processor\t: 0\n", None, "", None, False),
        ("", None, "", None, False),
        (None, None, "", None, False),
    ],
)
def test_processors(tmp_path: Path, cpuinfo: str | None, name: str | None, features: str, dot_product: bool | None, virtual: bool) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    found = read_processor(tmp_path / "cpuinfo")
    assert (found.name, " ".join(found.features), found.dot_product, found.virtual) == (name, features, dot_product, virtual)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_board_in_a_group_with_limits(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/system.slice/restnet-serve.service"
    root = write(
        tmp_path,
        {
            "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n',
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/cpuinfo": ARM.format(0, A76, "0xd0b"),
            "proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=12\n",
            "proc/self/cgroup": "0::/system.slice/restnet-serve.service\n",
            "proc/self/mountinfo": "25 20 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
            f"{group}/cgroup.controllers": "cpu memory\n",
            f"{group}/memory.max": "268435456\n",
            f"{group}/memory.high": "max\n",
            f"{group}/memory.current": "1000000\n",
            f"{group}/memory.stat": "inactive_file 0\nactive_file 0\nfile_mapped 0\n",
            f"{group}/cpu.max": "150000 100000\n",
        },
    )
    facts = gather_facts(root)
    assert (facts.board, facts.system, facts.processor.name) == (
        "Raspberry Pi 5 Model B Rev 1.0",
        "Debian GNU/Linux 12 (bookworm)",
        "Cortex-A76",
    )
    assert (facts.cgroup.versions, facts.cgroup.memory_limit_bytes, facts.cgroup.quota_cores) == (("v2",), 268435456, 1.5)
    assert facts.pressure is True
    told = describe(facts)
    assert "cgroup       v2; memory limit 268 MB, CPU quota 1.5 cores\n" in told
    assert "instructions asimd asimdhp asimddp; int8 dot product: yes\n" in told


V2 = "25 20 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
HYBRID = (
    "25 20 0:22 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    "26 20 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "27 20 0:24 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
)


@pytest.mark.parametrize(
    ("membership", "mounts", "controllers", "told"),
    [
        # As a Raspberry Pi is started by default.
        ("0::/a/b\n", V2, {"": "cpuset cpu io pids"}, "v2, without the memory controller; memory limit none, CPU quota none"),
        ("0::/a/b\n", V2, {"": "memory pids"}, "v2, without the CPU controller; memory limit none, CPU quota none"),
        ("0::/a/b\n", V2, {"": "cpu io memory", "a": "memory", "a/b": ""}, "v2; memory limit none, CPU quota none"),
        ("0::/a/b\n", V2, {"": "io pids"}, "none with memory or CPU"),
        ("0::/a/b\n", V2, {}, "none with memory or CPU"),
        ("4:memory:/\n1:cpu,cpuacct:/\n0::/a\n", HYBRID, {"unified": ""}, "v1; memory limit none, CPU quota none"),
        ("1:cpu,cpuacct:/\n0::/a\n", HYBRID, {"unified": ""}, "v1, without the memory controller; memory limit none, CPU quota none"),
        ("1:cpu,cpuacct:/\n0::/a\n", HYBRID, {"unified": "memory"}, "v1 and v2; memory limit none, CPU quota none"),
    ],
)
def test_groups_say_what_cannot_be_limited(tmp_path: Path, membership: str, mounts: str, controllers: dict[str, str], told: str) -> None:
    files = {f"sys/fs/cgroup/{group}/cgroup.controllers": f"{names}\n" for group, names in controllers.items()}
    root = write(tmp_path, {"proc/self/cgroup": membership, "proc/self/mountinfo": mounts, **files})
    assert f"cgroup       {told}\n" in describe(gather_facts(root))


def test_a_device_that_tells_nothing(tmp_path: Path) -> None:
    facts = gather_facts(tmp_path)
    assert (facts.board, facts.system, facts.processor.name, facts.pressure, facts.cgroup.versions) == (
        None,
        "unknown system",
        None,
        False,
        (),
    )
    assert "instructions unknown; int8 dot product: unknown\n" in describe(facts)


def test_a_version_says_what_a_report_needs() -> None:
    code = "import sys; from restnet_runtime.cli import serve; sys.exit(serve())"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True)
    first, *lines = done.stdout.splitlines()
    told = {line[:13].strip(): line[13:] for line in lines}
    assert (first, done.stderr) == (f"restnet-serve {__version__}", "")
    assert told["python"].startswith(f"CPython {platform.python_version()}, ")
    assert f"onnxruntime {onnxruntime.__version__}" in told["onnxruntime"]
    assert "CPUExecutionProvider" in told["providers"]
    assert f"numpy {numpy.__version__}, " in told["packages"]
    assert f"Linux {platform.release()}, " in told["system"]
    assert str(round(psutil.virtual_memory().total / 1e9, 1)) in told["memory"]
    assert set(told) == {
        "python", "onnxruntime", "packages", "system", "board", "processor", "instructions", "memory", "cgroup", "pressure", "providers",
    }  # fmt: skip


def test_facts_can_be_told_where_onnx_runtime_cannot_be_imported() -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; from restnet_runtime.facts import print_version; print_version('x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "\nproviders    ONNX Runtime cannot be imported: " in done.stdout


def test_the_first_line_alone() -> None:
    """Whoever reads it and closes the pipe, as `head -1` does, gets no traceback."""
    code = "from restnet_runtime.facts import print_version; print_version('x')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == f"x {__version__}\n"
        process.stdout.close()
        assert process.stderr.read() == ""


@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_the_size_of_a_page_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    asked = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: page if name in ("SC_PAGE_SIZE", "SC_PAGESIZE") else asked(name))
    facts = gather_facts(tmp_path)
    assert facts.page_bytes == page
    assert f"pages of {page // 1024} KiB" in describe(facts)


def test_without_proc_it_is_told_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path))
    facts = gather_facts(tmp_path)
    assert facts.memory_bytes == 0
    assert "memory       unknown, pages of" in describe(facts)
