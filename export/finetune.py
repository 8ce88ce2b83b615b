"""Fine-tuning of the stitching layers alone: the anchors stay as they are, bit for bit.

ReStNet tunes only the stitching layer; the loss adds distillation (Hinton et al., "Distilling the knowledge in a
neural network", 2015) from the strongest anchor.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from restnet_runtime.errors import ExportError

from .stitching import StitchingLayer


class LabelledImages(Protocol):
    """What a torch `Dataset` of (image, class index) offers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int | Tensor]: ...


@dataclass(frozen=True)
class Tuned:
    """What tuning did to stitching layers that share routes (mostly one layer).

    layers:                     where the layers lie: (index of the route, index of the module in it), first occurrence
    loss_before, loss_after:    mean held-out loss of their routes; NaN when nothing was held out
    kept:                       the tuned weights stayed, or the old ones were put back
    """

    layers: tuple[tuple[int, int], ...]
    loss_before: float
    loss_after: float
    kept: bool


def distillation_loss(logits: Tensor, labels: Tensor, teacher_logits: Tensor, alpha: float, temperature: float) -> Tensor:
    """(1 - alpha) * cross-entropy + alpha * T^2 * KL(teacher softened by T, student softened by T), mean over the batch.

    logits, teacher_logits: (B, classes); labels: int64 (B,).
    """
    soft = functional.kl_div(
        functional.log_softmax(logits / temperature, 1),
        functional.log_softmax(teacher_logits / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - alpha) * functional.cross_entropy(logits, labels) + alpha * temperature**2 * soft


def finetune_stitch(
    routes: Sequence[nn.Sequential],
    teacher: nn.Module,
    data: LabelledImages,
    *,
    epochs: int = 5,
    steps: int | None = None,
    batch_size: int = 48,
    lr: float = 3e-4,
    alpha: float = 0.5,
    temperature: float = 2.0,
    held_out: float = 0.2,
    seed: int = 0,
    progress: bool = True,
) -> list[Tuned]:
    """Tune the stitching layers of `routes` in place with Adam and a cosine schedule; routes take their steps in turn.

    teacher:   the strongest anchor; computes logits (B, classes) like every route. In a turn all routes see the same batch,
               so it runs once a turn.
    epochs:    how often every route sees every image; `steps` counts steps per route instead.
    lr:        the step size is decisive: on ten ImageNet routes and 1,000 images 2e-3 wrecked five, 3e-4 lifted both directions.
    held_out:  share of `data` that is not tuned on. Layers whose routes lose on it by tuning get their old weights back;
               0 keeps all tuned weights.

    Everything runs in eval mode (BatchNorm uses and keeps its statistics) without gradients for anything but the stitching
    layers; modes and `requires_grad` are put back afterwards, also after an exception. The same seed gives the same result.
    Raises `ExportError` for settings out of range, too few images, or no route with a stitching layer.
    """
    _check_settings(epochs if steps is None else steps, batch_size, lr, alpha, temperature, held_out)
    groups = _groups(routes)
    if not groups:
        raise ExportError("finetune: none of the routes has a stitching layer")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator).tolist()
    split = math.ceil(held_out * len(data))
    kept_back, tuned_on = order[:split], order[split:]
    if not tuned_on:
        raise ExportError(f"finetune: {len(data)} images leave none to tune on with {held_out:.0%} held out")
    layers = [layer for group in groups for layer in group.layers]
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    turns = steps if steps is not None else epochs * math.ceil(len(tuned_on) / batch_size)

    with _frozen([*routes, teacher], parameters):
        loss_of = _Loss(teacher, alpha, temperature)
        stitched = sorted({index for group in groups for index in group.routes})
        before = _held_out_losses(routes, stitched, loss_of, data, kept_back, batch_size)
        saved = [{name: value.clone() for name, value in layer.state_dict().items()} for layer in layers]

        optimiser = torch.optim.Adam(parameters, lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, turns))
        with tqdm(total=turns * len(stitched), desc="fine-tuning", unit="step", disable=not progress) as bar:
            for indices in _endless_batches(tuned_on, batch_size, turns, generator):
                images, labels = _batch(data, indices, parameters[0].device)
                teacher_logits = loss_of.teacher_logits(images)
                total = 0.0
                for index in stitched:
                    optimiser.zero_grad(set_to_none=True)  # Adam leaves layers without a gradient alone
                    loss = loss_of(routes[index], images, labels, teacher_logits)
                    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
                    optimiser.step()
                    total += loss.item()
                    bar.update()
                bar.set_postfix(loss=f"{total / len(stitched):.3f}")
                schedule.step()
        optimiser.zero_grad(set_to_none=True)

        after = _held_out_losses(routes, stitched, loss_of, data, kept_back, batch_size)
        results = [_judged(group, before, after) for group in groups]
        state = dict(zip(layers, saved, strict=True))
        for group, result in zip(groups, results, strict=True):
            for layer in () if result.kept else group.layers:
                layer.load_state_dict(state[layer])
    return results


