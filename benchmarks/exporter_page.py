"""Result files of the exporter's benchmarks -> docs/exporter.md and its picture.

python benchmarks/exporter_page.py build/benchmarks/exporter/*.json

The files are those that `--json` of export_cost.py, cifar_family.py, cifar_tuning.py, batchnorm.py and resampling.py writes; they
stand on the page in the order of their names. `make bench-exporter` makes all of them.
"""

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from common import REPOSITORY, machine_line
from render import MET, rows

COLOURS = {"stitch": "tab:blue", "lora": "tab:purple", "full": "tab:green"}


def markdown(results: list[dict[str, Any]]) -> str:
    """The page: floors of all runs, then the table of each."""
    lines = [
        "# The exporter: what it costs, and what its routes score",
        "",
        "Written by `make bench-exporter` (`benchmarks/exporter_page.py`); edit the benchmarks, not this page. The CIFAR-10 networks",
        "are public checkpoints of 20 to 56 layers; routes are scored on held-out images, whose number stands with each run. `line` is",
        "what the straight line between the anchors gives for a route's cost, `start` what least squares alone gives. What works in",
        "tuning, and why: [decision 15](decisions/0015-tuning.md).",
        "",
        "![accuracy over cost of every route, before and after tuning](exporter.png)",
        "",
        "Shown by tests rather than measured here, `pytest -m slow tests/export/test_families.py`: cuts of every family, 71 / 41 / 10 /",
        "8 / 8 routes by SN-Net's rule, every segment in ONNX Runtime within 1e-4 of torch ([which, and by how much](architectures.md)).",
    ]
    return "\n".join([*lines, *sections(results)]) + "\n"


def sections(results: list[dict[str, Any]]) -> list[str]:
    """Lines of a page: where it was measured, the floors of all runs, and the table of each."""
    machines = dict.fromkeys(machine_line(result["machine"]) for result in results)
    floors = [
        (floor["what"], floor["against"], floor["floor"], floor["figure"], MET[floor["met"]], f"`{result['command']}`")
        for result in results
        for floor in result["floors"]
    ]
    lines = ["", "Measured on", "", *(f"- {machine}" for machine in machines), "", "## Floors", ""]
    lines += rows(("what", "against", "floor", "figure", "", "command"), floors)
    for result in results:
        lines += ["", f"## {result['title']}", "", f"`{result['command']}`, {result['date']}. {'; '.join(result['notes'])}".rstrip(), ""]
        lines += rows(result["header"], result["cells"])
    return lines


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """A panel for each run that tuned: anchors, the straight line between them, and every route before and after."""
    from matplotlib.figure import Figure

    results = [result for result in results if result["rows"] and "mode" in result["rows"][0]]
    figure = Figure(figsize=(7 * min(2, len(results)), 4.6 * ((len(results) + 1) // 2)), dpi=110, layout="constrained")
    panels = figure.subplots((len(results) + 1) // 2, min(2, len(results)), squeeze=False).flat
    for result, axes in zip(results, panels, strict=False):
        first = [row for row in result["rows"] if row["mode"] == result["rows"][0]["mode"]]
        anchors = sorted((row["macs"] / 1e6, 100 * row["start"], row["name"]) for row in first if ">" not in row["name"])
        axes.plot(
            [a[0] for a in anchors], [a[1] for a in anchors], "--", color="0.6", linewidth=1, label="straight line between the anchors"
        )
        axes.scatter([a[0] for a in anchors], [a[1] for a in anchors], marker="*", s=150, color="tab:orange", zorder=5, label="anchors")
        for cost, percent, name in anchors:
            axes.annotate(name, (cost, percent), xytext=(4, 8), textcoords="offset points", fontsize=8)
        stitched = [row for row in first if ">" in row["name"]]
        axes.scatter(
            [r["macs"] / 1e6 for r in stitched], [100 * r["start"] for r in stitched], s=14, color="0.7", label="least squares alone"
        )
        for mode in dict.fromkeys(row["mode"] for row in result["rows"]):
            tuned = [row for row in result["rows"] if row["mode"] == mode and ">" in row["name"]]
            axes.scatter(
                [r["macs"] / 1e6 for r in tuned], [100 * r["accuracy"] for r in tuned], s=20, color=COLOURS[mode], label=mode, zorder=3
            )
        axes.set_title(textwrap.fill(result["title"], 80), fontsize=9)
        axes.set_xlabel("cost, MMACs per image")
        axes.set_ylabel("top-1 accuracy on held-out images, %")
        axes.margins(y=0.12)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower right")
    for axes in list(panels):
        axes.set_axis_off()
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", metavar="JSON")
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "docs" / "exporter.md", help="the page; its picture lies beside it (%(default)s)"
    )
    args = parser.parse_args()
    results = [json.loads(path.read_text()) for path in args.results]
    args.out.write_text(markdown(results))
    draw(results, args.out.with_suffix(".png"))
    print(f"wrote {args.out} and its picture from {len(results)} results")


if __name__ == "__main__":
    main()
