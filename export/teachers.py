"""Who teaches: an anchor, or another network that is given the anchors' images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from restnet_runtime.errors import SpecError
from restnet_runtime.manifest import Preprocessing

from .anchors import Anchor, AnchorSpec, load_anchor
from .cuts import CutAnchor
from .routes import routes_of
from .samples import Samples
from .scoring import score_routes

ENSEMBLE = "ensemble"
"""All anchors together, in place of the name of one."""


def mean_opinion(logits: Sequence[Tensor]) -> Tensor:
    """What several networks say together, each (B, classes): the mean of their log-probabilities, so that one that is sure counts for more
    than one that is not, whatever the scale of its logits. As good as logits: softmax gives the (geometric) mean of the probabilities.
    """
    return torch.stack([one.float().log_softmax(1) for one in logits]).mean(0)


def strongest(anchors: Mapping[str, CutAnchor], samples: Samples) -> str:
    """The largest anchor that is right about as often as the best on `samples`; without labels, the largest.

    About as often is within one standard error (Laplace's): on images that anchors were trained on all are nearly always right, and
    that one more is then says nothing. Anchors are given small to large.
    """
    if not samples.images.has_labels:
        return list(anchors)[-1]
    alone = routes_of(anchors)
    scores = score_routes(alone, anchors, {}, samples.batches())
    count, best = len(samples), max(scores)
    share = (best * count + 1) / (count + 2)
    error = math.sqrt(2 * share * (1 - share) / count)  # of a difference
    return [name for name, score in zip(anchors, scores, strict=True) if score >= best - error][-1]


def given_teacher(text: str, anchors: Sequence[Anchor], preprocessing: Preprocessing) -> str | Anchor:
    """The anchor of that name, `ENSEMBLE`, or another network that takes images as `preprocessing`, the anchors', makes them.

    Raises `SpecError` if it cannot be loaded, tells other numbers of classes apart, or takes grey images where these have colours.
    """
    names = [anchor.name for anchor in anchors]
    if text in names or text == ENSEMBLE:
        return text
    try:
        spec = AnchorSpec.parse(text)
    except SpecError as error:
        raise SpecError(f"--teacher {text!r} is none of the anchors {', '.join(names)}, and no other network: {error}") from error
    shape = anchors[0].input_shape
    try:
        teacher = load_anchor(spec, shape)
    except SpecError as error:
        raise SpecError(f"--teacher {text!r}, which gets the anchors' images, {preprocessing.mode} of shape {shape}: {error}") from error
    with torch.no_grad():
        counts = [int(anchor.module(torch.zeros(1, *anchor.input_shape)).shape[1]) for anchor in (teacher, anchors[0])]
    if counts[0] != counts[1]:
        raise SpecError(f"the teacher {text!r} tells {counts[0]} classes apart, the anchors {counts[1]}")
    return renormalised(teacher, preprocessing)


def renormalised(teacher: Anchor, preprocessing: Preprocessing) -> Anchor:
    """`teacher` for images that were normalised as `preprocessing` says; one that brings none of its own takes them as they are.

    Images stay as they were resized and cropped. Raises `SpecError` where one takes grey images and the other has colours.
    """
    own = teacher.preprocessing
    if own is None or (own.mode, own.mean, own.std) == (preprocessing.mode, preprocessing.mean, preprocessing.std):
        return teacher
    if own.mode != preprocessing.mode:
        raise SpecError(
            f"the teacher {teacher.source!r} takes images of mode {own.mode}, the anchors' are {preprocessing.mode}: "
            f"give a teacher for {preprocessing.mode}, or the name of an anchor"
        )
    return replace(teacher, module=Renormalised(teacher.module, preprocessing, own).eval(), preprocessing=preprocessing)


class Renormalised(nn.Module):
    """A network for images (B, C, H, W) that were normalised by another mean and deviation than its own."""

    factor: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, given: Preprocessing, own: Preprocessing) -> None:
        """given, own: what the images were normalised by, and what the network takes; of the same mode."""
        super().__init__()
        self.network = network
        mean, std, own_mean, own_std = (torch.tensor(v, dtype=torch.float64) for v in (given.mean, given.std, own.mean, own.std))
        self.register_buffer("factor", (std / own_std).float().view(-1, 1, 1))
        self.register_buffer("offset", ((mean - own_mean) / own_std).float().view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(x * self.factor + self.offset)
        return scores
