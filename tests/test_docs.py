"""The documentation: its commands do what they say, its reference leaves nothing out, and the site builds without a broken link."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS, SITE = ROOT / "docs", ROOT / "scripts" / "site"
sys.path.insert(0, str(SITE))

import blocks  # noqa: E402
import commands  # noqa: E402
import http_paths  # noqa: E402
import manifest_fields  # noqa: E402
import running  # noqa: E402
import tested  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
LONGEST_S = 300.0
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]+")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def runnable() -> list:
    """Every page that has something to run; those that say they are slow are so marked."""
    found = []
    for page in (one for one in PAGES if one != ROOT / "CONTRIBUTING.md"):
        text = page.read_text()
        try:
            runs = any(block.runs for block in blocks.blocks(text))
        except blocks.PageError:
            runs = True  # a test says what is wrong, not the collection of all of them
        if runs:
            found.append(pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if blocks.slow(text) else []))
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled routes, which one page leaves for the next."""
    return tmp_path_factory.mktemp("cache")


def environment(folder: Path, cache: Path | None = None) -> dict[str, str]:
    """As a reader has it after installing: the commands, and a home of their own. Small networks gain nothing from threads that spin."""
    own = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "RESTNET_CACHE": str(cache or folder / ".cache"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": str(ROOT / "tests" / "data" / "docs"),
    }
    return {**{name: value for name, value in os.environ.items() if not name.startswith(("RESTNET_", "PYTEST_", "COV_"))}, **own}


@pytest.mark.parametrize("page", runnable())
def test_every_command_of_the_page_does_what_it_says(page: Path, tmp_path: Path, cache: Path) -> None:
    found = blocks.blocks(page.read_text())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    ran = running.run(found, tmp_path, environment(tmp_path, cache), 10 * LONGEST_S if blocks.slow(page.read_text()) else LONGEST_S)
    left_out = [block for block in found if block.runs and block not in ran and "if" not in block.marks]
    assert left_out == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_runs_or_says_why_not(page: Path) -> None:
    for block in blocks.blocks(page.read_text()):
        if block.language in blocks.RUN and not block.runs:
            assert block.marks.get("needs") or tested.missing(block, ROOT) == [], f"{name_of(page)}, line {block.line}"
        assert block.marks.keys() >= {"tested"} or "as" not in block.marks, f"{name_of(page)}, line {block.line}"
        if block.language in blocks.SHOWN:
            hidden = re.search(r"^(\$|>>>) ", block.code, re.MULTILINE)
            assert hidden is None, f"{name_of(page)}, line {block.line}: a command in a block that nobody runs"
        if block.language == "json" and "..." not in block.code:
            json.loads(block.code)


RAN = """\
#!/bin/sh
# restnet-inspect is what a comment says, and no command
"$work/bin/pip" install --quiet --no-index \\
    --find-links "$work/wheels/" restnet-runtime   # restnet-bench --report
cp -r "$root"/deploy/x.service /etc/systemd/system/
"""


@pytest.mark.parametrize(
    ("marks", "command", "missing"),
    [
        ("", "sudo /opt/bin/pip install --find-links wheels restnet-runtime  # all", []),
        ("", "pip install . && cp x.service /etc/systemd/system/ >log", []),
        ("", "pip install \\\n    restnet-runtime", []),
        ("", "pip install restnet-other", ["pip install restnet-other"]),
        ("", "pip restnet-runtime install", ["pip restnet-runtime install"]),
        ("", "pip install && pip check", ["pip check"]),
        ("", "restnet-inspect", ["restnet-inspect"]),
        ("", "restnet-bench --report", ["restnet-bench --report"]),
        ("<!-- as: cp -r -->\n", "pip install\nrestnet-update a b", []),
        ("<!-- as: cp -rf -->\n", "pip install\nrestnet-update a b", ["cp -rf"]),
    ],
)
def test_what_a_file_is_said_to_run_is_looked_for_in_it(marks: str, command: str, missing: list[str], tmp_path: Path) -> None:
    (tmp_path / "ran.sh").write_text(RAN)
    (tmp_path / "page.md").write_text("```sh\nrestnet-inspect\n```\n\n<!-- needs: a moon -->\n```sh\nrestnet-bench --report\n```\n")
    (block,) = blocks.blocks(f"<!-- tested: ran.sh -->\n{marks}```sh\n{command}\n```\n")
    assert tested.missing(block, tmp_path) == missing
    (block,) = blocks.blocks(
        "<!-- tested: ran.sh, page.md -->\n```console\n$ restnet-inspect\n16 segments\n$ restnet-bench --report\n```\n"
    )
    assert tested.missing(block, tmp_path) == ["restnet-bench --report"], "a page counts with what runs of it"


