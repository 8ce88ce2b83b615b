"""Where compiled routes are kept: real directories, whoever made them before."""

import logging
import os
import tempfile
from pathlib import Path

import pytest

from restnet_runtime.places import default_cache_root


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RESTNET_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The directory for temporary files, shared as /tmp is; the home takes nothing."""
    (tmp_path / "home").touch()  # holds for root too, whom no mode stops
    root = tmp_path / "tmp"
    root.mkdir()
    root.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    return root


def test_what_is_named_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RESTNET_CACHE", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_root() == tmp_path / "named"
    assert not (tmp_path / "xdg").exists()


def test_the_users_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_root() == tmp_path / "xdg" / "restnet-runtime"
    assert default_cache_root().is_dir()


@pytest.mark.parametrize("base", [None, ""])
def test_home_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: str | None) -> None:
    if base is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", base)
    assert default_cache_root() == tmp_path / "home" / ".cache" / "restnet-runtime"


def test_a_cache_directory_that_may_not_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, temporary: Path) -> None:
    root = tmp_path / "xdg" / "restnet-runtime"
    root.mkdir(parents=True)
    root.chmod(0o500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent))
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != root or mode != 2)  # as it answers anybody but root
    assert default_cache_root().parent == temporary


def test_the_temporary_one_is_private_and_the_same_at_every_start(temporary: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = default_cache_root()
    assert root == temporary / f"restnet-runtime-{os.getuid()}"
    assert (root.stat().st_mode & 0o777, root.stat().st_uid) == (0o700, os.getuid())
    (root / "kept").touch()
    assert default_cache_root() == root
    assert caplog.records == []


def _planted_directory(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def _planted_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    target.mkdir(mode=0o700)
    path.symlink_to(target)


@pytest.mark.parametrize("plant", [_planted_directory, _planted_link, Path.touch], ids=["open to others", "link", "file"])
def test_what_others_could_have_put_there_is_not_used(plant, temporary: Path, caplog: pytest.LogCaptureFixture) -> None:
    planted = temporary / f"restnet-runtime-{os.getuid()}"
    plant(planted)
    assert_fresh(default_cache_root(), planted, caplog)


def test_a_directory_of_somebody_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = os.getuid() + 1
    planted = temporary / f"restnet-runtime-{other}"
    planted.mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: other)
    assert_fresh(default_cache_root(), planted, caplog)


def assert_fresh(root: Path, planted: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert root.resolve().parent == planted.parent
    assert root != planted
    assert root.stat().st_mode & 0o777 == 0o700
    assert list(root.iterdir()) == []
    assert [(record.levelno, str(planted) in record.getMessage()) for record in caplog.records] == [(logging.WARNING, True)]
