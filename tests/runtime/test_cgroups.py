import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restnet_runtime.cgroups import CgroupLimits, Mount, parse_membership, parse_mounts, read_limits, visible_groups
from restnet_runtime.memory import footprint

TREES = Path(__file__).parents[1] / "data" / "cgroups"
MIB = 2**20


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        # 62279680 used, of which 20971520 are page cache that can go
        ("v1-recorded", CgroupLimits(256 * MIB - (62279680 - 20971520), 256 * MIB, 0.5)),
        ("v1-container", CgroupLimits(268435456 - (100000000 - 30000000), 268435456, 2.0)),
        ("v1-flat", CgroupLimits(268435456 - (100000000 - 30000000), 268435456, None)),
        # the slice has 400 - (350 - 30) MB left, the service in it 250 - (120 - 20) MB
        ("v2-service", CgroupLimits(80_000_000, 400_000_000, 1.5)),
        # 8 MB of page cache, of which 4.096 are mapped; in the containers 14
        ("v2-over-high", CgroupLimits(100_000_000 - (130_000_000 - 3_904_000), 100_000_000, None)),
        ("v2-container", CgroupLimits(134217728 - (60_000_000 - 9_904_000), 134217728, 0.5)),
        ("v2-container-host-path", CgroupLimits(134217728 - (60_000_000 - 9_904_000), 134217728, 0.5)),
        ("v2-container-hidden", CgroupLimits(134217728 - (60_000_000 - 9_904_000), 134217728, 0.5)),
        ("v2-outside-namespace", CgroupLimits()),
        ("v2-memory-off", CgroupLimits()),
    ],
)
def test_reads_the_tightest_limit(tree: str, expected: CgroupLimits) -> None:
    assert read_limits(TREES / tree, 4242) == expected


def test_every_tree_is_tested_and_described() -> None:
    folders = {path.name for path in TREES.iterdir() if path.is_dir()}
    readme = (TREES / "README.md").read_text()
    assert {name for name in folders if f"`{name}`" in readme} == folders
    marks = test_reads_the_tightest_limit.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == folders


def test_an_unknown_process_has_no_limits() -> None:
    assert read_limits(TREES / "v2-service", 1) == CgroupLimits()
    assert read_limits(TREES / "no-such-tree", "self") == CgroupLimits()


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """A tree of its own: one group with 300 MB, 120 MB used, 20 MB of that inactive page cache, 1.5 cores."""
    shutil.copytree(TREES / "v2-service", tmp_path / "root")
    shutil.rmtree(tmp_path / "root/sys/fs/cgroup/system.slice")
    shutil.copytree(
        TREES / "v2-service/sys/fs/cgroup/system.slice/restnet-serve.service",
        tmp_path / "root/sys/fs/cgroup/system.slice/restnet-serve.service",
    )
    return tmp_path / "root"


GROUP = "sys/fs/cgroup/system.slice/restnet-serve.service"
GARBLED = ["", "\n", "abc", "-5", "1e9", "0x10", "12 34", "99999999999999999999999", "\x00", "\u0663", "max max"]


@pytest.mark.parametrize("content", [*GARBLED, None])
@pytest.mark.parametrize("name", ["memory.current", "memory.stat"])
def test_without_its_usage_a_group_has_no_headroom(service: Path, name: str, content: str | None) -> None:
    _replace(service / GROUP / name, content)
    assert read_limits(service, 4242) == CgroupLimits(None, None, 1.5)


@pytest.mark.parametrize(
    ("stat", "reclaimable"),
    [
        ("inactive_file 60000000\nactive_file 0\nfile_mapped 60000000\n", 0),  # weights that do not fit: all of them inactive, and in use
        ("inactive_file 60000000\nactive_file 0\nfile_mapped 45000000\n", 15_000_000),
        ("inactive_file 20000000\nactive_file 40000000\nfile_mapped 40000000\n", 20_000_000),  # what is mapped is active
        ("inactive_file 20000000\nactive_file 40000000\nfile_mapped 0\n", 20_000_000),
        ("inactive_file 1000\nactive_file 0\nfile_mapped 5000\n", 0),  # shared memory that is mapped counts there too
        ("inactive_file 20000000\n", 20_000_000),
    ],
)
def test_mapped_page_cache_is_in_use(service: Path, stat: str, reclaimable: int) -> None:
    _replace(service / GROUP / "memory.stat", stat)
    assert read_limits(service, 4242).headroom_bytes == 250_000_000 - (120_000_000 - reclaimable)


