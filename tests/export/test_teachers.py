"""Teachers that are no anchors: they see each image as they were trained to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from restnet_export.anchors import Anchor, AnchorSpec, load_anchor
from restnet_export.teachers import given_teacher, mean_opinion, renormalised
from restnet_runtime.errors import SpecError
from restnet_runtime.manifest import Preprocessing

SPEC = "other=timm:test_resnet@random"
SHAPE = (3, 32, 32)
AGREED = Preprocessing(mode="RGB", mean=(0.1, 0.3, 0.6), std=(0.5, 0.2, 1.0))
PIXELS = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> Anchor:
    return load_anchor(AnchorSpec.parse(SPEC), SHAPE)


def normalised(by: Preprocessing) -> Tensor:
    return (PIXELS - torch.tensor(by.mean).view(-1, 1, 1)) / torch.tensor(by.std).view(-1, 1, 1)


def scores(module: nn.Module, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = module(x).numpy()
    return found


def test_a_teacher_answers_the_anchors_images_as_it_answers_its_own(network: Anchor) -> None:
    assert network.preprocessing is not None
    anchor = replace(network, name="anchor", preprocessing=AGREED)
    teacher = given_teacher(SPEC, [anchor], AGREED)
    assert isinstance(teacher, Anchor)
    assert (teacher.name, teacher.preprocessing) == ("other", AGREED)
    expected = scores(network.module, normalised(network.preprocessing))
    np.testing.assert_allclose(scores(teacher.module, normalised(AGREED)), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert not np.allclose(scores(network.module, normalised(AGREED)), expected, rtol=0.1, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("own", [None, AGREED, replace(AGREED, resize="shortest", interpolation="nearest", crop_pct=0.5)])
def test_a_teacher_of_the_same_normalisation_stays_as_it_is(network: Anchor, own: Preprocessing | None) -> None:
    """However it would resize and crop: images are resized and cropped for the anchors."""
    teacher = replace(network, preprocessing=own)
    assert renormalised(teacher, AGREED) is teacher


def test_grey_images_are_nothing_for_a_teacher_of_colours(network: Anchor) -> None:
    with pytest.raises(
        SpecError, match=r"the teacher 'other=timm:test_resnet@random' takes images of mode RGB, the anchors' are L: give a"
    ):
        renormalised(network, Preprocessing(mode="L", mean=(0.5,), std=(0.5,)))


def test_a_teacher_that_does_not_take_the_anchors_images_is_told_so() -> None:
    anchor = Anchor("grey", "", nn.Flatten(), (1, 8, 8), None)
    grey = Preprocessing(mode="L", mean=(0.5,), std=(0.5,))
    told = r"--teacher 'torchvision:resnet18@random', which gets the anchors' images, L of shape \(1, 8, 8\): .*does not take images"
    with pytest.raises(SpecError, match=told):
        given_teacher("torchvision:resnet18@random", [anchor], grey)


def test_an_opinion_of_several_is_the_mean_of_their_log_probabilities() -> None:
    sure, unsure = torch.tensor([[8.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    together = mean_opinion([sure, unsure])
    torch.testing.assert_close(together.exp(), (sure.softmax(1) * unsure.softmax(1)).sqrt())
    assert together.argmax() == 0, "who is sure counts for more"
    torch.testing.assert_close(mean_opinion([sure + 100, unsure]), together)  # logits have no zero of their own
    torch.testing.assert_close(mean_opinion([sure]).softmax(1), sure.softmax(1))