@pytest.mark.parametrize(
    ("marks", "message"), [("ran.sh, gone.sh -->", "gone.sh is not there"), ("ran.sh -->\n<!-- as: cp; pip -->", "2 quotations for 1")]
)
def test_marks_that_cannot_be_right_are_refused(marks: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "ran.sh").write_text(RAN)
    (block,) = blocks.blocks(f"<!-- tested: {marks}\n```sh\nrestnet-update a b\n```\n")
    with pytest.raises(blocks.PageError, match=message):
        tested.missing(block, tmp_path)


def test_pages_that_run_are_many() -> None:
    assert len(runnable()) >= 9
    assert {page.values[0] for page in runnable()} >= {
        ROOT / "README.md",
        DOCS / "tutorial.md",
        DOCS / "index.md",
        *(DOCS / "how-to").glob("*.md"),
    }


PAGE = """\
<!-- prepare: echo 3 > n -->
Text.
```sh
echo "there are $(cat n) of 12.5 ms"
```

<!-- output -->
```text
there are 7 of 0.1 us
```

<!-- needs: a moon -->
```sh
exit 7
```

<!-- if: false -->
```sh
exit 8
```

<!-- file: say.py -->
```python
print("said")
```

```console
$ python \\
    say.py
said
```
"""


def run(text: str, folder: Path) -> list[blocks.Block]:
    return running.run(blocks.blocks(text), folder, environment(folder), 20)


def test_blocks_run_in_order_and_marked_ones_do_not(tmp_path: Path) -> None:
    assert [block.line for block in run(PAGE, tmp_path)] == [1, 3, 23, 27]


@pytest.mark.parametrize(
    ("was", "instead", "message"),
    [
        ("<!-- needs: a moon -->\n", "", "line 12: exit status 7"),
        ("<!-- if: false -->", "<!-- if: true -->", "line 18: exit status 8"),
        ("there are 7", "there were 7", "the page shows"),
        ("\nsaid\n", "\nmeant\n", "the page shows"),
        ('print("said")', "raise SystemExit(5)", "line 27: exit status 5"),
        ("```sh\necho", "```bash\necho", "'bash'"),
        ("```sh\necho", "```\necho", "no language"),
        ("needs:", "wants:", "is no mark"),
    ],
)
def test_a_page_that_says_something_else_fails(was: str, instead: str, message: str, tmp_path: Path) -> None:
    assert was in PAGE
    with pytest.raises(blocks.PageError, match=message):
        run(PAGE.replace(was, instead, 1), tmp_path)


def test_what_a_page_leaves_running_is_ended(tmp_path: Path) -> None:
    run("```sh\nsleep 321 &\necho $! $$ > pids\n```\n", tmp_path)
    sleeper, shell = (int(pid) for pid in (tmp_path / "pids").read_text().split())
    assert running.alive(shell) == []
    assert not psutil.pid_exists(sleeper) or psutil.Process(sleeper).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        ("a 1.5 ms b", "a 22 us  b", True),
        ("a ... d", "a b\nc d", True),
        ("a ... d", "a b c", False),
        ('{"a":...,"c":1}', '{"a":"b","c":2}', True),
        ('{"a":...,"c":1}', '{"a":"b"}', False),
        ('{"p":0.9999,"route":...,"macs":...,"t":1}', '{"p":0.8,"route":"x[0-2]>y[3-5]","macs":15602624,"t":5.1}', True),
        ("route cnn-l[0-1]", "route cnn-l[0-2]", False),
        ('{"x":1,"y":"no"}', '{"x":2,"y":"yes"}', False),
        ("|---|", "|------|", True),
    ],
)
def test_outputs_are_compared_by_their_words(shown: str, printed: str, expected: bool) -> None:
    assert blocks.alike(shown, printed) is expected


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_reference_has_every_option(command: str) -> None:
    """What argparse prints for a terminal is in the page too, word for word."""
    page = commands.render().partition(f"## {command}\n")[2].partition("\n## ")[0]
    module, _, function = commands.COMMANDS[command].partition(":")
    code = f"import sys; from {module} import {function}; sys.exit({function}(['--help']))"
    wide = {**os.environ, "COLUMNS": "100"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=wide).stdout
    options = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", said, re.MULTILINE))
    assert len(options) >= 2
    assert {option for option in options if not re.search(rf"<code>[^<]*{option}\b", page)} == set()
    plain = re.sub(r"<[^>]+>|[|\s]", "", re.sub(r"\\(.)", r"\1", page))
    last = re.sub(r"\s", "", said.rstrip().splitlines()[-1])
    assert last in plain


