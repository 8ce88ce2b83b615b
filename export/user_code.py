"""Running the user's own modules: a file by its path, its neighbours importable meanwhile and forgotten afterwards."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_FILE_MODULE = "restnet_anchor_"
"""In front of the names that modules get that are run from a file."""


def run_file(path: Path) -> ModuleType:
    """The module in a file, run anew. Raises whatever its code raises, `ImportError` for what is no Python file."""
    # A name of its own, so that two files called model.py do not replace one another.
    name = f"{_FILE_MODULE}{path.stem}_{abs(hash(path.resolve())):x}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ImportError(f"{path} is not a Python file")
    code = importlib.util.module_from_spec(found)
    # dataclasses and pickling look a class's module up by name.
    sys.modules[name] = code
    try:
        found.loader.exec_module(code)
    except BaseException:
        del sys.modules[name]
        raise
    return code


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let the user's code import its neighbours, as it can when it is run as a script.

    They are forgotten afterwards: another anchor's neighbours may have the same names.
    """
    path, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        # Not by the file of each module: a virtual environment may lie in this folder too.
        new = {name for name in sys.modules if name not in modules and not name.startswith(_FILE_MODULE)}
        tops = {top for top in {name.partition(".")[0] for name in new} if _lies_in(folder, sys.modules.get(top))}
        for name in new:
            if name.partition(".")[0] in tops:
                del sys.modules[name]


def _lies_in(folder: Path, module: ModuleType | None) -> bool:
    """Is this the module or package that `import` finds in `folder` itself?"""
    places = getattr(module, "__path__", None) or [getattr(module, "__file__", None)]
    return any(Path(place).resolve().parent == folder.resolve() for place in places if place)
