import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from restnet_export.layouts import Layout, layout_of, layouts_of
from restnet_runtime.errors import CutError

IMAGE = (3, 224, 224)


@pytest.mark.parametrize(
    ("shape", "input_shape", "expected"),
    [
        ((64, 56, 56), IMAGE, Layout("map", 64, 56, 56)),
        ((512, 1, 1), IMAGE, Layout("map", 512, 1, 1)),
        ((56, 56, 96), IMAGE, Layout("map_last", 96, 56, 56)),
        ((7, 7, 768), IMAGE, Layout("map_last", 768, 7, 7)),
        ((8, 24, 24), (1, 28, 28), Layout("map", 8, 24, 24)),
        ((197, 192), IMAGE, Layout("tokens", 192, 14, 14, 1)),
        ((198, 192), IMAGE, Layout("tokens", 192, 14, 14, 2)),
        ((261, 384), IMAGE, Layout("tokens", 384, 16, 16, 5)),
        ((196, 512), IMAGE, Layout("tokens", 512, 14, 14, 0)),
        ((17, 192), (3, 64, 64), Layout("tokens", 192, 4, 4, 1)),
        ((1000,), IMAGE, Layout("vector", 1000, 1, 1)),
        # Twice as high as wide, rounded by less than a cell.
        ((64, 28, 14), (3, 224, 112), Layout("map", 64, 28, 14)),
        ((64, 7, 4), (3, 100, 60), Layout("map", 64, 7, 4)),
        ((28, 14, 64), (3, 224, 112), Layout("map_last", 64, 28, 14)),
        ((33, 192), (3, 128, 64), Layout("tokens", 192, 8, 4, 1)),
    ],
)
def test_layouts_of_known_networks(shape, input_shape, expected):
    assert layout_of(shape, input_shape) == expected
    assert layout_of(shape, input_shape).shape == shape


def test_a_neighbour_decides_where_a_map_fits_both_ways():
    assert layout_of((8, 8, 8), (3, 32, 32)) == Layout("map", 8, 8, 8)
    assert layout_of((8, 8, 8), (3, 32, 32), like="map_last") == Layout("map_last", 8, 8, 8)
    assert layout_of((16, 8, 8), (3, 32, 32), like="map_last") == Layout("map", 16, 8, 8)


@pytest.mark.parametrize("shape", [(), (3, 17, 192), (4, 4, 4, 4), (64, 56, 28), (23 * 23 - 1 - 17, 8)])
def test_shapes_that_are_no_layout_are_refused(shape):
    assert layouts_of(shape, IMAGE) == []
    with pytest.raises(CutError, match=r"no map, tokens or vector of an image of 224x224.*allowed are"):
        layout_of(shape, IMAGE)


sizes = st.integers(1, 64)


@given(channels=st.integers(1, 2048), cells=sizes, stride=sizes, kind=st.sampled_from(["map", "map_last"]))
def test_maps_of_square_images_are_read_back(channels, cells, stride, kind):
    made = Layout(kind, channels, cells, cells)
    assume(channels != cells)
    assert layout_of(made.shape, (3, cells * stride, cells * stride)) == made


@given(channels=st.integers(1, 2048), cells=st.integers(3, 64), stride=sizes, prefix=st.integers(0, 6))
def test_tokens_of_square_images_are_read_back(channels, cells, stride, prefix):
    made = Layout("tokens", channels, cells, cells, prefix)
    # From 2 * cells + 1 prefix tokens on, a larger grid fits as well.
    assume(prefix < 2 * cells + 1)
    assert layout_of(made.shape, (3, cells * stride, cells * stride)) == made
