"""The project as a whole: what is imported where, what is named where, and what the Makefile offers."""

import ast
import inspect
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import restnet_runtime
from restnet_runtime import errors

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = ROOT / "restnet_runtime"
NOT_ON_A_DEVICE = {"torch", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "onnxscript", "tqdm", "datasets", "restnet_export"}


def imported(source: str) -> set[str]:
    """Top-level names of the packages that a module imports anywhere, relative imports apart."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_imports_are_found_wherever_they_stand() -> None:
    assert imported("import a.b as c\ndef f():\n    from d.e import g\n    from .h import i\n") == {"a", "d"}


OPTIONAL = {"replay_plot": {"matplotlib"}}
"""What a module imports only when it is asked for a picture, with a clear error where it is missing."""


@pytest.mark.parametrize("file", sorted(RUNTIME.rglob("*.py")), ids=lambda file: file.stem)
def test_no_runtime_source_imports_what_a_device_lacks(file: Path) -> None:
    assert not imported(file.read_text()) & (NOT_ON_A_DEVICE - OPTIONAL.get(file.stem, set()))


def test_importing_the_whole_runtime_loads_nothing_a_device_lacks_and_prints_nothing() -> None:
    modules = sorted(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in RUNTIME.rglob("*.py"))
    assert len(modules) > 10
    load = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)"
    code = f"{load}\nsys.exit(' '.join({NOT_ON_A_DEVICE!r} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_runtime_dependencies_name_nothing_a_device_lacks() -> None:
    named = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in PROJECT["dependencies"]}
    assert named
    assert not named & (NOT_ON_A_DEVICE | {"scikit_learn"})


@pytest.mark.parametrize("name", sorted(PROJECT["scripts"]))
def test_console_script_resolves_to_a_function(name: str) -> None:
    (script,) = [entry for entry in entry_points(group="console_scripts") if entry.name == name]
    assert script.value == PROJECT["scripts"][name]
    assert callable(script.load())


def test_every_module_of_both_packages_is_in_the_wheel() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {Path(packages["package-dir"][name]) for name in packages["packages"]}
    assert {file.parent.relative_to(ROOT) for top in (RUNTIME, ROOT / "export") for file in top.rglob("*.py")} == folders


def test_version_is_the_same_everywhere() -> None:
    assert PROJECT["version"] == restnet_runtime.__version__
    assert re.search(rf"^## \[({re.escape(PROJECT['version'])}|Unreleased)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_errors_are_the_tree_their_module_draws() -> None:
    drawn: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for indent, name in re.findall(r"^( {4,})([A-Z]\w+Error)\b", errors.__doc__ or "", re.MULTILINE):
        above = [(depth, parent) for depth, parent in above if depth < len(indent)]
        drawn[name] = above[-1][1] if above else None
        above.append((len(indent), name))
    defined = {
        name: None if cls is errors.RestnetError else cls.__base__.__name__
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if not name.startswith("_")
    }
    assert drawn == defined


def test_every_constraint_is_exact() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert "torch==2.13.0" in lines
    assert [line for line in lines if not re.fullmatch(r'[a-z0-9-]+==[\w.]+(; python_version (<|>=) "3\.11")?', line)] == []


def test_every_direct_dependency_is_pinned() -> None:
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    asked = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    assert {re.split(r"[^\w-]", line)[0] for line in asked} <= pinned


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (targets,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    command = ["make", "--silent", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in shown.splitlines()} == set(targets.split())
    assert all(len(line.split()) > 2 for line in shown.splitlines())


@pytest.mark.parametrize(
    "name", [".ci/run", "scripts/check-dockerfile", "scripts/check-device-install", "scripts/check-service", "scripts/check-arm64"]
)
def test_script_is_executable_and_parses(name: str) -> None:
    assert (ROOT / name).stat().st_mode & 0o111
    subprocess.run(["bash", "-n", name], cwd=ROOT, check=True)