@pytest.mark.parametrize("content", [*GARBLED, "max\n", None])
def test_without_memory_high_memory_max_limits(service: Path, content: str | None) -> None:
    _replace(service / GROUP / "memory.high", content)
    assert read_limits(service, 4242) == CgroupLimits(200_000_000, 300_000_000, 1.5)


@pytest.mark.parametrize("content", [*GARBLED, "max\n", None])
def test_without_memory_max_memory_high_limits(service: Path, content: str | None) -> None:
    _replace(service / GROUP / "memory.max", content)
    assert read_limits(service, 4242) == CgroupLimits(150_000_000, 250_000_000, 1.5)


@pytest.mark.parametrize(
    "content",
    [
        *(text for text in GARBLED if text != "12 34"),
        None,
        "max 100000",
        "100000",
        "0 100000",
        "100000 0",
        "-1 100000",
        "1 2 3",
        "100000 max",
    ],
)
def test_without_a_quota_cpu_is_unlimited(service: Path, content: str | None) -> None:
    _replace(service / GROUP / "cpu.max", content)
    assert read_limits(service, 4242) == CgroupLimits(150_000_000, 250_000_000, None)


@pytest.mark.parametrize("name", ["cgroup", "mountinfo"])
@pytest.mark.parametrize("content", [*GARBLED, None, ":::", "0::relative", "34 23 - cgroup2", "a b c d e f - cgroup2 x"])
def test_without_its_place_nothing_is_known(service: Path, name: str, content: str | None) -> None:
    _replace(service / "proc/4242" / name, content)
    assert read_limits(service, 4242) == CgroupLimits()


def test_a_directory_in_place_of_a_file_is_a_missing_file(service: Path) -> None:
    _replace(service / GROUP / "memory.current", None)
    (service / GROUP / "memory.current").mkdir()
    assert read_limits(service, 4242) == CgroupLimits(None, None, 1.5)


@pytest.mark.parametrize(
    "unlimited",
    [9223372036854771712, 9223372036854759424, 9223372036854710272, 2**63 - 1, (2**31 - 1) * 4096],
    ids=["4k", "16k", "64k", "max", "32bit"],
)
def test_the_largest_v1_limit_is_none(tmp_path: Path, unlimited: int) -> None:
    shutil.copytree(TREES / "v1-container", tmp_path / "root")
    _replace(tmp_path / "root/sys/fs/cgroup/memory/memory.limit_in_bytes", f"{unlimited}\n")
    assert read_limits(tmp_path / "root", 4242) == CgroupLimits(None, None, 2.0)


@pytest.mark.parametrize("quota", ["-1\n", "0\n", "", "1e5", None])
def test_a_v1_group_without_quota_is_unlimited(tmp_path: Path, quota: str | None) -> None:
    shutil.copytree(TREES / "v1-container", tmp_path / "root")
    _replace(tmp_path / "root/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", quota)
    assert read_limits(tmp_path / "root", 4242).quota_cores is None


@settings(max_examples=50)
@given(membership=st.binary(max_size=200), mounts=st.binary(max_size=200), limit=st.binary(max_size=40), stat=st.binary(max_size=60))
def test_no_bytes_make_it_fail(
    tmp_path_factory: pytest.TempPathFactory, membership: bytes, mounts: bytes, limit: bytes, stat: bytes
) -> None:
    root = tmp_path_factory.getbasetemp() / "bytes"
    (root / "proc/7").mkdir(parents=True, exist_ok=True)
    (root / "sys/fs/cgroup").mkdir(parents=True, exist_ok=True)
    (root / "proc/7/cgroup").write_bytes(b"0::/\n" + membership)
    (root / "proc/7/mountinfo").write_bytes(b"34 23 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n" + mounts)
    for name in ("memory.max", "memory.current", "cpu.max"):
        (root / "sys/fs/cgroup" / name).write_bytes(limit)
    (root / "sys/fs/cgroup/memory.stat").write_bytes(b"inactive_file " + stat)
    limits = read_limits(root, 7)
    assert limits.quota_cores is None or limits.quota_cores > 0


def test_parses_membership_of_both_versions() -> None:
    text = "12:cpu,cpuacct:/a:b\n3:memory:/m\n1:name=systemd:/init\n0::/user.slice\nnonsense\n5:pids:\n"
    assert parse_membership(text) == {"cpu": "/a:b", "cpuacct": "/a:b", "memory": "/m", "name=systemd": "/init", "": "/user.slice"}


