"""Memory of a process, from a recorded smaps_rollup and from the real one."""

import os

import numpy as np
import psutil
import pytest

from restnet_runtime.memory import Footprint, Gauge, Resident, anonymous_bytes, footprint, resident

RECORDED = """\
55e3c8a00000-7ffd3b5f6000 ---p 00000000 00:00 0                          [rollup]
Rss:              112640 kB
Pss:               84321 kB
Pss_Dirty:         40010 kB
Pss_Anon:          39876 kB
Pss_File:          44445 kB
Pss_Shmem:             0 kB
Shared_Clean:      42000 kB
Shared_Dirty:          0 kB
Private_Clean:     30630 kB
Private_Dirty:     40010 kB
Referenced:       112640 kB
Anonymous:         39876 kB
KSM:                   0 kB
LazyFree:              0 kB
AnonHugePages:         0 kB
Swap:                  0 kB
SwapPss:               0 kB
Locked:                0 kB
"""


def recorded(root, text: str | bytes | None, pid: int | str):
    (root / str(pid)).mkdir()
    if text is not None:
        (root / str(pid) / "smaps_rollup").write_text(text)
    return root


@pytest.mark.parametrize("pid", ["self", 4242])
def test_recorded_process(tmp_path, pid) -> None:
    assert footprint(recorded(tmp_path, RECORDED, pid), pid) == Footprint(pss_bytes=84321 * 1024, anonymous_bytes=39876 * 1024)


@pytest.mark.parametrize(
    "text",
    [None, "", "[rollup]\n", RECORDED.replace("Pss:", "Nss:"), RECORDED.replace("84321 kB", "many"), RECORDED.replace(" 84321 kB", "")],
    ids=["missing", "empty", "header only", "no Pss", "not a number", "no number"],
)
@pytest.mark.parametrize("pid", ["self", os.getpid()], ids=["self", "number"])
def test_without_a_rollup_the_unique_size_is_taken(tmp_path, text, pid) -> None:
    found = footprint(recorded(tmp_path, text, pid), pid)
    rss = psutil.Process().memory_info().rss
    assert found.pss_bytes == found.anonymous_bytes
    assert 0.1 * rss < found.pss_bytes < 1.5 * rss


def test_where_even_that_is_hidden_the_resident_size_is_taken(tmp_path, monkeypatch) -> None:
    def hidden(self) -> None:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", hidden)
    rss = psutil.Process().memory_info().rss
    assert footprint(tmp_path).pss_bytes == pytest.approx(rss, rel=0.2)


def test_what_this_process_takes_is_seen() -> None:
    before = footprint()
    taken = np.ones(64 * 2**20, np.uint8)
    after = footprint()
    assert 0.9 * taken.nbytes < after.anonymous_bytes - before.anonymous_bytes < 1.5 * taken.nbytes
    assert after.pss_bytes >= after.anonymous_bytes * 0.5


STATUS = "Name:\tx\nVmRSS:\t  300 kB\nRssAnon:\t  100 kB\nRssFile:\t  200 kB\nRssShmem:\t 0 kB\n"


def test_counted_pages(tmp_path) -> None:
    (tmp_path / "7").mkdir()
    assert resident(tmp_path, 7) is None
    (tmp_path / "7" / "status").write_text(STATUS)
    assert resident(tmp_path, 7) == Resident(100 * 1024, 200 * 1024, 0)
    (tmp_path / "7" / "status").write_text(STATUS.replace("RssFile:\t  200", "RssFile:\t  many"))
    assert resident(tmp_path, 7) is None


def test_a_gauge_walks_seldom_and_follows_what_is_counted(tmp_path) -> None:
    root = recorded(tmp_path, RECORDED, 7)
    status, kb = root / "7" / "status", 1024
    gauge = Gauge(root, 7, walk_every=3, file_moves=50 * kb)
    assert gauge.pss_bytes() == 84321 * kb  # the kernel does not count along: walked every time
    status.write_text(STATUS)
    assert gauge.pss_bytes() == 84321 * kb
    (root / "7" / "smaps_rollup").write_text(RECORDED.replace("84321", "90000"))
    status.write_text(STATUS.replace("  100 kB", "  150 kB"))
    assert gauge.pss_bytes() == (84321 + 50) * kb  # not walked
    status.write_text(STATUS.replace("  200 kB", "  260 kB"))
    assert gauge.pss_bytes() == 90000 * kb  # mapped files have moved
    (root / "7" / "smaps_rollup").write_text(RECORDED)
    assert [gauge.pss_bytes() for _ in range(3)] == [90000 * kb, 90000 * kb, 84321 * kb]  # the third asking


def test_a_gauge_that_walks_apart_tells_what_it_knows_until_it_has_walked(tmp_path) -> None:
    """The walk finds a pipe where the figures should be, and waits for them as it would for the kernel."""
    root, kb = recorded(tmp_path, RECORDED, 7), 1024
    (root / "7" / "status").write_text(STATUS)
    gauge, rollup = Gauge(root, 7, walk_every=2, apart=True), root / "7" / "smaps_rollup"
    assert gauge.pss_bytes() == 84321 * kb, "the first is walked at once"
    rollup.unlink()
    os.mkfifo(rollup)
    assert [gauge.pss_bytes() for _ in range(6)] == [84321 * kb] * 6, "nobody waits for the walk"
    rollup.write_text(RECORDED.replace("84321", "90000"))
    gauge.close()
    assert gauge.pss_bytes() == 90000 * kb


def test_a_walk_apart_that_fails_leaves_what_was_known(tmp_path) -> None:
    root, kb = recorded(tmp_path, RECORDED, 2**22 + 1), 1024  # no process has such a number
    (root / str(2**22 + 1) / "status").write_text(STATUS)
    gauge = Gauge(root, 2**22 + 1, walk_every=1, apart=True)
    gauge.pss_bytes()
    (root / str(2**22 + 1) / "smaps_rollup").unlink()
    gauge.pss_bytes()
    gauge.close()
    assert gauge.pss_bytes() == 84321 * kb


def test_a_gauge_walks_only_where_the_limit_is_near(tmp_path) -> None:
    """Resident pages bound PSS from above, so below the limit they decide; above it what is shared has to be divided."""
    root, kb = recorded(tmp_path, RECORDED, 7), 1024
    status, rollup = root / "7" / "status", root / "7" / "smaps_rollup"
    gauge = Gauge(root, 7)
    status.write_text(STATUS.replace("RssShmem:\t 0", "RssShmem:\t 1"))
    whole = rollup.read_text()
    rollup.unlink()  # a walk would not find what is expected
    assert not gauge.exceeds(301 * kb)
    rollup.write_text(whole)
    assert gauge.exceeds(300 * kb)
    status.write_text(STATUS.replace("  200 kB", "  999999 kB"))
    assert not gauge.exceeds(84321 * kb)
    assert gauge.exceeds(84320 * kb)


def test_a_gauge_of_this_process_sees_what_it_takes() -> None:
    gauge = Gauge()
    before = gauge.pss_bytes()
    taken = np.ones(64 * 2**20, np.uint8)
    assert 0.9 * taken.nbytes < gauge.pss_bytes() - before < 1.5 * taken.nbytes
    assert anonymous_bytes() > taken.nbytes