def test_reference_has_every_command() -> None:
    scripts = re.search(r"\[project\.scripts\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert scripts is not None
    assert dict(re.findall(r'^(\S+) = "(\S+)"$', scripts[1], re.MULTILINE)) == commands.COMMANDS


OF_OTHERS = {"--nproc-per-node", "--memory", "--cpus", "--scope", "--snapshot", "--power"}
"""Options of torchrun, docker, systemd-run, and the examples and scripts that the pages name."""
MEASURED = {"benchmarks", "controller", "exporter", "int8", "selection", "squeeze", "sensors", "serving", "install"}
"""Pages that name options of benchmarks, pip, docker and scripts."""


def test_every_option_that_is_named_in_passing_exists() -> None:
    known = {option for command in commands.COMMANDS for option in OPTION.findall(commands.help_of(command))} | OF_OTHERS
    for page in (one for one in PAGES if one != ROOT / "CONTRIBUTING.md"):
        if page.stem not in MEASURED and page.parent.name != "decisions":
            prose = re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
            named = {option for span in re.findall(r"`([^`\n]+)`", prose) for option in OPTION.findall(span)}
            assert named <= known, name_of(page)


def test_docstrings_become_lists() -> None:
    docstrings = pytest.importorskip("docstrings", reason="the extra docs is not installed")
    lines = ["One line.", "", "a, b:  first", "       and more", "c: second", "Raises `X`."]
    assert list(docstrings.listed(lines)) == ["One line.", "", "", "- `a`, `b`: first", "  and more", "- `c`: second", "", "Raises `X`."]


def test_reference_has_every_path_and_object() -> None:
    page, document = http_paths.render(), http_paths.description()
    operations = [f"### {method.upper()} {path} " for path, methods in document["paths"].items() for method in methods]
    assert len(operations) > 20
    assert [heading for heading in operations if heading not in page] == []
    assert [name for name in document["components"]["schemas"] if f"### {name}\n" not in page] == []


def test_reference_has_every_field_of_the_manifest() -> None:
    page, schema = manifest_fields.render(), json.loads((DOCS / "bundle.schema.json").read_text())
    fields = {name for part in (schema, *schema["$defs"].values()) for name in part.get("properties", {})}
    assert len(fields) > 40
    assert {name for name in fields if f"| `{name}` |" not in page} == set()


def test_the_site_builds_and_no_link_within_it_is_broken(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    python = (tmp_path / "site" / "reference" / "python.html").read_text()
    assert [name for name in ("Runtime", "AsyncRuntime", "Engine", "Budget", "Event", "InfeasibleError") if f'.{name}"' not in python] == []
    assert "generated:" not in "".join(page.read_text() for page in (tmp_path / "site").rglob("*.html"))
    fetched = re.findall(
        r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"',
        "".join(page.read_text() for page in (tmp_path / "site").rglob("*.html")),
    )
    assert [address for address in fetched if "canonical" not in address] == [], "a page that needs another site"
    assert (tmp_path / "external-links.txt").read_text().startswith("http")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("there is no Chromium here: the pages were not looked at")
    command = [sys.executable, str(SITE / "screenshots.py"), str(tmp_path / "pictures"), "--site", str(tmp_path / "site"), "--pages"]
    done = subprocess.run([*command, "index.html", "bundle.html", "reference/commands.html"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # none is wider than its window or asks another host


def test_pictures_are_those_that_the_script_draws(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SITE / "pictures.py", "--out", tmp_path], check=True, capture_output=True)
    for name in ("stitching.svg", "compiled-routes.svg"):
        assert (tmp_path / name).read_text() == (DOCS / "explanation" / name).read_text(), "run: python scripts/site/pictures.py"
    assert (tmp_path / "policy.svg").stat().st_size > 10_000
