"""Data specifications: what is read, how it is split, and what is refused."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restnet_export.data import Images, Samples, load_images, load_split
from restnet_export.images import UNLABELLED
from restnet_runtime.errors import SpecError
from restnet_runtime.manifest import Preprocessing
from restnet_runtime.preprocess import Preprocessor

GREY = Preprocessing(mode="L", mean=(0.5,), std=(0.25,))
COLOUR = Preprocessing(mode="RGB", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def numbered(labels: list[int]) -> Images:
    """Image i is one pixel of value i."""
    return Images("numbered", np.array(labels), None, lambda index: np.full((1, 1, 1), index, np.uint8))


def members(images: Images) -> list[int]:
    return [int(np.asarray(images.source(index)).flat[0]) for index in range(len(images))]


def pixels_of(images: Images) -> list[bytes]:
    return [np.asarray(images.source(index)).tobytes() for index in range(len(images))]


class TestDigits:
    def test_the_split_is_fixed_and_disjoint(self) -> None:
        whole, train, val = (load_images(spec) for spec in ("digits", "digits:train", "digits:val"))
        assert (len(whole), len(train), len(val)) == (1797, 1000, 797)
        assert not set(pixels_of(train)) & set(pixels_of(val))
        assert sorted(pixels_of(train) + pixels_of(val)) == sorted(pixels_of(whole))
        assert train.labels[:12].tolist() == load_images("digits:train").labels[:12].tolist() == [6, 6, 6, 2, 5, 6, 6, 2, 2, 1, 1, 9]
        assert set(train.labels) == set(val.labels) == set(range(10))

    def test_images_are_8x8_grey_with_the_full_range(self) -> None:
        whole = load_images("digits")
        zero = np.asarray(whole.source(0))
        assert (zero.shape, zero.dtype, whole.classes) == ((8, 8, 1), np.uint8, tuple("0123456789"))
        assert zero[0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # ink 0 0 5 13 9 1 0 0 of 16
        assert whole.labels[0] == 0

    def test_they_bring_their_split(self) -> None:
        fitting, scoring = load_split("digits", None, 7)
        assert (fitting.name, scoring.name) == ("digits:train", "digits:val")
        assert [part.name for part in load_split("digits:val", "digits:train", 0)] == ["digits:val", "digits:train"]

    def test_a_validation_part_that_is_named_is_not_trained_on(self) -> None:
        assert [(part.name, len(part)) for part in load_split("digits", "digits:val", 0)] == [("digits:train", 1000), ("digits:val", 797)]

    @pytest.mark.parametrize(
        ("data", "val"),
        [("digits", "digits"), ("digits", "digits:train"), ("digits:val", "digits"), ("digits:val", "digits:val")],
    )
    def test_parts_that_share_images_are_refused(self, data: str, val: str) -> None:
        with pytest.raises(SpecError, match=f"--data {data} and --val {val} are the same images"):
            load_split(data, val, 0)

    def test_without_scikit_learn_they_say_what_to_install(self) -> None:
        code = (
            "import sys; sys.modules['sklearn'] = None\n"
            "from restnet_export.data import load_images\n"
            "try: load_images('digits')\nexcept Exception as error: print(type(error).__name__, error)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "SpecError data 'digits' needs scikit-learn: pip install 'restnet-runtime[export]'\n"


class TestSplit:
    def test_every_class_gives_its_share(self) -> None:
        images = numbered([0] * 50 + [1] * 10 + [2] * 2 + [3])
        rest, held_out = images.split(0.2, 0)
        assert np.bincount(held_out.labels, minlength=4).tolist() == [10, 2, 1, 0]
        assert sorted(members(rest) + members(held_out)) == list(range(63))

    def test_the_seed_alone_decides(self) -> None:
        images = numbered([0, 1] * 50)
        assert members(images.split(0.2, 3)[1]) == members(images.split(0.2, 3)[1])
        assert members(images.split(0.2, 3)[1]) != members(images.split(0.2, 4)[1])

    def test_labels_go_with_their_images(self) -> None:
        images = numbered([index % 3 for index in range(60)])
        for part in (*images.split(0.25, 1), images.shuffled(2), images.shuffled(2).subset(np.arange(5))):
            assert part.labels.tolist() == [index % 3 for index in members(part)]

    def test_shuffling_keeps_all(self) -> None:
        images = numbered([0] * 30)
        assert members(images.shuffled(0)) != list(range(30))
        assert sorted(members(images.shuffled(0))) == list(range(30))

    def test_a_fifth_is_held_out_by_default(self, tmp_path: Path) -> None:
        path = npz(tmp_path, x=np.zeros((40, 2, 2, 1), np.uint8), y=np.repeat([0, 1], 20))
        rest, held_out = load_split(path, None, 0)
        assert np.bincount(rest.labels).tolist() == [16, 16]
        assert np.bincount(held_out.labels).tolist() == [4, 4]

    def test_one_file_by_two_names_is_refused(self, tmp_path: Path) -> None:
        path = npz(tmp_path, x=np.zeros((4, 2, 2, 1), np.uint8), y=np.zeros(4, int))
        (tmp_path / "link").symlink_to(tmp_path)
        for other in (path, f"npz:{tmp_path / 'link' / 'data.npz'}", f"npz:{tmp_path / 'link' / '..' / tmp_path.name / 'data.npz'}"):
            with pytest.raises(SpecError, match="are the same images"):
                load_split(path, other, 0)

    def test_where_none_can_be_held_out_another_source_is_asked_for(self, tmp_path: Path) -> None:
        path = npz(tmp_path, x=np.zeros((3, 2, 2, 1), np.uint8), y=np.arange(3))
        with pytest.raises(SpecError, match="give --val"):
            load_split(path, None, 0)


def npz(folder: Path, **arrays: np.ndarray) -> str:
    np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
    return f"npz:{folder / 'data.npz'}"


class TestNpz:
    @pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
    def test_pixels_and_labels(self, tmp_path: Path, dtype: type) -> None:
        x = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
        images = load_images(npz(tmp_path, x=x, y=np.array([2, 0, 1, 1, 2], dtype)))
        assert images.labels.dtype == np.int64
        assert images.labels.tolist() == [2, 0, 1, 1, 2]
        assert images.classes is None
        np.testing.assert_array_equal(np.stack([np.asarray(images.source(index)) for index in range(5)]), x)

    @pytest.mark.parametrize(
        ("x", "y", "told"),
        [
            (np.zeros((2, 4, 4, 1), np.float32), np.zeros(2, int), r"x float32\(2, 4, 4, 1\)"),
            (np.zeros((2, 4, 4), np.uint8), np.zeros(2, int), "give uint8"),
            (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, int), r"y \(3,\)"),
            (np.zeros((2, 4, 4, 1), np.uint8), np.zeros((2, 1), int), r"y \(2, 1\)"),
            (np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, int), "N > 0"),
            (np.zeros((2, 4, 4, 1), np.uint8), np.array([0, -1]), "from -1; they must be integers from 0"),
            (np.zeros((2, 4, 4, 1), np.uint8), np.array([0.5, 1]), "labels of float64 from 0.5"),
            (np.zeros((2, 4, 4, 1), np.uint8), np.array(["cat", "dog"]), "labels of <U3; they must be integers"),
            (np.zeros((2, 4, 4, 1), np.uint8), np.array([{}, {}]), "cannot be read"),
        ],
    )
    def test_arrays_that_do_not_fit(self, tmp_path: Path, x: np.ndarray, y: np.ndarray, told: str) -> None:
        with pytest.raises(SpecError, match=told):
            load_images(npz(tmp_path, x=x, y=y))

    def test_a_missing_array(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="'x is not a file in the archive'; it needs the arrays x"):
            load_images(npz(tmp_path, y=np.zeros(2, int)))

    def test_without_labels(self, tmp_path: Path) -> None:
        images = load_images(npz(tmp_path, x=np.zeros((2, 4, 4, 1), np.uint8)))
        assert (images.has_labels, images.classes, len(images), images.labels.tolist()) == (False, None, 2, [UNLABELLED] * 2)

    @pytest.mark.parametrize("kind", ["stored", "compressed", "columns first"])
    def test_images_are_the_same_however_they_are_stored(self, tmp_path: Path, kind: str) -> None:
        x = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
        save = np.savez_compressed if kind == "compressed" else np.savez
        save(tmp_path / "data.npz", x=np.asfortranarray(x) if kind == "columns first" else x, y=np.arange(5))
        images = load_images(f"npz:{tmp_path / 'data.npz'}")
        np.testing.assert_array_equal(np.stack([np.asarray(images.source(index)) for index in (4, 0, 2)]), x[[4, 0, 2]])

    def test_stored_images_are_not_read_before_they_are_asked_for(self, tmp_path: Path) -> None:
        """A change in the file after it was opened is seen: nothing of x is held."""
        spec = npz(tmp_path, x=np.zeros((5, 4, 4, 1), np.uint8), y=np.arange(5))
        images = load_images(spec)
        data = bytearray((tmp_path / "data.npz").read_bytes())
        last = data.index(b"PK", 100) - 1  # the byte before the next member
        data[last] = 7
        (tmp_path / "data.npz").write_bytes(data)
        assert np.asarray(images.source(4))[3, 3, 0] == 7
        (tmp_path / "data.npz").write_bytes(data[:150])
        with pytest.raises(SpecError, match=r"data 'npz:data.npz', image 3: .*data.npz became shorter while it was read"):
            Samples(images.subset(np.array([3, 1])), GREY, (1, 4, 4))[0]

    @pytest.mark.parametrize("kind", ["empty", "text", "cut short", "damaged", "one array"])
    def test_a_file_that_cannot_be_read(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "data.npz"
        spec = npz(tmp_path, x=np.zeros((20, 4, 4, 1), np.uint8), y=np.zeros(20, int))
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[200] ^= 255
        if kind == "one array":
            with path.open("wb") as file:
                np.save(file, np.zeros(3))
        else:
            path.write_bytes({"empty": b"", "text": b"x,y\n1,2\n", "cut short": whole[: len(whole) // 2], "damaged": bytes(damaged)}[kind])
        with pytest.raises(SpecError, match=r"data.npz cannot be read: .*it needs the arrays x") as refused:
            load_images(spec)
        assert str(path) in str(refused.value)
        assert ("or no .npz file" in str(refused.value)) == (kind != "damaged"), "an archive with a bad member says which"

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=f"data npz:{tmp_path / 'x.npz'} does not exist, or is no file"):
            load_images(f"npz:{tmp_path / 'x.npz'}")

    def test_channels_first_are_told_how_to_turn(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=r"images of shape \(3, 5, 6\); .*looks like NCHW: give x.transpose\(0, 2, 3, 1\)"):
            load_images(npz(tmp_path, x=np.zeros((2, 3, 5, 6), np.uint8), y=np.zeros(2, int)))

    @pytest.mark.parametrize("shape", [(2, 4, 4, 2), (2, 0, 4, 1), (2, 4, 4, 5)])
    def test_images_of_a_size_that_no_image_has(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        with pytest.raises(SpecError, match=r"has images of shape .*; give \(H, W, C\) with C one of 1, 3, 4, none of them 0$"):
            load_images(npz(tmp_path, x=np.zeros(shape, np.uint8), y=np.zeros(2, int)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of coloured PNGs, three and two of them, one deeper down, and files that are no images."""
    rng = np.random.default_rng(0)
    for name in ("cat/b.png", "cat/a.PNG", "cat/deep/c.png", "dog/a.png", "dog/b.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "dog" / "notes.txt").write_text("none")
    (tmp_path / "photos" / ".cache").mkdir()
    return tmp_path / "photos"


class TestFolder:
    def test_one_directory_by_two_names_is_refused(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        with pytest.raises(SpecError, match=r"--data imagefolder:\. and --val imagefolder:.*photos are the same images"):
            load_split("imagefolder:.", f"imagefolder:{folder}", 0)

    def test_labels_follow_the_names_that_are_given(self, folder: Path) -> None:
        images = load_images(f"imagefolder:{folder}")
        turned = images.labelled(("dog", "cat"))
        assert (turned.classes, turned.labels.tolist()) == (("dog", "cat"), [1, 1, 1, 0, 0])
        assert [turned.source(index) for index in range(5)] == [images.source(index) for index in range(5)]
        assert images.labelled(("cat", "dog")) is images
        with pytest.raises(SpecError, match="classes of 'imagefolder:photos' are not those given: dog, hen are on one side only"):
            images.labelled(("cat", "hen"))
        with pytest.raises(SpecError, match="hen is on one side only"):
            images.labelled(("cat", "dog", "hen"))
        nameless = numbered([0, 1])
        assert nameless.labelled(("cat", "dog")) is nameless

    def test_a_directory_per_class(self, folder: Path) -> None:
        images = load_images(f"imagefolder:{folder}")
        assert images.classes == ("cat", "dog")
        assert images.labels.tolist() == [0, 0, 0, 1, 1]
        assert [Path(str(images.source(index))).relative_to(folder).as_posix() for index in range(5)] == [
            "cat/a.PNG",
            "cat/b.png",
            "cat/deep/c.png",
            "dog/a.png",
            "dog/b.png",
        ]

    def test_a_broken_image_is_named(self, folder: Path) -> None:
        (folder / "dog" / "a.png").write_bytes((folder / "dog" / "b.png").read_bytes()[:60])
        samples = Samples(load_images(f"imagefolder:{folder}"), COLOUR, (3, 8, 8))
        with pytest.raises(SpecError, match=r"data 'imagefolder:photos', .*photos/dog/a\.png: "):
            list(samples.batches())

    def test_an_image_that_went_away_is_named(self, folder: Path) -> None:
        samples = Samples(load_images(f"imagefolder:{folder}"), COLOUR, (3, 8, 8))
        (folder / "cat" / "b.png").unlink()
        with pytest.raises(SpecError, match=r"photos/cat/b\.png: .*No such file"):
            samples[1]

    def test_a_directory_without_classes(self, folder: Path) -> None:
        images = load_images(f"imagefolder:{folder / 'dog'}")
        assert (images.has_labels, images.classes, [images.which(index) for index in range(2)]) == (
            False,
            None,
            [str(folder / "dog" / name) for name in ("a.png", "b.png")],
        )
        with pytest.raises(SpecError, match="has no labels, so routes cannot be scored on a part of it: give --val"):
            load_split(f"imagefolder:{folder / 'dog'}", None, 0)
        with pytest.raises(SpecError, match=r"--val imagefolder:.*dog has no labels"):
            load_split(f"imagefolder:{folder}", f"imagefolder:{folder / 'dog'}", 0)
        fitting, scoring = load_split(f"imagefolder:{folder / 'dog'}", f"imagefolder:{folder}", 0)
        assert (len(fitting), fitting.has_labels, len(scoring), scoring.has_labels) == (2, False, 5, True)

    def test_images_beside_their_classes_are_refused(self, folder: Path) -> None:
        (folder / "stray.png").write_bytes((folder / "dog" / "a.png").read_bytes())
        with pytest.raises(SpecError, match=r"has 1 images beside its directories of classes \(stray.png, ...\)"):
            load_images(f"imagefolder:{folder}")

    def test_no_images_and_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="has no images: it needs one directory per class with JPEG, PNG"):
            load_images(f"imagefolder:{tmp_path}")
        with pytest.raises(SpecError, match="is not a directory"):
            load_images(f"imagefolder:{tmp_path / 'missing'}")


@pytest.mark.parametrize("spec", ["", "digits:test", "npz:", "imagefolder:", "imagefolder", "mnist", "/data/photos", "NPZ:x"])
def test_other_specifications_are_refused_with_those_that_are_allowed(spec: str) -> None:
    with pytest.raises(SpecError, match=r"is not one of: imagefolder:DIR, npz:FILE .*, digits"):
        load_images(spec)


class TestSamples:
    def test_they_are_prepared_as_the_device_prepares_them(self, folder: Path) -> None:
        samples = Samples(load_images(f"imagefolder:{folder}"), COLOUR, (3, 8, 8))
        device = Preprocessor(COLOUR, (3, 8, 8))
        x, label = samples[3]
        assert (x.dtype, tuple(x.shape), label, len(samples)) == (torch.float32, (3, 8, 8), 1, 5)
        np.testing.assert_array_equal(x.numpy(), device.from_files([(folder / "dog" / "a.png").read_bytes()])[0])

    def test_batches_are_all_samples_in_order(self) -> None:
        samples = Samples(load_images("digits:val").subset(np.arange(11)), GREY, (1, 8, 8))
        batches = list(samples.batches(4))
        assert [len(y) for _, y in batches] == [4, 4, 3]
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        for index in range(11):
            one, label = samples[index]
            assert torch.equal(x[index], one)
            assert y[index] == label
        expected = (np.asarray(samples.images.source(0))[..., 0].astype(np.float32) / 255 - 0.5) / 0.25
        np.testing.assert_allclose(x[0, 0].numpy(), expected, atol=1e-6)

    @pytest.mark.parametrize("workers", [1, 2, 5])
    def test_threads_change_nothing(self, workers: int) -> None:
        images = load_images("digits:val").subset(np.arange(23))
        alone, threaded = (list(Samples(images, GREY, (1, 8, 8), count).batches(4)) for count in (0, workers))
        assert len(alone) == len(threaded) == 6
        for (x, y), (other, labels) in zip(alone, threaded, strict=True):
            assert torch.equal(x, other)
            assert torch.equal(y, labels)

    @pytest.mark.parametrize("workers", [0, 3])
    def test_batches_as_they_are_drawn(self, workers: int) -> None:
        samples = Samples(numbered(list(range(9))), GREY, (1, 1, 1), workers)
        drawn = [y.tolist() for _, y in samples.drawn([[8, 0], [3], [3, 2, 1, 5]])]
        assert drawn == [[8, 0], [3], [3, 2, 1, 5]]

    def test_threads_end_when_nobody_asks_for_more(self) -> None:
        before = set(threading.enumerate())
        batches = Samples(load_images("digits:val"), GREY, (1, 8, 8), 2).batches(8)
        next(batches)
        begun = [thread for thread in threading.enumerate() if thread.name.startswith("prepare") and thread not in before]
        assert begun
        batches.close()
        for thread in begun:
            thread.join(30)
            assert not thread.is_alive()

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_broken_image_is_named_by_its_place_in_the_data(self, workers: int) -> None:
        pixels = [np.zeros((2, 2, 1 if index != 6 else 2), np.uint8) for index in range(9)]
        images = Images("odd", np.zeros(9, np.int64), None, lambda index: pixels[index]).shuffled(1)
        with pytest.raises(SpecError, match="data 'odd', image 6: "):
            list(Samples(images, GREY, (1, 2, 2), workers).batches(3))

    @pytest.mark.parametrize("workers", [0, 3])
    def test_what_follows_is_prepared_ahead_and_once(self, workers: int) -> None:
        asked: list[int] = []

        def source(index: int) -> np.ndarray:
            asked.append(index)
            return np.full((1, 1, 1), index, np.uint8)

        samples = Samples(Images("counted", np.arange(9), None, source), GREY, (1, 1, 1), workers)
        order = [[3, 1], [8, 0, 2], [4], [7], [5, 6]]
        found = [samples.drawn_with_next(order[0], order[1])]
        found += [samples.drawn_with_next([7], ())]  # something else in between
        found += [samples.drawn_with_next(indices, following) for indices, following in zip(order[1:], [*order[2:], []], strict=True)]
        assert [y.tolist() for _, y in found] == [order[0], [7], *order[1:]]
        assert [x.flatten().tolist() for x, _ in found] == [
            [pytest.approx((index / 255 - 0.5) / 0.25, abs=1e-5) for index in drawn] for drawn in (order[0], [7], *order[1:])
        ]
        assert sorted(asked) == sorted([*range(9), 7])
