"""The digits example and the bundle that ships; and real CIFAR-10 networks, where there are any."""

import importlib.util
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from restnet_export.anchors import AnchorSpec, load_anchor
from restnet_export.cli import main
from restnet_export.costs import count_macs, count_params
from restnet_export.cuts import cut_anchor
from restnet_export.data import Samples, load_images
from restnet_runtime.bundle import SHIPPED_BUNDLE, Bundle, open_bundle
from restnet_runtime.compile import Compiler
from restnet_runtime.executor import Executor
from restnet_runtime.graphs import check_graphs
from restnet_runtime.preprocess import Preprocessor
from restnet_runtime.routes import Route
from restnet_runtime.sessions import SessionSettings, infer, plain_session

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "digits"
HELD_OUT = 797
TOLERANCE = 0.02
"""How far the accuracy of a network that is trained again may be off: sums are ordered differently on another processor."""


def ends(bundle: Bundle) -> tuple[Route, Route]:
    """The small and the large anchor."""
    small, large = sorted((bundle.route(anchor.name) for anchor in bundle.manifest.anchors), key=lambda route: route.macs)
    return small, large


def accuracies(bundle: Bundle, cache: Path, data: str) -> dict[str, float]:
    """Every route through the compiled runtime, image by image as they are served."""
    manifest = bundle.manifest
    samples = Samples(load_images(data), manifest.preprocessing, manifest.input.shape)
    x, y = (part.numpy() for part in next(samples.batches(len(samples))))
    executor = Executor(bundle, Compiler.for_bundle(bundle, cache), SessionSettings(threads=1))
    found = {}
    for route in bundle.routes:
        executor.load(route.name)
        found[route.name] = float((executor.run(x, route.name).logits.argmax(1) == y).mean())
    executor.close()
    return found


class TestShipped:
    @pytest.fixture(autouse=True)
    def _there(self) -> None:
        if not (SHIPPED_BUNDLE / "manifest.json").exists():
            pytest.fail(f"{SHIPPED_BUNDLE} is missing: make bundle")

    def test_it_is_whole_and_small(self) -> None:
        bundle = open_bundle(SHIPPED_BUNDLE)
        check_graphs(bundle)
        assert sum(path.stat().st_size for path in SHIPPED_BUNDLE.rglob("*") if path.is_file()) < 1_000_000
        assert bundle.manifest.classes == tuple("0123456789")
        assert bundle.manifest.input.shape == (1, 8, 8)
        assert bundle.manifest.provenance.scored_on == HELD_OUT
        listed = set(bundle.manifest.files) | {"manifest.json"}
        assert {path.relative_to(SHIPPED_BUNDLE).as_posix() for path in SHIPPED_BUNDLE.rglob("*") if path.is_file()} == listed

    def test_stitched_routes_fill_the_gap_between_the_anchors(self) -> None:
        bundle = open_bundle(SHIPPED_BUNDLE)
        small, large = ends(bundle)
        between = [route for route in bundle.routes if small.macs < route.macs < large.macs]
        assert len(between) >= 3
        assert len(between) == len(bundle.routes) - 2  # none was left out to look better
        assert small.accuracy is not None
        assert large.accuracy is not None
        for route in between:
            share = (route.macs - small.macs) / (large.macs - small.macs)
            assert route.accuracy is not None
            assert route.accuracy >= small.accuracy + share * (large.accuracy - small.accuracy) - 0.02, route.name

    def test_accuracies_are_those_of_the_compiled_routes(self, tmp_path: Path) -> None:
        bundle = open_bundle(SHIPPED_BUNDLE)
        found = accuracies(bundle, tmp_path, "digits:val")
        assert found == pytest.approx({route.name: route.accuracy for route in bundle.routes}, abs=1.01 / HELD_OUT)

    @pytest.mark.parametrize("name", ["cnn_s", "cnn_l"])
    def test_its_blocks_are_those_of_the_example(self, name: str) -> None:
        """Cut anew, without weights: the same blocks, and every route of the bundle is a chain of them."""
        manifest = open_bundle(SHIPPED_BUNDLE).manifest
        entry = next(anchor for anchor in manifest.anchors if anchor.name == name.replace("_", "-"))
        assert entry.source.partition("@")[0] == f"python:examples/digits/anchors.py:{name}"
        anchor = cut_anchor(load_anchor(AnchorSpec.parse(f"python:{EXAMPLE / 'anchors.py'}:{name}"), (1, 8, 8)))
        shipped = [segment for segment in manifest.segments if segment.anchor == entry.name]
        assert [segment.name for segment in shipped] == list(entry.segments)
        assert [segment.module for segment in shipped] == [*(cut.module for cut in anchor.cuts), "head"]
        inputs, outputs = [(1, 8, 8), *(cut.shape for cut in anchor.cuts)], [*(cut.shape for cut in anchor.cuts), (10,)]
        assert [segment.input_shape for segment in shipped] == inputs
        assert [segment.output_shape for segment in shipped] == outputs
        assert [segment.macs for segment in shipped] == [count_macs(*pair) for pair in zip(anchor.blocks, inputs, strict=True)]
        assert [segment.params for segment in shipped] == [count_params(block) for block in anchor.blocks]

    @pytest.mark.slow
    @pytest.mark.usefixtures("one_thread")
    def test_its_small_anchor_can_be_trained_anew(self) -> None:
        """Another slow test below does the same with the large anchor and everything after it."""
        bundle = open_bundle(SHIPPED_BUNDLE)
        train, anchors = module(EXAMPLE / "train.py"), module(EXAMPLE / "anchors.py")
        torch.manual_seed(bundle.manifest.provenance.seed)
        net = anchors.cnn_s()
        train.train(net, *train.load("train"), train.EPOCHS["cnn_s"])
        assert train.accuracy(net, *train.load("val")) == pytest.approx(bundle.route("cnn-s").accuracy, abs=TOLERANCE)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks this small train fastest so, and two machines with different numbers of cores alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_images_are_one_of_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["images.py", "--out", str(tmp_path / "images"), "--size", "40"])
    module(EXAMPLE / "images.py").main()
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [f"{digit}.png" for digit in range(10)]
    val = load_images("digits:val")
    for digit in range(10):
        with Image.open(tmp_path / "images" / f"{digit}.png") as image:
            assert (image.size, image.mode) == ((40, 40), "L")
            first = np.asarray(val.source(int(np.flatnonzero(val.labels == digit)[0])))[..., 0]
            assert np.array_equal(np.asarray(image)[2::5, 2::5], first)