def test_parses_cgroup_mounts_alone_with_optional_fields_and_escapes() -> None:
    text = (
        "22 27 0:21 / /proc rw - proc proc rw\n"
        "34 23 0:29 / /sys/fs/my\\040cgroup rw shared:9 master:3 - cgroup2 cgroup2 rw\n"
        "35 23 0:30 /docker/1 /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n"
    )
    assert parse_mounts(text) == [
        Mount(2, "/", "/sys/fs/my cgroup", frozenset()),
        Mount(1, "/docker/1", "/sys/fs/cgroup/cpu", frozenset({"rw", "cpu", "cpuacct"})),
    ]


def _mount(root: str, point: str = "/cg") -> Mount:
    return Mount(2, root, point, frozenset())


@pytest.mark.parametrize(
    ("path", "mounts", "expected"),
    [
        ("/a/b", [_mount("/")], ["/cg/a/b", "/cg/a", "/cg"]),
        ("/", [_mount("/")], ["/cg"]),
        ("/a/b", [_mount("/a")], ["/cg/b", "/cg"]),
        ("/a/b", [_mount("/a/b")], ["/cg"]),
        ("/ab", [_mount("/a")], ["/cg"]),
        ("/a/b", [], []),
        ("/../x", [_mount("/")], []),
        ("/", [_mount("/..")], ["/cg"]),
        # the mount that shows most of the path, and of equals the later one, which hides the earlier
        ("/a/b", [_mount("/a", "/deep"), _mount("/", "/shallow")], ["/deep/b", "/deep"]),
        ("/a", [_mount("/z", "/other"), _mount("/", "/one"), _mount("/", "/two")], ["/two/a", "/two"]),
    ],
)
def test_walks_from_the_own_group_up_to_the_mount(path: str, mounts: list[Mount], expected: list[str]) -> None:
    assert visible_groups(path, mounts) == [PurePosixPath(group) for group in expected]


MEMORY_V1 = Path("/sys/fs/cgroup/memory")


def own_group() -> Path:
    return MEMORY_V1 / f"restnet-test-{os.getpid()}"


@contextmanager
def limited(limit: int, program: str, *args: str) -> Iterator[int]:
    """Number of a Python process that has said it is ready, in a memory cgroup of its own. Skips where such a group cannot be made."""
    group = own_group()
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a v1 memory cgroup here: {error}")
    process = None
    try:
        try:
            (group / "memory.limit_in_bytes").write_text(str(limit))
        except OSError as error:
            pytest.skip(f"{MEMORY_V1} takes no limits: {error}")
        # Into the group before Python starts, so that all of its memory is counted there.
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$0" -c "$@"', sys.executable, program, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        if process is not None:
            process.communicate(timeout=20)
        group.rmdir()


def test_reads_a_real_limit() -> None:
    limit = 192 * MIB
    with limited(limit, "import sys; held = bytearray(b'x' * 30_000_000); print('ready', flush=True); sys.stdin.read()") as pid:
        limits = read_limits(Path("/"), pid)
    assert limits.limit_bytes == limit
    assert limits.headroom_bytes is not None
    assert limit - 100_000_000 < limits.headroom_bytes < limit - 30_000_000


READS_AGAIN_AND_AGAIN = """
import mmap, os, select, sys
weights = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ)
turn = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    for at in range(0, len(weights), mmap.PAGESIZE):
        weights[at]
    turn += 1
    if turn == 3:
        print("ready", flush=True)
"""


def test_a_process_whose_weights_do_not_fit_has_no_headroom_in_them(tmp_path: Path) -> None:
    """What it holds and what it could still take are together no more than the limit, though the kernel calls its weights inactive."""
    weights = tmp_path / "weights"
    with weights.open("wb") as file:
        file.write(os.urandom(80 * MIB))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that the group pays for them
    limit = 48 * MIB
    with limited(limit, READS_AGAIN_AND_AGAIN, str(weights)) as pid:
        if int((own_group() / "memory.usage_in_bytes").read_text()) < limit / 2:
            pytest.skip("the pages of a file stay where it was written, as in a tmpfs")
        sums = []
        for _ in range(15):
            headroom = read_limits(Path("/"), pid).headroom_bytes
            assert headroom is not None
            sums.append(headroom + footprint(pid=pid).pss_bytes)
    assert median(sums) < 1.3 * limit


def _replace(path: Path, content: str | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_text(content, encoding="utf-8")
