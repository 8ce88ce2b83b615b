"""Which modules the nodes of an ONNX graph came from, as far as the exporter of the file noted it."""

import ast
from collections.abc import Iterable, Mapping

import onnx

from .liveness import Part, Span

Scope = tuple[str, str | None]
"""A module's qualified name, and its class where the file tells it."""

_NAMES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
"""What torch's exporter notes at each node: qualified names and classes of the modules around it, outermost first, the operation last."""

_CONTAINERS = {f"torch.nn.modules.container.{name}" for name in ("Sequential", "ModuleList", "ModuleDict")}


def read_scopes(graph: onnx.GraphProto) -> dict[str, tuple[Scope, ...]]:
    """For each value a node makes: the modules around the node, outermost first, without the network itself.

    From torch's notes where there are any, else from node names that are paths (`/layer1/layer1.0/conv1/Conv`).
    """
    found = {}
    for node in graph.node:
        noted = {item.key: item.value for item in node.metadata_props}
        scopes = _noted(noted) if _NAMES in noted else _from_path(node.name)
        found.update({name: scopes for name in node.output if name})
    everywhere = set.intersection(*(set(scopes) for scopes in found.values())) if found else set()
    return {name: tuple(scope for scope in scopes if scope not in everywhere) for name, scopes in found.items()}


def _noted(noted: Mapping[str, str]) -> tuple[Scope, ...]:
    try:
        names, classes = ast.literal_eval(noted[_NAMES]), ast.literal_eval(noted.get(_CLASSES, "[]"))
        modules = [str(name) for name in names[:-1]]
        kinds = [str(kind) for kind in classes[: len(modules)]] if len(classes) == len(names) else [None] * len(modules)
    except (ValueError, SyntaxError, TypeError):  # a note that somebody else wrote
        return ()
    return tuple((name, kind) for name, kind in zip(modules, kinds, strict=True) if name)


def _from_path(name: str) -> tuple[Scope, ...]:
    """`/layer1/layer1.0/conv1/Conv` -> layer1, layer1.0, layer1.0.conv1. What is no path says nothing."""
    steps = [step for step in name.split("/") if step][:-1]
    scopes: list[Scope] = []
    path = last = ""
    for step in steps:
        # Children of a list carry its name.
        above = path.removesuffix(last).removesuffix(".") if last and step.startswith(f"{last}.") else path
        path, last = f"{above}.{step}" if above else step, step
        scopes.append((path, None))
    return tuple(scopes)


def spans_of(scopes: Iterable[tuple[Scope, ...]]) -> tuple[Span, ...]:
    """Calls of modules, from the scopes of each operation in order. A module that runs twice is taken for one long call."""
    found: dict[str, Span] = {}
    for position, around in enumerate(scopes):
        for name, _ in around:
            found[name] = Span(name, found[name].first if name in found else position, position)
    return tuple(sorted(found.values(), key=lambda span: (span.first, -span.last, span.module.count("."))))


def parts_of(scopes: Iterable[tuple[Scope, ...]], matrices: Iterable[bool]) -> dict[str, Part]:
    """What is known of each module: `matrices` says of each operation whether it uses a weight matrix or kernel."""
    kinds: dict[str, str | None] = {}
    parents: set[str] = set()
    holders: set[str] = set()
    owners: set[str] = set()
    for around, matrix in zip(scopes, matrices, strict=True):
        kinds.update({name: kind for name, kind in around if kind is not None or name not in kinds})
        parents.update(name for name, _ in around[:-1])
        if matrix and around:
            holders.update(name for name, _ in around)
            owners.add(around[-1][0])
    return {
        name: Part(kind=kind, container=kind in _CONTAINERS, children=name in parents, matrix=name in holders, own_matrix=name in owners)
        for name, kind in kinds.items()
    }