@pytest.mark.untraced
@pytest.mark.usefixtures("one_thread")
def test_small_networks_trained_now_are_stitched_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example with narrower, shallower networks and fewer epochs."""
    train = module(EXAMPLE / "train.py")
    (tmp_path / "nets.py").write_text(
        f"import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('digit_anchors', {str(EXAMPLE / 'anchors.py')!r})\n"
        f"anchors = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(anchors)\n"
        f"def small(): return anchors.small(8, 2)\n"
        f"def large(): return anchors.large(12, 3)\n"
    )
    x, y = train.load("train")
    nets, specs = module(tmp_path / "nets.py"), []
    for name, epochs in (("small", 20), ("large", 16)):
        torch.manual_seed(0)
        net = getattr(nets, name)()
        train.train(net, x, y, epochs)
        torch.save({"state_dict": net.state_dict()}, tmp_path / f"{name}.pt")
        specs.append(f"python:{tmp_path / 'nets.py'}:{name}@{tmp_path / name}.pt")
    monkeypatch.chdir(tmp_path)
    options = ["--data", "digits", "--input", "8", "--mean", "0", "--std", "1", "--steps", "20", "--out", "bundle", "--quiet"]
    assert main(["--anchors", *specs, *options]) == 0
    bundle = open_bundle(tmp_path / "bundle")
    small, large = ends(bundle)
    assert small.accuracy is not None
    assert large.accuracy is not None
    assert 0.5 < small.accuracy < large.accuracy
    assert len(bundle.routes) == 4
    assert max(route.accuracy or 0 for route in bundle.routes if "[" in route.name) > 0.4
    found = accuracies(bundle, tmp_path / "cache", "digits:val")
    assert found == pytest.approx({route.name: route.accuracy for route in bundle.routes}, abs=1.01 / HELD_OUT)


@pytest.mark.slow
def test_the_shipped_bundle_can_be_made_anew(tmp_path: Path) -> None:
    """Both anchors trained again and everything after that: the same routes, as accurate."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # In a copy, so that build/ of the working tree stays as it is.
    for name in ("examples", "docs"):
        shutil.copytree(ROOT / name, tmp_path / "tree" / name)
    subprocess.run(
        ["sh", tmp_path / "tree" / "examples/digits/bundle.sh", tmp_path / "digits"], env={**os.environ, "PATH": path}, check=True
    )
    shipped, made = open_bundle(SHIPPED_BUNDLE), open_bundle(tmp_path / "digits")
    assert made.manifest.anchors == shipped.manifest.anchors
    assert [route.name for route in made.routes] == [route.name for route in shipped.routes]
    assert [route.macs for route in made.routes] == [route.macs for route in shipped.routes]
    for route in made.routes:
        assert route.accuracy == pytest.approx(shipped.route(route.name).accuracy, abs=TOLERANCE), route.name


