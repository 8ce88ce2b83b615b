"""The ranges of versions in pyproject.toml: two ends, what is pinned lies between, and what wheels say of the systems that take them."""

import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("packaging", reason="of the development extra")
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
with pytest.MonkeyPatch.context() as patched:  # one script imports the other from beside it
    patched.syspath_prepend(ROOT / "scripts")
    ends, wheels = import_module("ends"), import_module("wheels")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_is_pinned_lies_in_the_range_and_the_lower_end_is_in_it_too(python: str, machine: str) -> None:
    ranges = {one.name: one.specifier for one in ends.dependencies(python, machine)}
    for end in ("lowest", "pinned"):
        named = {one.name: str(one.specifier)[2:] for one in map(Requirement, ends.constraints(end, python, machine))}
        assert ranges.keys() <= named.keys()
        for name, specifier in ranges.items():
            assert specifier.contains(named[name]), (end, name)
            assert any(one.operator == "<" for one in specifier), name


def test_lower_ends_follow_the_python_they_are_for() -> None:
    assert "numpy==1.26" in ends.constraints("lowest", "3.12")
    assert "numpy==2.1" in ends.constraints("lowest", "3.13")
    assert ends.constraints("newest", "3.12") == []


def test_a_range_without_an_end_is_refused() -> None:
    for text in ("numpy>=2", "numpy<3", "numpy"):
        with pytest.raises(SystemExit, match="give a range with both ends"):
            ends._lower(Requirement(text))


@pytest.mark.parametrize(
    ("name", "minor"),
    [
        ("numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", 27),
        ("psutil-7.2.2-cp36-abi3-manylinux2010_x86_64.manylinux_2_12_x86_64.manylinux_2_28_x86_64.whl", 12),
        ("xxhash-4.1.0-cp310-cp310-manylinux_2_17_aarch64.manylinux2014_aarch64.whl", 17),
        ("old-1.0-cp310-cp310-manylinux1_x86_64.whl", 5),
        ("fastapi-0.165.0-py3-none-any.whl", 0),
    ],
)
def test_the_oldest_glibc_that_a_wheel_accepts(name: str, minor: int) -> None:
    assert wheels.glibc_minor(Path(name)) == minor
    assert minor <= max(wheels.GLIBC)


def test_unpacked_is_what_the_files_of_a_wheel_take(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.py", "#" * 1000)
        archive.writestr("a/c.py", "#" * 24)
    assert wheels.unpacked_bytes(tmp_path / "a.whl") == 1024


def test_this_python_is_found_for_itself() -> None:
    python = ".".join(map(str, sys.version_info[:2]))
    assert wheels.interpreter(python)[1]
    assert Version(python) >= Version("3.10")
