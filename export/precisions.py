"""The second axis: every route in int8 beside fp32, each anchor quantised in the way that measured best."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx

from restnet_runtime.compose import join
from restnet_runtime.errors import ExportError
from restnet_runtime.graphs import INPUT
from restnet_runtime.manifest import Precision
from restnet_runtime.routes import fronts, in_precision

from .calibration import METHODS, Cuts, Method, calibrate
from .leads import Lead, leads
from .ort_scoring import Floats, answers, latencies_ms, relative_error, score_networks
from .quantise import RECIPES, Range, Recipe, folded, integer_bytes, is_quantised, quantised

Batches = Callable[[], Iterable[tuple[Floats, npt.NDArray[np.int64]]]]

AS_GOOD = 2.0
"""A recipe whose error is at most so many times that of the best one may be chosen for its latency."""
NEGLIGIBLE = 0.01
"""An error of the logits, relative to their variance, that is nothing."""
AS_QUICK = 1.02
"""Products are kept in float32 only where that makes an anchor quicker by more than this; of several such leads, the shortest."""
STITCH_COST = 1.1
"""A stitching layer stays in int8 unless the route's error is more than so many times what it is with the layer in fp32."""
LOST = 0.005
"""From this loss of accuracy on, against its fp32 twin, mixed forms of a route on the front are tried."""
HELD_MOST = 64
"""So many images are enough to choose by."""
KEPT = (1, 2, 4)
"""So many of the segments that hurt most are kept in fp32."""


