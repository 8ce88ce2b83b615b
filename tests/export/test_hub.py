"""Data sets of Hugging Face: made on disk and read from there."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from restnet_export.data import Samples, load_images, load_split
from restnet_runtime.errors import SpecError
from restnet_runtime.manifest import Preprocessing

datasets = pytest.importorskip("datasets")

COLOUR = Preprocessing(mode="RGB", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No progress bars, and a cache that goes away."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def table(**columns: Any) -> Any:
    """Six lossless images, and what else is given as (feature, values)."""
    features = {"image": datasets.Image(), **{name: feature for name, (feature, _) in columns.items()}}
    images = [Image.fromarray(pixels) for pixels in PIXELS]
    values = {"image": images, **{name: list(given) for name, (_, given) in columns.items()}}
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def labelled(count: int = 6) -> Any:
    return table(label=(datasets.ClassLabel(names=["cat", "dog"]), [0, 1, 1, 0, 1, 0])).select(range(count))


def pixels(spec: str) -> np.ndarray:
    """What an identity of preprocessing gives: RGB as 0..255."""
    plain = Preprocessing(mode="RGB", mean=(0.0,) * 3, std=(1 / 255,) * 3)
    x = next(Samples(load_images(spec), plain, (3, 5, 4)).batches())[0]
    return np.round(x.numpy()).astype(np.uint8).transpose(0, 2, 3, 1)


def test_a_table_saved_to_disk(tmp_path: Path) -> None:
    labelled().save_to_disk(tmp_path / "pets")
    images = load_images(f"hf:{tmp_path / 'pets'}")
    assert (images.name, images.classes, images.labels.tolist()) == ("hf:pets", ("cat", "dog"), [0, 1, 1, 0, 1, 0])
    np.testing.assert_array_equal(pixels(f"hf:{tmp_path / 'pets'}"), PIXELS)


def test_splits_saved_to_disk(tmp_path: Path) -> None:
    datasets.DatasetDict(train=labelled(), test=labelled(4)).save_to_disk(tmp_path / "pets")
    assert len(load_images(f"hf:{tmp_path / 'pets'}:test")) == 4
    fitting, scoring = load_split(f"hf:{tmp_path / 'pets'}:train", f"hf:{tmp_path / 'pets'}:test", 0)
    assert (fitting.name, len(fitting), scoring.name, len(scoring)) == ("hf:pets:train", 6, "hf:pets:test", 4)
    with pytest.raises(SpecError, match=r"has several splits: give one as hf:.*pets:SPLIT, of train, test"):
        load_images(f"hf:{tmp_path / 'pets'}")
    with pytest.raises(SpecError, match=r"has no split 'val': give one as .*, of train, test"):
        load_images(f"hf:{tmp_path / 'pets'}:val")
    with pytest.raises(SpecError, match="are the same images"):
        load_split(f"hf:{tmp_path / 'pets'}:train", f"hf:{tmp_path / 'x' / '..' / 'pets'}:train", 0)


@pytest.mark.parametrize("name", ["pets/train-00000-of-00001.parquet", "pets", "pets:train"])
def test_parquet(tmp_path: Path, name: str) -> None:
    (tmp_path / "pets").mkdir()
    labelled().to_parquet(tmp_path / "pets" / "train-00000-of-00001.parquet")
    images = load_images(f"hf:{tmp_path / name}")
    assert (images.classes, images.labels.tolist()) == (("cat", "dog"), [0, 1, 1, 0, 1, 0])
    np.testing.assert_array_equal(pixels(f"hf:{tmp_path / name}"), PIXELS)


def test_a_directory_of_images(tmp_path: Path) -> None:
    for index, name in enumerate(["train/cat", "train/dog", "test/cat", "test/dog"]):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.fromarray(PIXELS[index]).save(tmp_path / "pets" / name / "0.png")
    images = load_images(f"hf:{tmp_path / 'pets'}:test")
    assert (images.classes, images.labels.tolist()) == (("cat", "dog"), [0, 1])
    np.testing.assert_array_equal(pixels(f"hf:{tmp_path / 'pets'}:test"), PIXELS[2:4])


def test_threads_change_nothing(tmp_path: Path) -> None:
    labelled().save_to_disk(tmp_path / "pets")
    images = load_images(f"hf:{tmp_path / 'pets'}")
    alone, threaded = (next(Samples(images, COLOUR, (3, 5, 4), workers).batches())[0] for workers in (0, 3))
    assert np.array_equal(alone.numpy(), threaded.numpy())


@pytest.mark.parametrize(
    ("columns", "labels", "classes"),
    [
        ({}, [-1] * 6, None),
        ({"label": (datasets.Value("int32"), range(6))}, list(range(6)), None),
        ({"label": (datasets.Value("int64"), [-1] * 6)}, [-1] * 6, None),
        ({"fine": (datasets.ClassLabel(names=["a", "b"]), [1, 0] * 3)}, [1, 0] * 3, ("a", "b")),
        ({"count": (datasets.Value("int32"), range(6))}, [-1] * 6, None),
    ],
)
def test_labels(tmp_path: Path, columns: dict[str, Any], labels: list[int], classes: tuple[str, ...] | None) -> None:
    table(**columns).save_to_disk(tmp_path / "pets")
    images = load_images(f"hf:{tmp_path / 'pets'}")
    assert (images.labels.tolist(), images.classes) == (labels, classes)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"label": (datasets.Value("int32"), [0, 1, -1, 0, 1, 0])}, "has no label for 1 of its 6 images"),
        ({"label": (datasets.Value("string"), "abcdef")}, "they must be one integer each"),
        ({"label": (datasets.Value("float32"), range(6))}, "labels of float"),
        ({name: (datasets.ClassLabel(names=["x"]), [0] * 6) for name in ("fine", "coarse")}, r"several columns of labels \(fine, coarse\)"),
        ({"mask": (datasets.Image(), [Image.fromarray(PIXELS[0])] * 6)}, "needs one column of images; of its columns image, mask 2 are"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    table(**columns).save_to_disk(tmp_path / "pets")
    with pytest.raises(SpecError, match=told):
        load_images(f"hf:{tmp_path / 'pets'}")


@pytest.mark.parametrize("kind", ["empty directory", "empty table", "damaged", "no split"])
def test_data_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pets"
    if kind == "empty directory":
        path.mkdir()
    else:
        try:
            labelled(0 if kind == "empty table" else 6).save_to_disk(path)
        except ZeroDivisionError:
            pytest.skip("this version of datasets writes no empty table")
    if kind == "damaged":
        for file in path.glob("*.arrow"):
            file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(SpecError, match=r"cannot be read: |it is empty|no split 'train'") as refused:
        load_images(f"hf:{path}{':train' if kind == 'no split' else ''}")
    assert "\n" not in str(refused.value)


def test_a_row_without_an_image_is_named(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"image": [None, None]}, features=datasets.Features({"image": datasets.Image()}))
    rows.save_to_disk(tmp_path / "pets")
    with pytest.raises(SpecError, match=r"data 'hf:pets', image 1: the image is empty \(0 bytes\)"):
        Samples(load_images(f"hf:{tmp_path / 'pets'}"), COLOUR, (3, 5, 4))[1]


def test_without_the_package_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from restnet_export.data import load_images\n"
        "try: load_images('hf:some/pets:train')\nexcept Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "SpecError data hf:some/pets:train needs the package datasets: pip install 'restnet-runtime[hf]'\n"
