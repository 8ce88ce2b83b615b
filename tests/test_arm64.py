"""The check on emulated 64-bit ARM: what it runs there exists, and its page hides nothing that failed."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def page():
    return runpy.run_path(str(ROOT / "scripts/arm64_page.py"))["page"]


def report(pages: str, ok: bool, **more: object) -> dict:
    tests = {
        "name": "serving",
        "files": ["api"],
        "failures": [] if ok else ["test_api::test_one: no | answer"],
        "skipped": {"no client": 2},
    }
    return {
        "job": {"pages": pages, "date": "2026-11-28", "qemu": "version 7.2.22"},
        "install": {"install_s": 12.3, "size_mb": 200},
        "version": "restnet-serve 0.1.0\n",
        "steps": [{"name": "SIGTERM", "said": f"exit status {0 if ok else 1}", "seconds": 2.0, "ok": ok}],
        "tests": [tests],
        **more,
    }


def test_the_tests_that_run_there_exist() -> None:
    chosen = [name for names in runpy.run_path(str(ROOT / "scripts/arm64/inside.py"))["TESTS"].values() for name in names]
    assert len(chosen) == len(set(chosen)) > 0
    assert [name for name in chosen if not (ROOT / f"tests/runtime/test_{name}.py").exists()] == []


def test_a_whole_run(page) -> None:
    text = page([report("4k", True, memory_events="oom 0")])
    assert "the run finished. Nothing failed." in text
    assert "| SIGTERM | exit status 0 | 2 s | yes |" in text
    assert "- skipped, 2: no client" in text
    assert "emulated" in text


def test_what_failed_or_was_broken_off_is_said(page) -> None:
    text = page([report("16k", False)])
    assert "broken off" in text
    assert "**Failed: SIGTERM.**" in text
    assert "| **no** |" in text
    assert "- failed: test_api::test_one: no \\| answer" in text
