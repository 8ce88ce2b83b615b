"""The ledger: guesses before anything is measured, what is entered, and what is kept for a later start."""

from dataclasses import replace
from pathlib import Path

import pytest

from restnet_runtime.bundle import Bundle
from restnet_runtime.ledger import Ledger
from restnet_runtime.measured import GUESSED_SESSION_BYTES, Measured, MeasuredStore
from restnet_runtime.memory import footprint
from restnet_runtime.profile import Timing
from restnet_runtime.residency import Need, together
from restnet_runtime.resident import Resident
from restnet_runtime.sessions import SessionSettings, joined_session

SETTINGS = SessionSettings(threads=1)
MEASURED = Measured(Timing(2.0, 3.0), 1000, 200)


@pytest.fixture
def resident(family_bundle: Bundle) -> Resident:
    route = family_bundle.route("small")
    return Resident(route, joined_session(family_bundle, route, SETTINGS), None, SETTINGS, ran=True)


def ledger(bundle: Bundle, path: Path) -> Ledger:
    return Ledger(bundle, MeasuredStore(path))


def test_before_anything_is_measured_a_need_is_guessed_from_the_weights(family_bundle: Bundle, tmp_path: Path) -> None:
    empty = ledger(family_bundle, tmp_path)
    route = family_bundle.route("large")
    assert empty.profile("large") is None
    assert together([empty.need("large")]) == GUESSED_SESSION_BYTES + sum(
        family_bundle.segments[segment].graphs[precision].weight_bytes
        for segment, precision in zip(route.segments, route.precisions, strict=True)
    )
    assert together([empty.need("large", mapped=set(zip(route.segments, route.precisions, strict=True)))]) == GUESSED_SESSION_BYTES


def test_what_is_entered_stands_and_a_later_start_recalls_it(family_bundle: Bundle, tmp_path: Path, resident: Resident) -> None:
    first = ledger(family_bundle, tmp_path)
    assert not first.recall(resident)
    first.enter(resident, MEASURED, quiet=True)
    later = ledger(family_bundle, tmp_path)
    assert later.recall(resident)
    for one in (first, later):
        assert one.need("small") == Need(frozenset(), 1000, 200)
        profile = one.profile("small")
        assert profile is not None
        assert (profile.latency_ms, profile.p95_ms, profile.threads) == (2.0, 3.0, 1)
        assert profile.memory_bytes == one.overhead_bytes + 1200


def test_what_was_measured_while_requests_ran_is_not_kept(family_bundle: Bundle, tmp_path: Path, resident: Resident) -> None:
    busy = ledger(family_bundle, tmp_path)
    busy.enter(resident, MEASURED, quiet=False)
    assert busy.provisional("small")
    assert not ledger(family_bundle, tmp_path).recall(resident)
    busy.enter(resident, MEASURED, quiet=True)
    assert not busy.provisional("small")
    assert ledger(family_bundle, tmp_path).recall(resident)


def test_the_quicker_timing_counts_if_it_is_for_as_many_threads(family_bundle: Bundle, tmp_path: Path, resident: Resident) -> None:
    kept = ledger(family_bundle, tmp_path)
    kept.enter(resident, MEASURED, quiet=True)
    kept.refine(resident, Timing(5.0, 6.0))
    assert kept.profile("small").latency_ms == 2.0
    kept.refine(resident, Timing(1.0, 1.5))
    assert kept.profile("small").latency_ms == 1.0
    kept.refine(Resident(resident.route, resident.session, None, SessionSettings(threads=2), ran=True), Timing(0.5, 0.5))
    assert kept.profile("small").latency_ms == 1.0
    kept.refine(resident, Timing(3.0, 4.0), instead=True)
    assert kept.profile("small").latency_ms == 3.0
    assert ledger(family_bundle, tmp_path).knows("small", resident.how)


def test_the_process_is_weighed_without_what_its_routes_add(family_bundle: Bundle, tmp_path: Path, resident: Resident) -> None:
    kept = ledger(family_bundle, tmp_path)
    kept.enter(resident, Measured(Timing(1.0, 1.0), 16 * 2**20, 8 * 2**20), quiet=True)
    kept.weigh([])
    without = kept.overhead_bytes
    kept.weigh([resident])
    assert without - kept.overhead_bytes == pytest.approx(24 * 2**20, abs=3 * 2**20)
    resident.ran = False  # its activations are not in the process yet
    kept.weigh([resident])
    assert without - kept.overhead_bytes == pytest.approx(16 * 2**20, abs=3 * 2**20)
    assert without == pytest.approx(footprint().pss_bytes, rel=0.05)


def test_another_number_of_threads_is_estimated_until_it_is_measured(family_bundle: Bundle, tmp_path: Path, resident: Resident) -> None:
    known = ledger(family_bundle, tmp_path)
    two = replace(resident, settings=SessionSettings(threads=2))
    assert not known.estimate(two), "nothing is known of it"
    known.enter(resident, MEASURED, quiet=True)
    assert known.estimate(two)
    profile = known.profile("small")
    assert profile is not None
    assert 1.0 < profile.latency_ms < 2.0
    assert (profile.threads, known.need("small")) == (2, Need(frozenset(), 1000, 200))
    assert known.provisional("small")
    assert not ledger(family_bundle, tmp_path).recall(two), "an estimate is not kept"
    known.enter(two, MEASURED, quiet=True)
    assert not known.provisional("small")