@dataclass(frozen=True)
class _Group:
    """Stitching layers that cannot be judged apart, because a route holds several of them, and all routes that hold one."""

    layers: list[StitchingLayer]
    places: list[tuple[int, int]]
    routes: set[int]


def _groups(routes: Sequence[nn.Sequential]) -> list[_Group]:
    groups: list[_Group] = []
    for index, route in enumerate(routes):
        found = [(layer, (index, place)) for place, layer in enumerate(route) if isinstance(layer, StitchingLayer)]
        if not found:
            continue
        touched = [group for group in groups if any(layer in group.layers for layer, _ in found)]
        merged = _Group(
            [layer for group in touched for layer in group.layers],
            [place for group in touched for place in group.places],
            {index, *(member for group in touched for member in group.routes)},
        )
        for layer, place in found:
            if layer not in merged.layers:
                merged.layers.append(layer)
                merged.places.append(place)
        groups = [group for group in groups if group not in touched] + [merged]
    return groups


class _Loss:
    """The loss of a route on a batch, with the teacher's logits computed once per batch."""

    def __init__(self, teacher: nn.Module, alpha: float, temperature: float) -> None:
        self._teacher, self._alpha, self._temperature = teacher, alpha, temperature

    def teacher_logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self._teacher(images)
        return logits

    def __call__(self, route: nn.Module, images: Tensor, labels: Tensor, teacher_logits: Tensor) -> Tensor:
        return distillation_loss(route(images), labels, teacher_logits, self._alpha, self._temperature)


def _held_out_losses(
    routes: Sequence[nn.Sequential], chosen: list[int], loss_of: _Loss, data: LabelledImages, indices: list[int], batch_size: int
) -> dict[int, float]:
    """Mean loss per chosen route; empty when nothing is held out."""
    sums = dict.fromkeys(chosen, 0.0) if indices else {}
    device = next(routes[chosen[0]].parameters()).device
    with torch.no_grad():
        for start in range(0, len(indices), batch_size):
            images, labels = _batch(data, indices[start : start + batch_size], device)
            teacher_logits = loss_of.teacher_logits(images)
            for index in sums:
                sums[index] += loss_of(routes[index], images, labels, teacher_logits).item() * len(labels)
    return {index: value / len(indices) for index, value in sums.items()}


def _judged(group: _Group, before: dict[int, float], after: dict[int, float]) -> Tuned:
    if not before:
        return Tuned(tuple(group.places), math.nan, math.nan, True)
    old, new = (sum(losses[index] for index in group.routes) / len(group.routes) for losses in (before, after))
    return Tuned(tuple(group.places), old, new, new < old)


def _endless_batches(indices: list[int], batch_size: int, count: int, generator: torch.Generator) -> Iterator[list[int]]:
    """`count` batches, reshuffled whenever the images are through; the last batch of a round may be smaller."""
    waiting: list[int] = []
    for _ in range(count):
        if not waiting:
            waiting = [indices[position] for position in torch.randperm(len(indices), generator=generator).tolist()]
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _batch(data: LabelledImages, indices: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and labels int64 (B,) on `device`."""
    items = [data[index] for index in indices]
    images = torch.stack([image for image, _ in items]).to(device)
    return images, torch.tensor([int(label) for _, label in items], device=device)


@contextmanager
def _frozen(modules: Sequence[nn.Module], tuned: list[nn.Parameter]) -> Iterator[None]:
    """Eval mode, and gradients for `tuned` alone; both put back at the end."""
    modes = {part: part.training for module in modules for part in module.modules()}
    flags = {parameter: parameter.requires_grad for module in modules for parameter in module.parameters()}
    chosen = set(tuned)
    try:
        for part in modes:
            part.training = False
        for parameter in flags:
            parameter.requires_grad_(parameter in chosen)
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _check_settings(rounds: int, batch_size: int, lr: float, alpha: float, temperature: float, held_out: float) -> None:
    for name, value, fits, allowed in (
        ("epochs or steps", rounds, rounds >= 1, "at least 1"),
        ("batch_size", batch_size, batch_size >= 1, "at least 1"),
        ("lr", lr, 0 < lr < math.inf, "above 0 and finite"),
        ("alpha", alpha, 0 <= alpha <= 1, "0..1"),
        ("temperature", temperature, 0 < temperature < math.inf, "above 0 and finite"),
        ("held_out", held_out, 0 <= held_out < 1, "at least 0 and below 1"),
    ):
        if not fits:
            raise ExportError(f"finetune: {name} is {value}, allowed is {allowed}")
