"""Tables for terminals."""

from collections.abc import Iterable, Sequence

from restnet_runtime.routes import Route
from restnet_runtime.units import format_bytes, format_macs


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first is flush left, the others flush right."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def text(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([text(lines[0]), "  ".join("-" * width for width in widths), *(text(line) for line in lines[1:])])


def routes_table(routes: Sequence[Route]) -> str:
    """Routes by cost: MACs, parameters, weights, accuracy, and whether they are on the Pareto front of their precision.

    The precision is shown where there is more than one.
    """
    several = len({route.precision for route in routes}) > 1
    return table(
        ("route", *(["precision"] if several else []), "cost", "params", "weights", "accuracy", "front"),
        (
            (
                route.name,
                *([route.precision] if several else []),
                format_macs(route.macs),
                f"{route.params:,}",
                format_bytes(route.weight_bytes),
                "?" if route.accuracy is None else f"{route.accuracy:.1%}",
                "yes" if route.on_front else "",
            )
            for route in sorted(routes, key=lambda route: route.macs)
        ),
    )
