"""A step loop with explicit state that tunes stitching layers, or everything, and never leaves a route below its start."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from restnet_runtime.errors import ExportError

from .amp import Precision
from .augment import augmented, blended
from .coordinates import LayerCoordinates, spreads_of
from .cuts import CutAnchor
from .devices import device_of
from .freezing import frozen
from .groups import Group
from .guard import Guard, Score, ScoreSum
from .objectives import Target
from .ranks import Ranks
from .routes import StitchedRoute
from .sampling import ImageOrder, LabelledImages, RouteSampler, batch_of, batches_of, constant_and_drawn, drawn_from, split_of
from .schedule import Schedule
from .settings import TuneSettings
from .stitching import StitchingLayer
from .teachers import ENSEMBLE, mean_opinion
from .walks import Network, Seen

SPREAD_IMAGES = 256
"""So many images tell how a layer's input and target vary."""
LORA_RANK = 8
"""Of low-rank updates that were given no rank."""


@dataclass(frozen=True)
class Tuned:
    """What tuning did to one route, judged on the held-out images.

    accuracy_before, accuracy_after:  0..1; without labels the agreement with the teacher
    loss_before, loss_after:          of the logits
    improved:                         the tuned weights stayed, or those of the start are back
    curve:                            (step, loss of the best values so far), from the start and from each check
    """

    route: str
    accuracy_before: float
    accuracy_after: float
    loss_before: float
    loss_after: float
    improved: bool
    curve: tuple[tuple[int, float], ...] = ()


