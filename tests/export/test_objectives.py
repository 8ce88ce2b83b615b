"""Losses of tuning beside what their formulas say."""

import pytest
import torch

from restnet_export.objectives import Answer, Objective, Target, feature_loss, soft_distillation

torch.manual_seed(0)
LOGITS, TEACHER, LABELS = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
FEATURES, WANTED = torch.randn(6, 8), torch.randn(6, 8)


def loss_of(**weights: float) -> float:
    objective = Objective(**{"labels": 0.0, "soft": 0.0, "hard": 0.0, "features": 0.0, **weights})
    return objective(Answer(LOGITS, FEATURES), Target(LABELS, TEACHER, WANTED)).item()


def test_each_loss_is_its_formula() -> None:
    p, q = (TEACHER / 3).softmax(1), (LOGITS / 3).softmax(1)
    soft = 9 * (p * (p / q).log()).sum(1).mean().item()
    named = -LOGITS.log_softmax(1)[range(6), LABELS].mean().item()
    hard = -LOGITS.log_softmax(1)[range(6), TEACHER.argmax(1)].mean().item()
    features = ((FEATURES - WANTED).square().mean() / WANTED.var(0, correction=0).mean()).item()
    assert loss_of(soft=1, temperature=3) == pytest.approx(soft, rel=1e-5)
    assert loss_of(labels=1) == pytest.approx(named, rel=1e-5)
    assert loss_of(hard=1) == pytest.approx(hard, rel=1e-5)
    assert loss_of(features=1) == pytest.approx(features, rel=1e-5)
    assert loss_of(labels=0.3, soft=0.7, features=2, temperature=3) == pytest.approx(0.3 * named + 0.7 * soft + 2 * features, rel=1e-5)


def test_nothing_is_lost_where_the_teacher_is_met() -> None:
    assert soft_distillation(TEACHER, TEACHER, 2.0).abs().max() < 1e-6
    assert feature_loss(WANTED, WANTED) == 0


def test_the_mean_gets_a_feature_loss_of_one_whatever_the_scale() -> None:
    for scale in (1e-4, 1.0, 1e4):
        target = WANTED * scale + 3
        assert feature_loss(target.mean(0).expand_as(target), target).item() == pytest.approx(1, rel=1e-3)


def test_without_labels_their_loss_is_left_out() -> None:
    target = Target(None, TEACHER, WANTED)
    with_labels, without = Objective(labels=1.0, features=0.0), Objective(features=0.0)
    assert with_labels(Answer(LOGITS, FEATURES), target) == without(Answer(LOGITS, FEATURES), target)


def test_a_single_image_has_features_too() -> None:
    assert torch.isfinite(feature_loss(FEATURES[:1], WANTED[:1]))
