"""Images that cannot be read: left out, counted and listed, up to a limit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restnet_export.data import Samples, load_images
from restnet_export.screening import readable
from restnet_runtime.errors import SpecError
from restnet_runtime.manifest import Preprocessing

COLOUR = Preprocessing(mode="RGB", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))

DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"no image at all"),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "a bomb": lambda path: Image.new("1", (20_000, 20_000)).save(path),  # 400 million pixels in 50 kB
    "floating point": lambda path: Image.new("F", (4, 4)).save(path, format="TIFF"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty coloured PNGs of two classes."""
    rng = np.random.default_rng(0)
    for index in range(20):
        path = tmp_path / "photos" / "ab"[index % 2] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def samples(folder: Path) -> Samples:
    return Samples(load_images(f"imagefolder:{folder}"), COLOUR, (3, 8, 8))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", list(DAMAGES))
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_image_is_left_out_and_told(folder: Path, damage: str, workers: int) -> None:
    bad = folder / "b" / "07.png"
    DAMAGES[damage](bad)
    every, said = samples(folder), list[str]()
    good = readable(every, 0.05, said.append, workers)
    assert len(good) == 19
    assert str(bad) not in [good.which(index) for index in range(19)]
    assert good.labels.tolist() == [0] * 10 + [1] * 9
    assert said[0] == "1 of 20 images of 'imagefolder:photos' cannot be read and are left out:"
    assert said[1].startswith(f"  data 'imagefolder:photos', {bad}: ")
    assert len(said) == 2


@pytest.mark.parametrize("workers", [0, 3])
def test_more_than_the_limit_are_one_error(folder: Path, workers: int) -> None:
    for name in ("a/04.png", "b/07.png", "b/11.png"):
        (folder / name).write_bytes(b"")
    assert len(readable(samples(folder), 0.15, lambda _: None, workers)) == 17
    with pytest.raises(SpecError, match=r"more than 2 of 20 images of .* cannot be read \(--max-bad 0.1\), the first: .*a/04.png"):
        readable(samples(folder), 0.1, lambda _: None, workers)
    with pytest.raises(SpecError, match=r"more than 0 of 20 images of .*a/04.png"):
        readable(samples(folder), 0, lambda _: None, workers)


@pytest.mark.parametrize("workers", [0, 3])
def test_where_few_are_wanted_the_next_good_ones_are_taken(folder: Path, workers: int) -> None:
    (folder / "a" / "02.png").write_bytes(b"")
    (folder / "b" / "19.png").write_bytes(b"")  # not looked at
    said: list[str] = []
    good = readable(samples(folder), 0.2, said.append, workers, count=5)
    assert [Path(good.which(index)).name for index in range(5)] == ["00.png", "04.png", "06.png", "08.png", "10.png"]
    assert said[0] == "1 of 6 images of 'imagefolder:photos' cannot be read and are left out:"


def test_long_lists_are_cut(folder: Path) -> None:
    for index in range(0, 20, 2):
        (folder / "a" / f"{index:02}.png").write_bytes(b"")
    for index in range(1, 9, 2):
        (folder / "b" / f"{index:02}.png").write_bytes(b"")
    said: list[str] = []
    assert len(readable(samples(folder), 0.9, said.append)) == 6
    assert (len(said), said[-1]) == (12, "  and 4 more")


def test_pixels_are_not_decoded_for_it() -> None:
    """What lies there as pixels was checked when it was opened."""
    digits = load_images("digits:val")
    asked: list[int] = []

    def source(index: int) -> np.ndarray:
        asked.append(index)
        return np.zeros((8, 8, 1), np.uint8)

    images = type(digits)("pixels", digits.labels, None, source)
    assert len(readable(Samples(images, COLOUR, (3, 8, 8)), 0, lambda _: None, count=11)) == 11
    assert asked == []