def test_both_kinds_of_network_are_cut_and_join() -> None:
    """Without weights: the blocks, and the maps and tokens between them that a stitching layer turns into each other."""
    specs = (AnchorSpec.parse(f"python:{EXAMPLE / 'anchors.py'}:{name}") for name in ("cnn_t", "vit"))
    cnn, vit = (cut_anchor(load_anchor(spec, (1, 8, 8))) for spec in specs)
    assert [cut.shape for cut in cnn.cuts] == [(8, 4, 4), (8, 4, 4), (16, 2, 2)]
    assert [cut.shape for cut in vit.cuts] == [(17, 32)] * 5
    assert (cnn.layouts[0].kind, vit.layouts[0].kind) == ("map", "tokens")


@pytest.mark.slow
def test_two_kinds_trained_now_are_joined_both_ways(tmp_path: Path) -> None:
    """As the demo does it: accuracies of the networks, and of what joins them, through the compiled runtime."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shutil.copytree(ROOT / "examples", tmp_path / "tree" / "examples")
    script = tmp_path / "tree" / "examples/digits/families.sh"
    subprocess.run(["sh", script, tmp_path / "families"], env={**os.environ, "PATH": path}, check=True)
    bundle = open_bundle(tmp_path / "families")
    assert bundle.route("cnn-t").accuracy == pytest.approx(0.900, abs=TOLERANCE)
    assert bundle.route("vit").accuracy == pytest.approx(0.972, abs=TOLERANCE)
    stitched = [route for route in bundle.routes if "[" in route.name]
    assert {route.name.partition("[")[0] for route in stitched} == {"cnn-t", "vit"}
    assert all((route.accuracy or 0) > 0.7 for route in stitched)
    found = accuracies(bundle, tmp_path / "cache", "digits:val")
    assert found == pytest.approx({route.name: route.accuracy for route in bundle.routes}, abs=1.01 / HELD_OUT)


@pytest.mark.slow
def test_published_cifar_networks(shared: Path, tmp_path: Path) -> None:
    """ResNet-20 and 56 as published, stitched by least squares on 300 images alone."""
    with np.load(shared / "data/cifar10/lossless_train.npz") as arrays:
        chosen = np.random.default_rng(0).permutation(len(arrays["y"]))[:300]
        np.savez(tmp_path / "train.npz", x=arrays["x"][chosen], y=arrays["y"][chosen])
    checkpoints = shared / "data" / "checkpoints"
    files = [next(checkpoints.glob(pattern)) for pattern in ("resnet20-*.th", "resnet56-*.th")]
    code = shared / "anchors" / "cifar_resnet.py"
    anchors = [f"python:{code}:resnet20@{files[0]}", f"python:{code}:resnet56@{files[1]}"]
    inputs = ["--input", "32", "--mean", ".485", ".456", ".406", "--std", ".229", ".224", ".225"]
    data = ["--data", f"npz:{tmp_path / 'train.npz'}", "--val", f"npz:{shared / 'data/cifar10/lossless_val.npz'}"]
    rule = ["--rule", "restnet", "--finetune", "none", "--samples", "300", "--max-routes", "6"]
    assert main(["--anchors", *anchors, *inputs, *data, *rule, "--quiet", "--out", str(tmp_path / "cifar")]) == 0
    bundle = open_bundle(tmp_path / "cifar")
    assert bundle.route("resnet20").accuracy == pytest.approx(0.916, abs=0.003)
    assert bundle.route("resnet56").accuracy == pytest.approx(0.926, abs=0.003)
    assert bundle.route("resnet20").macs == pytest.approx(40.55e6, rel=0.02)
    assert bundle.route("resnet56").macs == pytest.approx(125.5e6, rel=0.02)
    assert bundle.manifest.provenance.fitted_on == 300
    stitched = [route for route in bundle.routes if "[" in route.name]
    assert len(stitched) == 4
    assert max(route.accuracy or 0 for route in stitched) > 0.85
    front = sorted((route for route in bundle.routes if route.on_front), key=lambda route: route.macs)
    assert all((cheap.accuracy or 0) < (dear.accuracy or 0) for cheap, dear in pairwise(front))


def test_a_larger_image_of_a_digit_counts_as_the_digit() -> None:
    """The server brings any size to 8x8; enlarged digits must score as the 8x8 ones do."""
    images = load_images("digits:val")
    bundle = open_bundle(SHIPPED_BUNDLE)
    manifest = bundle.manifest
    preprocessor = Preprocessor(manifest.preprocessing, manifest.input.shape)
    files = []
    for index in range(len(images)):
        file = io.BytesIO()
        Image.fromarray(images.source(index)[:, :, 0]).resize((96, 96), Image.Resampling.NEAREST).save(file, "PNG")
        files.append(file.getvalue())
    session = plain_session(bundle, bundle.route("cnn-l"), SessionSettings())
    found = float((infer(session, preprocessor.from_files(files)).argmax(1) == images.labels).mean())
    assert found == pytest.approx(bundle.route("cnn-l").accuracy, abs=2 / len(images))
