"""What the Dockerfile installs, as files for pip: device.txt, export.txt, and limits.txt, which is constraints.txt for that ONNX Runtime.

    python scripts/requirements.py [onnxruntime-gpu[cuda,cudnn]]

Needs no package, and is run where pyproject.toml and constraints.txt are.
"""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

_PLAIN = re.compile(r"^onnxruntime(?=[<>=])")


def swap(line: str, package: str) -> str:
    """The line with `package` in place of `onnxruntime`, where it is about that."""
    return _PLAIN.sub(package, line)


def main() -> int:
    package = sys.argv[1] if len(sys.argv) > 1 else "onnxruntime"
    if not re.fullmatch(r"onnxruntime(-[a-z0-9-]+)?(\[[a-z0-9,-]+\])?", package):
        raise SystemExit(f"{package!r} is no package of ONNX Runtime: give onnxruntime, or onnxruntime-gpu[cuda,cudnn]")
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    texts = {
        "device.txt": [swap(line, package) for line in project["dependencies"]],
        "export.txt": [*project["optional-dependencies"]["export"], *project["optional-dependencies"]["timm"]],
        "limits.txt": [swap(line, package.partition("[")[0]) for line in Path("constraints.txt").read_text().splitlines()],
    }
    for name, lines in texts.items():
        Path(name).write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
