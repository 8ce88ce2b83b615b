"""What tuning minimises: cross-entropy, soft and hard distillation, and the distance to an anchor's penultimate features."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Answer:
    """What a network says of a batch: `logits` (B, classes) and `features` (B, ...), the input of its last linear layer."""

    logits: Tensor
    features: Tensor


@dataclass(frozen=True)
class Target:
    """What a route should say of a batch.

    labels:    int64 (B,), or None where there are none
    teacher:   the teacher's logits (B, classes)
    features:  penultimate features of the anchor that the route ends in, shaped as the route's own

    Losses are computed in float32, whatever these are in.
    """

    labels: Tensor | None
    teacher: Tensor
    features: Tensor


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses, each a mean over the batch; a weight of 0 leaves the loss out.

    labels:       cross-entropy with the labels
    soft:         T^2 * KL(teacher softened by T, student softened by T) (Hinton et al. 2015)
    hard:         cross-entropy with the class that the teacher names (as DeiT and SN-Net distil)
    features:     squared distance of the penultimate features, relative to the target's variance over the batch
    temperature:  T
    """

    labels: float = 0.0
    soft: float = 0.1
    hard: float = 0.0
    features: float = 1.0
    temperature: float = 2.0

    def __call__(self, answer: Answer, target: Target) -> Tensor:
        """The loss as a scalar. Cross-entropy with labels is left out where there are none."""
        loss = self.of_logits(answer.logits, target).mean()
        if self.features:
            loss = loss + self.features * feature_loss(answer.features.float(), target.features.float())
        return loss

    def of_logits(self, logits: Tensor, target: Target) -> Tensor:
        """The part that depends on the logits, image by image: (B,)."""
        logits, teacher = logits.float(), target.teacher.float()
        loss = logits.new_zeros(len(logits))
        if self.labels and target.labels is not None:
            loss = loss + self.labels * functional.cross_entropy(logits, target.labels, reduction="none")
        if self.soft:
            loss = loss + self.soft * soft_distillation(logits, teacher, self.temperature)
        if self.hard:
            loss = loss + self.hard * functional.cross_entropy(logits, teacher.argmax(1), reduction="none")
        return loss


def soft_distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher softened by T, student softened by T), image by image: (B, classes) twice to (B,)."""
    divergence = functional.kl_div(
        functional.log_softmax(logits / temperature, 1), functional.log_softmax(teacher / temperature, 1), reduction="none", log_target=True
    )
    return temperature**2 * divergence.sum(1)


def feature_loss(features: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance over the mean variance of the target's elements in the batch: 1 is what their mean would get."""
    spread = target.var(0, correction=0).mean() if len(target) > 1 else target.square().mean()
    return (features - target).square().mean() / spread.clamp_min(torch.finfo(target.dtype).tiny)