@dataclass(frozen=True)
class Family:
    """What is to be quantised.

    anchors:     the blocks of each, in order
    routes:      segments by name of the route, the anchors among them
    accuracies:  of each route in fp32, 0..1, on the images to score on
    models:      segments in fp32 by name, weights inside
    macs:        of each segment
    input_shape: (C, H, W)
    alike:       segments that end where another one does, as `Cuts.of` has it
    """

    anchors: Mapping[str, Sequence[str]]
    routes: Mapping[str, Sequence[str]]
    accuracies: Mapping[str, float]
    models: Mapping[str, onnx.ModelProto]
    macs: Mapping[str, int]
    input_shape: tuple[int, int, int]
    alike: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One way to quantise an anchor.

    error:      of the logits, relative to their variance, on images that calibration has not seen
    latency_ms: of one image on one thread here; None where another method of the same recipe was truer
    floats:     so many of its first products stay in float32
    """

    anchor: str
    recipe: Recipe
    method: Method | None
    error: float
    latency_ms: float | None = None
    floats: int = 0
    chosen: bool = False


@dataclass(frozen=True)
class QuantisedRoute:
    """A route in int8, or mixed. loss: accuracy of the fp32 twin minus its own."""

    name: str
    twin: str
    segments: tuple[str, ...]
    precisions: tuple[Precision, ...]
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Quantised:
    """What came of it.

    models:      segments in int8 by name, those that a route has so
    trials:      of every anchor
    sensitivity: by block, the error of its anchor with this block alone in int8; by folded block that of the first route that has it
    """

    models: Mapping[str, onnx.ModelProto]
    routes: Sequence[QuantisedRoute]
    trials: Sequence[Trial]
    sensitivity: Mapping[str, float] = field(default_factory=dict)


def quantise_family(
    family: Family, images: Callable[[], Iterable[Floats]], held: Floats, scoring: Batches, say: Callable[[str], None]
) -> Quantised:
    """Quantise every segment and score every route in int8.

    images:  gives the images (B, C, H, W) to calibrate on, batch by batch
    held:    other images (B, C, H, W), by which is chosen
    scoring: gives images and labels to score on
    Raises `ExportError` for an anchor that ONNX Runtime cannot quantise.
    """
    work = _Work(family, images, held, say)
    trials = [trial for anchor in family.anchors for trial in work.choose(anchor)]
    for trial in trials:
        if trial.chosen:
            by = f", ranges by {trial.method}" if trial.method else ""
            by += f", {trial.floats} of its first products in fp32" if trial.floats else ""
            say(f"int8 of {trial.anchor}: {trial.recipe}{by}, error {trial.error:.2g}, {trial.latency_ms:.3g} ms on one thread")
    work.quantise_stitches()
    sensitivity = {block: work.error(blocks, {block}) for blocks in family.anchors.values() for block in blocks}
    for segments in family.routes.values():
        for name in work.models.keys() & family.alike.keys() & set(segments) - sensitivity.keys():
            sensitivity[name] = work.error(segments, {name})
    plain = [work.in_int8(segments) for segments in family.routes.values()]
    scored = work.scored(list(family.routes), plain, scoring)
    say(f"scored {len(scored)} routes in int8: median loss {100 * float(np.median([route.loss for route in scored])):.1f} points")
    plain_accuracy = {route.twin: route.accuracy for route in scored}
    mixed = [route for route in work.scored(*work.mixed(scored, sensitivity), scoring) if route.accuracy > plain_accuracy[route.twin]]
    if mixed:
        say(f"{len(mixed)} routes in both precisions: " + ", ".join(f"{route.name} {100 * route.accuracy:.1f} %" for route in mixed))
    routes = [*scored, *mixed]
    used = {name for route in routes for name, kind in zip(route.segments, route.precisions, strict=True) if kind == "int8"}
    return Quantised({name: model for name, model in work.models.items() if name in used}, routes, trials, sensitivity)


class _Work:
    def __init__(self, family: Family, images: Callable[[], Iterable[Floats]], held: Floats, say: Callable[[str], None]) -> None:
        self._family, self._images, self._held, self._say = family, images, held, say
        self._folded = {name: folded(model) for name, model in family.models.items()}
        self._cuts = Cuts.of(family.routes.values(), family.alike)
        self._heads = {self._cuts.ends[blocks[-1]][1] for blocks in family.anchors.values()}
        self._ranges: dict[Method, dict[str, dict[str, Range]]] = {}
        self._chosen: dict[str, tuple[Recipe, Method]] = {}
        self._expected: dict[tuple[str, ...], Floats] = {}
        self.models: dict[str, onnx.ModelProto] = {}

    def choose(self, anchor: str) -> list[Trial]:
        """Quantise an anchor in every way, and keep the quickest of those that are about as true as the truest.

        A way that ONNX Runtime cannot go is left out. Raises `ExportError` if there is no other.
        """
        blocks = self._family.anchors[anchor]
        trials: list[Trial] = []
        best: list[tuple[Trial, dict[str, onnx.ModelProto]]] = []
        for recipe in RECIPES:
            found: tuple[Trial, dict[str, onnx.ModelProto]] | None = None
            methods: Sequence[Method | None] = (None,) if recipe == "dynamic" else tuple(METHODS)
            for method in methods:
                try:
                    models = self._quantise(blocks, recipe, method or "minmax")
                    trial = Trial(anchor, recipe, method, self._error(blocks, models))
                except ExportError as error:
                    self._say(f"int8 of {anchor}: no {recipe}{f' with ranges by {method}' if method else ''}: {error}")
                    continue
                trials.append(trial)
                if found is None or trial.error < found[0].error:
                    found = trial, models
            if found is not None:
                best.append(found)
        if not best:
            raise ExportError(f"anchor {anchor}: ONNX Runtime can quantise it in no way; leave int8 out")
        most = max(integer_bytes(models.values()) for _, models in best)
        best = [one for one in best if integer_bytes(one[1].values()) >= most / 2]
        limit = max(NEGLIGIBLE, AS_GOOD * min(trial.error for trial, _ in best))
        latencies = latencies_ms([partial(self._joined, blocks, models) for _, models in best], self._family.input_shape)
        took = {trial: ms for (trial, _), ms in zip(best, latencies, strict=True)}
        quickest, models = min((one for one in best if one[0].error <= limit), key=lambda one: took[one[0]])
        tried, models = self._with_leads(quickest, models, limit)
        self.models.update(models)
        self._chosen[anchor] = quickest.recipe, quickest.method or "minmax"
        return [*(replace(trial, latency_ms=took.get(trial)) for trial in trials if trial != quickest), *tried]

    def _with_leads(self, trial: Trial, models: dict[str, onnx.ModelProto], limit: float) -> tuple[list[Trial], dict[str, onnx.ModelProto]]:
        """A trial as it is and with its first products in float32, timed beside each other: the one to be chosen, and its models."""
        blocks = self._family.anchors[trial.anchor]
        tried = [(trial, models)]
        for count, lead in enumerate(leads(blocks, self._folded) if trial.recipe != "dynamic" else (), 1):
            made = {**models, **self._quantise(list(lead), trial.recipe, trial.method or "minmax", lead)}
            error = self._error(blocks, made)
            if error <= limit:
                tried.append((replace(trial, error=error, floats=count), made))
        took = latencies_ms([partial(self._joined, blocks, made) for _, made in tried], self._family.input_shape)
        enough = min(took) * AS_QUICK
        at = next(index for index, ms in enumerate(took) if ms <= enough)
        timed = [replace(one, latency_ms=ms, chosen=index == at) for index, ((one, _), ms) in enumerate(zip(tried, took, strict=True))]
        return timed, tried[at][1]

    def quantise_stitches(self) -> None:
        """In the way of the anchor that they lead to; but the range of what they take is that in which the anchor before them ends, which
        may be by another method. One that ONNX Runtime cannot quantise stays in fp32.
        """
        at = {self._cuts.ends[block][1]: anchor for anchor, blocks in self._family.anchors.items() for block in blocks}
        for name in self._folded:
            if name not in self.models:
                begins, ends = self._cuts.ends[name]
                recipe, method = self._chosen[at[ends]]
                try:
                    before, by = self._chosen[at[begins]]
                    entry = by if before != "dynamic" else None  # which ends in no range
                    self.models.update(self._quantise([name], recipe, method, entry=entry))
                except ExportError as error:
                    self._say(f"{name} stays in fp32: {error}")

    def in_int8(self, segments: Sequence[str]) -> tuple[Precision, ...]:
        """All in int8, but for stitching layers by which the route loses."""
        blocks = {block for blocks in self._family.anchors.values() for block in blocks}
        stitches = [name for name in segments if name not in blocks]
        able = set(segments).intersection(self.models)
        if not able.intersection(stitches):
            return precisions_of(segments, able)
        whole = self.error(segments, able)
        spared = self.error(segments, able.difference(stitches))
        return precisions_of(segments, able.difference(stitches) if whole > max(NEGLIGIBLE, STITCH_COST * spared) else able)

    def error(self, segments: Sequence[str], in_int8: set[str]) -> float:
        """Of a route with these segments in int8 and the others in fp32."""
        return self._error(segments, {name: self.models[name] for name in in_int8})

    def scored(self, twins: Sequence[str], precisions: Sequence[tuple[Precision, ...]], scoring: Batches) -> list[QuantisedRoute]:
        routes = [tuple(self._family.routes[twin]) for twin in twins]
        networks = [
            partial(self._joined, segments, {name: self.models[name] for name, kind in zip(segments, kinds, strict=True) if kind == "int8"})
            for segments, kinds in zip(routes, precisions, strict=True)
        ]
        return [
            QuantisedRoute(in_precision(twin, segments, kinds), twin, segments, kinds, accuracy, self._family.accuracies[twin] - accuracy)
            for twin, segments, kinds, accuracy in zip(twins, routes, precisions, score_networks(networks, scoring), strict=True)
        ]

    def mixed(self, scored: Sequence[QuantisedRoute], sensitivity: Mapping[str, float]) -> tuple[list[str], list[tuple[Precision, ...]]]:
        """Of the routes on the front of int8 that lose, those in which the segments that hurt most stay in fp32: at most one of each."""
        costs = [sum(self._family.macs[name] for name in route.segments) for route in scored]
        front = fronts(("int8", cost, route.accuracy) for cost, route in zip(costs, scored, strict=True))
        twins: list[str] = []
        found: list[tuple[Precision, ...]] = []
        for route, on_front in zip(scored, front, strict=True):
            if not on_front or route.loss < LOST:
                continue
            whole = {name for name, kind in zip(route.segments, route.precisions, strict=True) if kind == "int8"}
            before = self.error(route.segments, whole)
            hurting = sorted(whole, key=lambda name: -sensitivity.get(name, 0.0))
            for count in KEPT:
                if count < len(whole) and self.error(route.segments, whole - set(hurting[:count])) <= before / 2:
                    spared = set(hurting[:count])
                    twins.append(route.twin)
                    found.append(precisions_of(route.segments, whole - spared))
                    break
        return twins, found

    def _quantise(
        self, names: Sequence[str], recipe: Recipe, method: Method, lead: Lead | None = None, entry: Method | None = None
    ) -> dict[str, onnx.ModelProto]:
        """A segment of which nothing is quantised is the one in fp32, so that its weights are in the bundle once.

        entry: the method that chose the range of what arrives, if it is another one
        """
        found = {}
        for name in names:
            ranges: dict[str, Range] = {}
            if recipe != "dynamic":
                ranges = dict(self._known(method).get(name, {}))
                if entry is not None and INPUT in ranges:
                    ranges[INPUT] = self._known(entry).get(name, {}).get(INPUT, ranges[INPUT])
            last, floats = self._cuts.ends[name][1] in self._heads, (lead or {}).get(name, ())
            made = quantised(self._folded[name], ranges, recipe, last=last, floats=floats)
            found[name] = made if is_quantised(made) else self._family.models[name]
        return found

    def _known(self, method: Method) -> dict[str, dict[str, Range]]:
        if method not in self._ranges:
            self._ranges[method] = calibrate(self._family.anchors, self._cuts, self._folded, self._images, method)
        return self._ranges[method]

    def _error(self, segments: Sequence[str], models: Mapping[str, onnx.ModelProto]) -> float:
        key = tuple(segments)
        if key not in self._expected:
            self._expected[key] = answers(partial(self._joined, segments, {}), self._held)
        return relative_error(self._expected[key], answers(partial(self._joined, segments, models), self._held))

    def _joined(self, segments: Sequence[str], models: Mapping[str, onnx.ModelProto]) -> onnx.ModelProto:
        parts = [(name, models.get(name, self._family.models[name])) for name in segments]
        return join(parts, self._family.input_shape, _classes(parts[-1][1]))


def precisions_of(segments: Sequence[str], in_int8: Collection[str]) -> tuple[Precision, ...]:
    """Of each segment: int8 for those named."""
    kinds: list[Precision] = ["int8" if name in in_int8 else "fp32" for name in segments]
    return tuple(kinds)


def _classes(model: onnx.ModelProto) -> int:
    return int(model.graph.output[0].type.tensor_type.shape.dim[1].dim_value)
