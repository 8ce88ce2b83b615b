"""Stitching layers fitted by least squares, all of them in one pass over the images."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from restnet_runtime.errors import ExportError

from .activations import cut_activations
from .cuts import CutAnchor
from .least_squares import Moments, Solution, best_ridge, held_out_error, joint, mean_of_solutions, merged, spread_matched
from .plans import LayerPlan
from .resampling import resamplings
from .samples import Samples
from .stitching import Fit, StitchingLayer

FOLDS = 3
"""Parts of the images; each is predicted from the others to choose between fits."""
METHODS = {"joint": joint, "mean": mean_of_solutions}

_Key = tuple[object, ...]
Place = tuple[str, int]
"""(anchor, cut)"""
_Known = Mapping[str, Sequence[Tensor]]


def fit_layers(
    plans: Sequence[LayerPlan], anchors: Mapping[str, CutAnchor], samples: Samples, *, match_spread: bool = True, kernel: int = 1
) -> dict[str, StitchingLayer]:
    """Every planned stitching layer, fitted by least squares in one pass over the images.

    What is left open is chosen by the relative error at the target's cut on images that were not fitted on: the resampling of the grid,
    the strength of the ridge, and where pairs share a layer one joint solve or the mean of their own solutions. What was chosen is
    in `StitchingLayer.fit`.
    match_spread: stretch every output to the spread of its target, which the routes gain by and the error at the cut loses by; off, the
                  layers are those of SN-Net. Created prefix tokens stay as they are fitted.
    kernel:       of the layers, where their cuts have a grid and no prefix tokens
    Raises `ExportError` when an activation is not finite or a source never varies.
    """
    attempts = {plan.name: _attempts(plan, anchors, samples.device, kernel) for plan in plans}
    rows = _Rows()
    for plan in plans:
        for layer in attempts[plan.name]:
            for front_block, end_block in plan.pairs:
                rows.want(layer, (plan.front, front_block), (plan.end, end_block - 1))
    seen = 0
    for images, _ in samples.batches():
        rows.add({name: cut_activations(anchor, images) for name, anchor in anchors.items()}, seen)
        seen += len(images)
    return {plan.name: _fitted(plan, attempts[plan.name], rows, match_spread) for plan in plans}


def _attempts(plan: LayerPlan, anchors: Mapping[str, CutAnchor], device: torch.device, kernel: int) -> list[StitchingLayer]:
    """The layer of a plan, not fitted yet, once for each way of resampling."""
    front_block, end_block = plan.pairs[0]
    source, target = anchors[plan.front].layouts[front_block], anchors[plan.end].layouts[end_block - 1]
    return [StitchingLayer(source, target, how, kernel).to(device) for how in resamplings(source, target)]


def _fitted(plan: LayerPlan, attempts: Sequence[StitchingLayer], rows: "_Rows", match_spread: bool) -> StitchingLayer:
    """The attempt with the smallest error on held-out images, with its weights."""
    pairs = [((plan.front, j), (plan.end, k - 1)) for j, k in plan.pairs]
    found: list[tuple[float, Fit, StitchingLayer, Solution]] = []
    for layer in attempts:
        folds = [rows.of_grid(layer, *pair) for pair in pairs]
        for (front, cut), moments in zip((front for front, _ in pairs), folds, strict=True):
            if not any(fold.xx.any() for fold in moments):
                raise ExportError(
                    f"{plan.name}: cut {cut} of {front} is the same for every image and place, so nothing can be fitted from it"
                )
        ridge, error = best_ridge(folds)
        errors = {"joint": error}
        if len(pairs) > 1:
            errors["mean"] = held_out_error(folds, mean_of_solutions, ridge)
        method = min(errors, key=lambda name: errors[name])
        whole = [merged(pair) for pair in folds]
        solution = METHODS[method](whole, ridge)
        if match_spread:
            solution = spread_matched(solution, merged(whole))
        found.append((errors[method], Fit(method, ridge, errors[method]), layer, solution))
    _, fit, layer, (weight, bias) = min(found, key=lambda item: item[0])
    layer.fit = fit
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        for index in range(0 if layer.prefix_weight is None else len(layer.prefix_weight)):
            _fit_token(layer, index, [rows.of_prefix(*pair, index) for pair in pairs])
    return layer


def _fit_token(layer: StitchingLayer, index: int, folds: Sequence[Sequence[Moments]]) -> None:
    """The map of one created prefix token: one row per image, so never without a ridge."""
    ridge, _ = best_ridge(folds)
    weight, bias = joint([merged(pair) for pair in folds], ridge)
    assert layer.prefix_weight is not None
    assert layer.prefix_bias is not None
    layer.prefix_weight[index].copy_(weight)
    layer.prefix_bias[index].copy_(bias)


def _token(layer: StitchingLayer, index: int) -> Callable[[Tensor], Tensor]:
    return lambda y: layer.prefix_targets(y)[:, index]


def _grid_key(layer: StitchingLayer, front: Place) -> _Key:
    return (*front, layer.resampling, layer.target.height, layer.target.width, layer.shared_prefix, layer.kernel)


def _prefix_key(front: Place) -> _Key:
    return (*front, "mean")


@dataclass
class _Stream:
    """Rows x of one cut, seen in one way, with everything that is to be predicted from them: targets lie side by side in y."""

    place: Place
    read: Callable[[Tensor], Tensor]
    most_images: int
    targets: dict[_Key, tuple[Place, Callable[[Tensor], Tensor]]] = field(default_factory=dict)
    widths: dict[_Key, int] = field(default_factory=dict)
    folds: dict[int, Moments] = field(default_factory=dict)


class _Rows:
    """Moments of all rows that fits need, by cut and the way of looking at it: products of a cut with itself are made once a batch."""

    def __init__(self) -> None:
        self._streams: dict[_Key, _Stream] = {}

    def want(self, layer: StitchingLayer, front: Place, end: Place) -> None:
        """Collect what fitting `layer` to this pair of cuts needs."""
        stream = self._streams.setdefault(_grid_key(layer, front), _Stream(front, layer.features, layer.most_images))
        stream.targets[end] = end, layer.target_rows
        if layer.prefix_weight is not None:
            stream = self._streams.setdefault(_prefix_key(front), _Stream(front, layer.prefix_features, sys.maxsize))
            for index in range(len(layer.prefix_weight)):
                stream.targets[(*end, index)] = end, _token(layer, index)

    def add(self, known: _Known, seen: int) -> None:
        """One batch: activations of the same images at the cuts of each anchor. seen: images of the batches before, so that the folds are
        the same however the images are batched."""
        for stream in self._streams.values():
            anchor, cut = stream.place
            for first in range(min(FOLDS, len(known[anchor][cut]))):
                fold, mine = (seen + first) % FOLDS, slice(first, None, FOLDS)
                images = known[anchor][cut][mine]
                for start in range(0, len(images), stream.most_images):
                    some = slice(start, start + stream.most_images)
                    ys = {key: read(known[end][place][mine][some]) for key, ((end, place), read) in stream.targets.items()}
                    found = Moments.of(stream.read(images[some]), torch.cat(list(ys.values()), 1))
                    stream.widths = {key: y.shape[1] for key, y in ys.items()}
                    stream.folds[fold] = stream.folds[fold] + found if fold in stream.folds else found

    def of_grid(self, layer: StitchingLayer, front: Place, end: Place) -> list[Moments]:
        """Of the map of grid and shared prefix tokens, by fold."""
        return self._folds(_grid_key(layer, front), end)

    def of_prefix(self, front: Place, end: Place, index: int) -> list[Moments]:
        """Of the map of one created prefix token, by fold."""
        return self._folds(_prefix_key(front), (*end, index))

    def _folds(self, key: _Key, target: _Key) -> list[Moments]:
        stream = self._streams[key]
        if not stream.folds:
            raise ExportError("least squares: there is no image to fit on")
        names = list(stream.widths)
        start = sum(stream.widths[name] for name in names[: names.index(target)])
        return [stream.folds[fold].targets(slice(start, start + stream.widths[target])) for fold in sorted(stream.folds)]