class Tuner:
    """Tunes a family of routes step by step; use it as a context manager.

    All that a step depends on is in `state_dict`: the values tuned, the optimisers, the random generator, what is left of the round of
    images, the best values and scores. Leaving the context, by an exception too, puts the best values in place, so whatever was reached
    is usable. Everything runs in eval mode: BatchNorm uses and keeps its statistics.
    """

    def __init__(
        self,
        anchors: Mapping[str, CutAnchor],
        layers: Mapping[str, StitchingLayer],
        routes: Sequence[StitchedRoute],
        macs: Sequence[int],
        teacher: str | nn.Module,
        data: LabelledImages,
        settings: TuneSettings,
        ranks: Ranks | None = None,
        *,
        fitted: int = 0,
        starts: Mapping[int, Score] | None = None,
    ) -> None:
        """macs: of each route. ranks: processes that tune together, `batch_size` images each; all are given the same.
        teacher: whose logits are the target: an anchor, `ENSEMBLE`, or a network (B, C, H, W) to (B, classes).
        fitted: the layers were fitted on the first so many of `data`, which are held out last.
        starts: by index of the route, what an earlier phase began with; no route falls below that.

        Raises `ExportError` where no route has a stitching layer, or too few images remain to tune on.
        """
        if not any(route.layers for route in routes):
            raise ExportError("finetune: none of the routes has a stitching layer")
        self._settings, self._routes, self._teacher, self._data = settings, list(routes), teacher, data
        self._ranks, self._schedule = ranks or Ranks(), Schedule(settings)
        self._full = settings.mode == "full"
        self._network = Network(anchors, layers)
        self._original = self._network if not self._full else Network(_copied(anchors), {})
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._held_out, tuned_on = split_of(len(data), settings.held_out, self._generator, fitted)
        self._images = ImageOrder(tuned_on, settings.batch_size * self._ranks.size, self._generator)
        self._always, pool = ([], list(range(len(self._routes)))) if self._full else constant_and_drawn(self._routes)
        self._sampler = RouteSampler({route: macs[route] for route in pool}, settings.sampling, settings.drawn, self._generator)
        self._guard, self._earlier = Guard(self._scores), dict(starts or {})
        self._layers = layers
        self._blocks = [block for anchor in anchors.values() for block in anchor.blocks]
        self._device = device_of(next(iter(layers.values())))
        self._precision = Precision(settings.amp, self._device)
        self._groups = self._made_groups(tuned_on[:SPREAD_IMAGES])
        taught_by = [] if isinstance(teacher, str) else [teacher]
        self._frozen = frozen(
            [*self._blocks, *layers.values(), *taught_by], [parameter for group in self._groups for parameter in group.trained]
        )
        self.steps_done = 0
        self._curves: dict[int, list[tuple[int, float]]] = {}

    def __enter__(self) -> "Tuner":
        self._frozen.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for group in self._groups:
            group.restore()
        self._frozen.__exit__(kind, error, trace)

    @property
    def done(self) -> bool:
        return self.steps_done >= self._settings.steps or all(group.done for group in self._groups)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What gradients are taken of, in an order that depends on the family alone."""
        return [parameter for group in self._groups for parameter in group.trained]

    def step(self) -> float:
        """Tune on the next batch, and judge the weights when it is time. Returns the mean loss of the routes that took part."""
        if self.steps_done == 0:
            self._guard.begin(sorted({route for group in self._groups for route in group.routes}), self._earlier)
            self._draw()
        losses = [loss for _ in range(self._settings.accumulate) for loss in self._gather()]
        self._ranks.sum_gradients(self.parameters)
        share = self._schedule.share(self.steps_done)
        for group in self._groups:
            if not group.done:
                group.step(share, self._precision)
        self._precision.update()
        self.steps_done += 1
        if self._schedule.judged(self.steps_done):
            self.judge()
        return sum(losses) / max(len(losses), 1)

    def judge(self) -> None:
        """Judge the weights of now: those that are the best so far are kept."""
        for route in self._guard.judge([group for group in self._groups if not group.done], blend=self._full):
            self._sampler.favour(route)
        self._draw()

    def _draw(self) -> None:
        for route, score in self._guard.best.items():
            self._curves.setdefault(route, []).append((self.steps_done, score.loss))

    @property
    def starts(self) -> Mapping[int, Score]:
        """What the routes may not fall below, by index; empty before the first step."""
        return self._guard.start

    def results(self) -> list[Tuned]:
        """What became of the routes so far, in their order; those that no group tunes are left out."""
        found = []
        for route, before in self._guard.start.items():
            after = self._guard.best[route]
            improved = any(group.improved for group in self._groups if route in group.routes)
            name, curve = self._routes[route].name, tuple(self._curves.get(route, ()))
            found.append(Tuned(name, before.accuracy, after.accuracy, before.loss, after.loss, improved, curve))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, lists and dictionaries: `torch.load(weights_only=True)` reads it."""
        return {
            "steps_done": self.steps_done,
            "guard": self._guard.state_dict(),
            "groups": [group.state_dict() for group in self._groups],
            "images": self._images.state_dict(),
            "routes": self._sampler.state_dict(),
            "generator": self._generator.get_state(),
            "precision": self._precision.state_dict(),
            "curves": self._curves,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; the family, the images and the settings must be those of the state."""
        self.steps_done = state["steps_done"]
        for group, saved in zip(self._groups, state["groups"], strict=True):
            group.load_state_dict(saved)
        self._guard.load_state_dict(state["guard"])
        self._images.load_state_dict(state["images"])
        self._sampler.load_state_dict(state["routes"])
        self._generator.set_state(state["generator"])
        self._precision.load_state_dict(state["precision"])
        self._curves = {route: [tuple(point) for point in curve] for route, curve in state["curves"].items()}

    def _gather(self) -> list[float]:
        """Gradients of this rank's part of a batch added to those there are; the losses of the routes that took part."""
        settings, indices, chosen = self._settings, self._images.next(), self._chosen()
        mine, generator = self._ranks.share(indices), self._own_generator()
        if not mine:  # the last batch of a round may be too small for all ranks
            return []
        part = len(mine) / len(indices) / settings.accumulate / (len(chosen) if self._full else 1)
        images, labels = batch_of(self._data, mine, self._device, self._ranks.share(self._images.following))
        images = augmented(images, settings.flip, settings.shift, generator)
        if settings.blend:
            images = blended(images, generator)
        with self._precision.autocast():
            originals = self._original.seen(images)
            taught = self._taught(images, originals)
        objective = self._schedule.objective(self.steps_done)
        losses: list[Tensor] = []
        for index in chosen:
            route = self._routes[index]
            with self._precision.autocast():
                answer = self._network.from_images(route, images) if self._full else self._network.from_front(route, originals)
            loss = objective(answer, self._target(route, labels, taught, originals))
            self._precision.backward(part * loss)
            losses.append(loss.detach())
        return torch.stack(losses).cpu().tolist() if losses else []  # asked for once: a GPU goes on with the next route meanwhile

    def _own_generator(self) -> torch.Generator:
        """For what ranks draw differently, as they change images of their own; the common one stays in step."""
        if not (self._settings.flip or self._settings.shift or self._settings.blend):
            return self._generator
        seed = int(torch.randint(2**62, (), generator=self._generator))
        return torch.Generator().manual_seed(seed + self._ranks.rank)

    def _chosen(self) -> list[int]:
        """Every route with one layer and some of the others; in full tuning those drawn, and an anchor, each in its turn."""
        drawn = set(self._sampler.draw())
        if not self._full:
            tuned = {route for group in self._groups if not group.done for route in group.routes}
            return sorted(tuned.intersection(drawn.union(self._always)))
        anchors = [index for index, route in enumerate(self._routes) if not route.layers]
        if anchors and not drawn.intersection(anchors):
            drawn.add(anchors[self.steps_done % len(anchors)])
        return sorted(drawn)

    def _target(self, route: StitchedRoute, labels: Tensor, taught: Tensor, originals: Mapping[str, Seen]) -> Target:
        """An anchor is taught by its own original, a stitched route by the teacher and the features of the anchor that it ends in."""
        end = originals[route.parts[-1].anchor].answer
        return Target(labels, taught if route.layers else end.logits, end.features)

    def _taught(self, images: Tensor, originals: Mapping[str, Seen]) -> Tensor:
        """The teacher's logits."""
        if self._teacher == ENSEMBLE and ENSEMBLE not in originals:
            return mean_opinion([seen.answer.logits for seen in originals.values()])
        if isinstance(self._teacher, str):
            return originals[self._teacher].answer.logits
        with torch.no_grad():
            logits: Tensor = self._teacher(images)
        return logits

    def _scores(self, routes: Sequence[int]) -> dict[int, Score]:
        """Held-out scores of the routes with the weights of now. All are measured against the one teacher."""
        objective = replace(self._settings.objective, features=0.0)
        sums = {route: ScoreSum() for route in routes}
        with torch.no_grad():
            draws = batches_of(self._ranks.share(self._held_out), self._settings.batch_size)
            for images, labels in drawn_from(self._data, draws, self._device):
                originals = self._original.seen(images)
                seen = self._network.seen(images) if self._full else originals
                teacher = self._taught(images, originals)
                right = labels if self._settings.labelled else teacher.argmax(1)
                for route, found in sums.items():
                    answer = self._network.from_front(self._routes[route], seen)
                    losses = objective.of_logits(answer.logits, Target(labels, teacher, answer.features))
                    found.add(losses, answer.logits.argmax(1) == right)
        return {route: self._whole(found.score()) for route, found in sums.items()}

    def _whole(self, part: Score) -> Score:
        """The score on all held-out images, of which each rank has its share."""
        count = len(self._held_out)
        return Score(self._ranks.join(part.losses, count), self._ranks.join(part.hits.float(), count) > 0)

    def _made_groups(self, spread_on: Sequence[int]) -> list[Group]:
        settings = self._settings
        batches = (images for images, _ in drawn_from(self._data, batches_of(spread_on, settings.batch_size), self._device))
        spreads = spreads_of(self._routes, self._layers, map(self._original.seen, batches))
        rank = LORA_RANK if settings.mode == "lora" and settings.rank is None else settings.rank
        used = list(dict.fromkeys(name for route in self._routes for name in route.layers))
        groups = [([name], [index for index, route in enumerate(self._routes) if name in route.layers]) for name in used]
        if self._full:
            groups = [(used, list(range(len(self._routes))))]
        weights = {id(weight): weight for block in self._blocks for weight in block.parameters()}
        tuned = list(weights.values()) if self._full else []
        return [
            Group(
                routes,
                {name: LayerCoordinates(self._layers[name], spreads[name], rank, settings.seed) for name in names},
                tuned,
                settings.lr,
                settings.lr_weights,
            )
            for names, routes in groups
        ]


def _copied(anchors: Mapping[str, CutAnchor]) -> dict[str, CutAnchor]:
    return {name: replace(anchor, blocks=copy.deepcopy(anchor.blocks)) for name, anchor in anchors.items()}
