"""What all anchors take, from what each brings and what the user gives."""

from dataclasses import replace

import pytest
from torch import nn

from restnet_export.anchors import Anchor
from restnet_export.inputs import GivenPreprocessing, agreed_input
from restnet_runtime.errors import SpecError
from restnet_runtime.manifest import Preprocessing

SHAPE = (3, 8, 8)
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
HALF = (0.5, 0.5, 0.5)
OWN = Preprocessing(mode="RGB", resize="shortest", interpolation="bicubic", crop_pct=0.9, mean=HALF, std=HALF)


def agreed(*own: Preprocessing | None, **given: object) -> Preprocessing:
    anchors = [Anchor(f"a{index}", "", nn.Identity(), SHAPE, item) for index, item in enumerate(own)]
    shape, preprocessing = agreed_input(anchors, GivenPreprocessing(**given))  # type: ignore[arg-type]
    assert shape == SHAPE
    return preprocessing


def test_what_the_anchors_bring() -> None:
    assert agreed(OWN, OWN) == OWN
    assert agreed(None, OWN) == OWN


def test_given_numbers_keep_the_geometry() -> None:
    assert agreed(OWN, OWN, mean=MEAN, std=STD) == replace(OWN, mean=MEAN, std=STD)


@pytest.mark.parametrize(("field", "value"), [("resize", "squash"), ("interpolation", "nearest"), ("crop_pct", 0.7)])
def test_given_geometry_changes_that_alone(field: str, value: object) -> None:
    assert agreed(OWN, None, **{field: value}) == replace(OWN, **{field: value})


def test_anchors_that_bring_none_take_what_is_given() -> None:
    assert agreed(None, None, mean=MEAN, std=STD) == Preprocessing(mode="RGB", mean=MEAN, std=STD)
    assert agreed(None, None, mean=(0.5,), std=(0.5,), resize="shortest") == Preprocessing(
        mode="L", resize="shortest", mean=(0.5,), std=(0.5,)
    )
    for given in ({}, {"resize": "squash"}):
        with pytest.raises(SpecError, match="none of these anchors brings its preprocessing: give --input, --mean and --std"):
            agreed(None, None, **given)


def test_differences_are_named_and_can_be_settled() -> None:
    other = replace(OWN, crop_pct=0.8, mean=MEAN, std=STD)
    with pytest.raises(SpecError, match=r"'a1': {'crop_pct': 0.8, 'mean': .*settle it with --crop-pct, --mean, --std$"):
        agreed(OWN, other)
    with pytest.raises(SpecError, match=r"'a0': {'crop_pct': 0.9}, 'a1': {'crop_pct': 0.8}}; settle it with --crop-pct$"):
        agreed(OWN, other, mean=MEAN, std=STD)
    assert agreed(OWN, other, mean=MEAN, std=STD, crop_pct=1.0) == replace(other, crop_pct=1.0)


def test_one_image_cannot_have_two_sizes() -> None:
    anchors = [Anchor("a", "", nn.Identity(), (3, 8, 8), OWN), Anchor("b", "", nn.Identity(), (3, 9, 9), OWN)]
    with pytest.raises(SpecError, match=r"different inputs.*'b': \(3, 9, 9\).*--input sets it"):
        agreed_input(anchors, GivenPreprocessing())


def test_what_no_bundle_could_hold_is_refused_before_anything_is_fitted() -> None:
    with pytest.raises(SpecError, match=r"cannot be used: std\.1: Input should be greater than 0$"):
        agreed(replace(OWN, std=(0.5, 0.0, 0.5)))
