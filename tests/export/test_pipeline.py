"""From anchors in a file of Python to a bundle, and nothing left behind where that fails."""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from restnet_export import precisions
from restnet_export.anchors import AnchorSpec, load_anchor
from restnet_export.costs import count_macs
from restnet_export.cuts import CutAnchor, cut_anchor
from restnet_export.data import Samples, load_images
from restnet_export.fitting import fit_layers
from restnet_export.inputs import GivenPreprocessing
from restnet_export.objectives import Objective
from restnet_export.parity import check_chains, check_routes
from restnet_export.pipeline import export_bundle
from restnet_export.routes import StitchedRoute
from restnet_export.rules import LayerPlan
from restnet_export.settings import ExportSettings, TuneSettings
from restnet_export.similarity import measure_similarity
from restnet_export.teachers import strongest
from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.errors import CutError, ExportError, ParityError, RestnetError, RuleError, SpecError
from restnet_runtime.files import file_sha256
from restnet_runtime.graphs import check_graphs
from restnet_runtime.manifest import Preprocessing
from restnet_runtime.routes import Part, pareto_front
from restnet_runtime.sessions import SessionSettings, infer, plain_session

torch.set_num_threads(1)  # the tensors are too small to share out

NETS = '''
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


class Cnn(nn.Module):
    """(B, channels, 8, 8) to (B, classes)."""

    def __init__(self, width, depth, channels=1, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).amax((2, 3)))


class Vit(nn.Module):
    """(B, 1, 8, 8) to (B, 4): 16 patches and a class token."""

    def __init__(self, width, depth):
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True) for _ in range(depth)))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.blocks(x)[:, 0])


def made(seed, kind, *args, **options):
    torch.manual_seed(seed)
    return kind(*args, **options)


def small():
    return made(1, Cnn, 4, 2)


def large():
    return made(2, Cnn, 8, 3)


def vit():
    return made(3, Vit, 16, 2)


def colour():
    return made(4, Cnn, 8, 2, channels=3)


def five():
    return made(5, Cnn, 8, 2, classes=5)


def deep():
    return made(7, Cnn, 10, 3)


def shallow():
    return made(6, Cnn, 8, 1)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = large()

    def forward(self, x):
        y = self.net(x)
        return y, y
'''
GREY = Preprocessing(mode="L", mean=(0.5,), std=(0.25,))


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """x uint8 (N, 8, 8, 1), y int64 (N,): the bright quarter is the class."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(60, 160, (count, 8, 8, 1)), np.arange(count) % 4
    for image, label in zip(x, y, strict=True):
        image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 50
    return x.astype(np.uint8), y


@dataclass(frozen=True)
class Workshop:
    """A directory with trained anchors and images. `spec` names an anchor."""

    root: Path

    def spec(self, factory: str) -> str:
        trained = self.root / f"{factory}.pt"
        return f"python:{self.root / 'nets.py'}:{factory}" + (f"@{trained}" if trained.exists() else "")

    def settings(self, out: Path, *factories: str, **changes: object) -> ExportSettings:
        base = ExportSettings(
            anchors=tuple(self.spec(factory) for factory in factories or ("small", "large")),
            data=f"npz:{self.root / 'train.npz'}",
            val=f"npz:{self.root / 'val.npz'}",
            out=out,
            finetune="none",
            samples=40,
            preprocessing=GivenPreprocessing(GREY.mean, GREY.std),
            input_shape=(1, 8, 8),
            tuning=TuneSettings(steps=30, batch_size=32),
            progress=False,
        )
        return replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    root = tmp_path_factory.mktemp("workshop")
    (root / "nets.py").write_text(NETS)
    shop = Workshop(root)
    for name, (x, y) in (("train", images(96, 0)), ("val", images(60, 1))):
        np.savez(root / f"{name}.npz", x=x, y=y)
    x, y = next(Samples(load_images(f"npz:{root / 'train.npz'}"), GREY, (1, 8, 8)).batches(96))
    for factory, steps in (("small", 25), ("large", 40), ("vit", 25)):
        module = load_anchor(AnchorSpec.parse(shop.spec(factory)), (1, 8, 8)).module.train()
        optimiser = torch.optim.Adam(module.parameters(), 1e-2)
        for _ in range(steps):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(module(x), y).backward()
            optimiser.step()
        torch.save(module.state_dict(), root / f"{factory}.pt")
    return shop


@dataclass(frozen=True)
class Made:
    """A finished export."""

    settings: ExportSettings
    bundle: Bundle
    said: list[str]


@pytest.fixture(scope="module")
def make(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """Exports, each made once for all tests."""
    known: dict[str, Made] = {}

    def export(*factories: str, **changes: object) -> Made:
        key = repr((factories, sorted(changes.items())))
        if key not in known:
            settings = workshop.settings(tmp_path_factory.mktemp("made") / "family", *factories, **changes)
            said: list[str] = []
            known[key] = Made(settings, export_bundle(settings, said.append), said)
        return known[key]

    return export


RESTNET = {"rule": "restnet", "finetune": "stitch"}
SN_NET = {"rule": "sn-net", "finetune": "none", "max_routes": 3, "latency": True}


def onnx_logits(bundle: Bundle, x: np.ndarray) -> dict[str, np.ndarray]:
    return {route.name: infer(plain_session(bundle, route, SessionSettings()), x) for route in bundle.routes}


def prepared(data: str) -> tuple[np.ndarray, np.ndarray]:
    """x float32 NCHW and y of an npz, normalised by hand."""
    with np.load(data.removeprefix("npz:")) as arrays:
        x, y = arrays["x"], arrays["y"]
    return ((x.astype(np.float32).transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25).astype(np.float32), y


FULL = {"rule": "restnet", "finetune": "full"}
LORA = {"rule": "restnet", "finetune": "lora"}
WIDE = {"rule": "restnet", "finetune": "stitch", "stitch_kernel": 3, "fold": True, "precision": ("fp32", "int8")}


@pytest.mark.parametrize(
    ("end", "changes"),
    [("large", RESTNET), ("vit", SN_NET), ("large", FULL), ("large", LORA)],
    ids=["restnet-stitch", "sn-net-none", "restnet-full", "restnet-lora"],
)
def test_a_bundle_of_two_networks(make: Callable[..., Made], workshop: Workshop, end: str, changes: dict[str, str]) -> None:
    made = make("small", end, **changes)
    bundle, manifest = made.bundle, made.bundle.manifest
    reopened = open_bundle(made.settings.out)
    check_graphs(reopened)
    assert reopened.digest == bundle.digest
    assert (manifest.name, manifest.classes, manifest.input.shape, manifest.preprocessing) == ("family", tuple("0123"), (1, 8, 8), GREY)
    provenance = manifest.provenance
    assert (provenance.rule, provenance.finetune, provenance.seed) == (changes["rule"], changes["finetune"], 0)
    assert (provenance.fitted_on, provenance.scored_on) == (40, 60)
    assert provenance.versions["torch"] == torch.__version__
    assert [(anchor.name, anchor.source, len(anchor.segments)) for anchor in manifest.anchors] == [
        ("small", workshop.spec("small")[:400], 4),
        (end, workshop.spec(end)[:400], {"large": 5, "vit": 4}[end]),
    ]
    stitched = [route for route in bundle.routes if "~" in "".join(route.segments)]
    assert len(stitched) == len(bundle.routes) - 2 == (2 if end == "large" else 1)
    assert all(route.name.startswith("large[" if changes["rule"] == "restnet" else "small[") for route in stitched)

    x, y = prepared(made.settings.val or "")
    for name, logits in onnx_logits(bundle, x).items():
        assert bundle.route(name).accuracy == pytest.approx(float((logits.argmax(1) == y).mean()), abs=1e-9)
    assert {"report/routes.png", "report/similarity.png", "report/report.html"} <= set(manifest.files)


def test_the_report_repeats_the_run_and_shows_latencies_where_they_were_measured(make: Callable[..., Made], tmp_path: Path) -> None:
    made, measured = make("small", "large", **RESTNET), make("small", "vit", **SN_NET)
    assert not (made.settings.out / "report" / "latency.png").exists()
    assert (measured.settings.out / "report" / "latency.png").is_file()
    assert any(line.startswith("measured 3 routes: ") for line in measured.said)
    assert [entry.name for entry in measured.settings.out.parent.iterdir()] == ["family"]
    assert (made.settings.out / "report" / "tuning.png").is_file()
    assert not (measured.settings.out / "report" / "tuning.png").exists()
    assert "before tuning" in (made.settings.out / "report" / "report.html").read_text()
    told = json.loads((made.settings.out / "report" / "settings.json").read_text())
    assert told["anchors"] == list(made.settings.anchors)
    assert told["versions"]["torch"] == torch.__version__
    names = {field.name for field in fields(ExportSettings)} - {
        "progress",
        "out",
        "preprocessing",
        "tuning",
        "resume",
        "checkpoint_minutes",
        "sign",
    }
    given = {name: tuple(value) if isinstance(value := told[name], list) else value for name in names}
    preprocessing = GivenPreprocessing(**{name: tuple(v) if isinstance(v, list) else v for name, v in told["preprocessing"].items()})
    tuning = TuneSettings(**{**told["tuning"], "objective": Objective(**told["tuning"]["objective"])})
    kept = {"preprocessing": preprocessing, "tuning": tuning, "progress": False}
    again = ExportSettings(out=tmp_path / "family", **kept, **given)  # type: ignore[arg-type]
    repeated = export_bundle(again, lambda _: None)
    assert repeated.weights.read_bytes() == made.bundle.weights.read_bytes()
    assert [route.accuracy for route in repeated.routes] == [route.accuracy for route in made.bundle.routes]


def test_stitching_layers_that_see_neighbours(make: Callable[..., Made]) -> None:
    """Tuned, in both precisions, none of them folded; each costs what its kernel says."""
    made, narrow = make("small", "large", **WIDE), make("small", "large", **RESTNET)
    check_graphs(open_bundle(made.settings.out))
    assert "least squares on 40 images, 2 of 2 layers see 3x3" in made.said
    layers = {segment.name: segment for segment in made.bundle.manifest.segments if segment.kind == "stitch"}
    for segment in narrow.bundle.manifest.segments:
        if segment.kind == "stitch":
            assert layers[segment.name].macs == 9 * segment.macs
    x, y = prepared(made.settings.val or "")
    for route in made.bundle.routes:
        if route.precision == "fp32":
            logits = infer(plain_session(made.bundle, route, SessionSettings()), x)
            assert route.accuracy == pytest.approx(float((logits.argmax(1) == y).mean()), abs=1e-9)
    # How much of a twin is in int8 is timed, and on a busy machine it may be a part of each.
    twins = {route.name.partition("@")[0] for route in made.bundle.routes if route.precision != "fp32"}
    assert twins == {route.name for route in made.bundle.routes if route.precision == "fp32"}
    assert "folded 0 stitching layers into the blocks behind them" in made.said


INT8 = {"rule": "sn-net", "finetune": "none", "precision": ("fp32", "int8")}


def test_every_route_comes_in_int8_too(make: Callable[..., Made]) -> None:
    """Beside its fp32 twin, scored as ONNX Runtime answers it, each precision with a front of its own, and told in the report."""
    made = make("small", "large", **INT8)
    bundle, manifest = open_bundle(made.settings.out), made.bundle.manifest
    check_graphs(bundle)
    plain = {route.name: route for route in bundle.routes if route.precision == "fp32"}
    others = [route for route in bundle.routes if route.precision != "fp32"]
    assert {route.name.partition("@")[0] for route in others} == set(plain)
    assert {"small@int8", "large@int8"} <= {route.name for route in others}
    x, y = prepared(made.settings.val or "")
    logits = onnx_logits(bundle, x)
    for route in others:
        twin = plain[route.name.partition("@")[0]]
        assert (route.segments, route.macs, route.params) == (twin.segments, twin.macs, twin.params)
        assert "int8" in route.precisions
        assert route.accuracy == pytest.approx(float((logits[route.name].argmax(1) == y).mean()), abs=1.01 / len(y))
        error = np.square(logits[route.name] - logits[twin.name]).mean() / logits[twin.name].var()
        assert 0 < error < 0.05
    for kind in {route.precision for route in bundle.routes}:
        alike = [route for route in bundle.routes if route.precision == kind]
        assert [route.on_front for route in alike] == pareto_front((route.macs, route.accuracy) for route in alike)
    used = {(name, kind) for route in bundle.routes for name, kind in zip(route.segments, route.precisions, strict=True)}
    assert used == {(segment.name, kind) for segment in manifest.segments for kind in segment.graphs}
    assert {"report/latency.png", "report/report.html"} <= set(manifest.files)
    page = (made.settings.out / "report" / "report.html").read_text()
    for text in ("How anchors were quantised", "ranges by", "against fp32", ">large@int8<", ">percentile<", "small.1"):
        assert text in page
    assert any(line.startswith(f"measured {len(bundle.routes)} routes: ") for line in made.said)
    assert re.search(r"quantise \d.*latency \d", made.said[-1])


def test_a_chain_that_is_not_the_joined_route_is_told(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that begins in another range than that of what arrives: the joined route leaves that pair out, the chain runs it."""
    # The first recipe is the quickest: integers meet at every cut, whatever this machine is busy with.
    monkeypatch.setattr(precisions, "latencies_ms", lambda networks, _: list(range(len(networks))))
    settings = workshop.settings(tmp_path / "family", **INT8)
    bundle = export_bundle(settings, lambda _: None)
    x = torch.from_numpy(prepared(settings.val or "")[0][:3])
    twins = {"small@int8": "small", "large@int8": "large"}
    assert 0 < check_chains(bundle, twins, x) < 0.05
    copied = settings.out
    name = bundle.route("large@int8").segments[1]
    file = copied / bundle.segments[name].graphs["int8"].file
    model = onnx.load_model(file, load_external_data=False)
    begin = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == begin.input[1])
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) / 50, scale.name))
    file.write_bytes(model.SerializeToString())
    manifest = json.loads((copied / "manifest.json").read_bytes())
    path = file.relative_to(copied).as_posix()
    manifest["files"][path] = {"sha256": file_sha256(file), "bytes": file.stat().st_size}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ParityError, match="route 'large@int8' joined differs from its segments"):
        check_chains(open_bundle(copied), {"large@int8": "large"}, x)


@pytest.mark.parametrize("factory", ["small", "large"])
def test_anchors_in_the_bundle_are_the_networks_in_torch(make: Callable[..., Made], workshop: Workshop, factory: str) -> None:
    made = make("small", "large", **RESTNET)
    module = load_anchor(AnchorSpec.parse(workshop.spec(factory)), (1, 8, 8)).module
    x, y = prepared(made.settings.val or "")
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(onnx_logits(made.bundle, x)[factory], expected, rtol=1e-3, atol=1e-4)
    route = made.bundle.route(factory)
    assert route.accuracy == pytest.approx(float((expected.argmax(1) == y).mean()))
    assert route.accuracy > 0.6
    assert route.macs == count_macs(module, (1, 8, 8))
    assert route.params == sum(parameter.numel() for parameter in module.parameters())


def test_full_tuning_leaves_the_anchors_as_good_as_they_were(make: Callable[..., Made]) -> None:
    made, kept = make("small", "large", **FULL), make("small", "large", **RESTNET)
    x, _ = prepared(made.settings.val or "")
    tuned, before = onnx_logits(made.bundle, x), onnx_logits(kept.bundle, x)
    for name in ("small", "large"):
        assert not np.array_equal(tuned[name], before[name])
        was, now = kept.bundle.route(name).accuracy or 0, made.bundle.route(name).accuracy or 0
        assert now > was - 0.06  # of 60 images


@pytest.mark.parametrize("teacher", ["small", "network", "ensemble"])
def test_a_teacher_may_be_given(workshop: Workshop, tmp_path: Path, teacher: str) -> None:
    spec = f"other={workshop.spec('large')}" if teacher == "network" else teacher
    said: list[str] = []
    export_bundle(workshop.settings(tmp_path / "out", finetune="stitch", teacher=spec), said.append)
    assert f"fine-tuning on 96 images, taught by {'other' if teacher == 'network' else teacher}" in said


def test_a_teacher_of_other_classes_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="tells 5 classes apart, the anchors 4"):
        export_bundle(workshop.settings(tmp_path / "out", finetune="stitch", teacher=workshop.spec("five")), lambda _: None)


def test_it_says_what_it_does(make: Callable[..., Made]) -> None:
    said = make("small", "large", **RESTNET).said
    assert said[:2] == ["anchor small: 4 blocks in stages of 2", "anchor large: 5 blocks in stages of 3"]
    assert any(line.startswith("rule restnet: ") for line in said)
    assert "least squares on 40 images" in said
    assert "fine-tuning on 96 images, taught by large" in said
    assert any(line.startswith("fine-tuning, stitch: 2 of 2 routes improved on held-out images") for line in said)
    assert any(line.endswith("routes on 60 images") for line in said)
    assert any(line.startswith("exporting ") for line in said)
    phases = ("load", "cut", "similarity", "fit", "score", "tune", "segments", "report", "write")
    assert re.fullmatch(r"took [0-9.]+ s: " + ", ".join(f"{phase} [0-9.]+" for phase in phases), said[-1])


@pytest.mark.untraced
@pytest.mark.usefixtures("nothing_shared")
def test_the_same_seed_makes_the_same_weights(make: Callable[..., Made], workshop: Workshop, tmp_path: Path) -> None:
    first = make("small", "large", **RESTNET)
    again = export_bundle(workshop.settings(tmp_path / "family", **RESTNET), lambda _: None)  # type: ignore[arg-type]
    assert again.manifest.files["weights.bin"] == first.bundle.manifest.files["weights.bin"]
    assert [(route.name, route.accuracy) for route in again.routes] == [(route.name, route.accuracy) for route in first.bundle.routes]


def test_maps_and_tokens_go_together(make: Callable[..., Made]) -> None:
    """A convolutional network in front of a transformer, with a class token that a stitching layer has to create."""
    made = make("small", "vit", **SN_NET)
    (to_tokens,) = [segment for segment in made.bundle.manifest.segments if segment.kind == "stitch"]
    assert (len(to_tokens.input_shape), to_tokens.output_shape) == (3, (17, 16))
    assert {"small", "vit"} < {route.name for route in made.bundle.routes}
    assert "rule sn-net: 2 stitched routes through 1 stitching layers" in made.said
    vit = made.bundle.route("vit")
    tokens, width = 17, 16
    block = 4 * tokens * width * width + 2 * tokens * tokens * width + 2 * tokens * width * 2 * width
    assert vit.macs == 16 * width * 4 + 2 * block + width * 4


@pytest.fixture(scope="module")
def onnx_specs(workshop: Workshop) -> dict[str, str]:
    """The trained anchors as ONNX files with a batch of one, as people have them."""
    specs = {}
    for name in ("small", "large"):
        module = load_anchor(AnchorSpec.parse(workshop.spec(name)), (1, 8, 8)).module
        path = workshop.root / f"{name}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, (torch.zeros(1, 1, 8, 8),), path, dynamo=False, opset_version=13)
        specs[name] = f"onnx:{path}"
    return specs


@pytest.mark.parametrize(
    ("which", "rule"), [(("small",), "sn-net"), (("large",), "restnet"), (("small", "large"), "restnet")], ids=["small", "large", "both"]
)
def test_anchors_from_onnx_files(
    make: Callable[..., Made], workshop: Workshop, onnx_specs: dict[str, str], tmp_path: Path, which: tuple[str, ...], rule: str
) -> None:
    """Routes, costs and scores are those of the same networks in torch, whichever of them come from files."""
    made = make("small", "large", rule=rule)
    anchors = tuple(onnx_specs[name] if name in which else workshop.spec(name) for name in ("small", "large"))
    bundle = export_bundle(replace(made.settings, anchors=anchors, out=tmp_path / "family"), lambda _: None)
    assert [(route.name, route.macs) for route in bundle.routes] == [(route.name, route.macs) for route in made.bundle.routes]
    x, _ = prepared(made.settings.val or "")
    expected = onnx_logits(made.bundle, x)
    for name, logits in onnx_logits(bundle, x).items():
        assert np.abs(logits - expected[name]).max() <= 1e-3 * np.abs(expected[name]).max()
    with pytest.raises(SpecError, match="come from ONNX files, through which ONNX Runtime gives no gradients: give --finetune none"):
        export_bundle(replace(made.settings, anchors=anchors, out=tmp_path / "tuned", finetune="stitch"), lambda _: None)
    assert not (tmp_path / "tuned").exists()


def test_routes_need_the_activations_of_their_hungriest_segment(make: Callable[..., Made]) -> None:
    """Of `small`: a block holds its input, 4 x 8 x 8 numbers, while it makes others of that size; the stem has the image beside one."""
    bundle = make("small", "large", **RESTNET).bundle
    segments = {segment.name: segment.activation_bytes for segment in bundle.manifest.segments}
    assert (segments["small.0"], segments["small.1"]) == (4 * 64 * (1 + 4), 4 * 64 * 4 * 3)
    for route in bundle.manifest.routes:
        assert route.activation_bytes == max(segments[name] or 0 for name in route.segments)


def test_there_and_back_again(make: Callable[..., Made]) -> None:
    """Routes that cross twice are in the bundle, and run to what was scored in torch."""
    made = make("large", "deep", rule="both-ways", finetune="none")
    assert "rule both-ways: 7 stitched routes through 5 stitching layers" in made.said
    twice = {route.name for route in made.bundle.routes if route.name.count(">") == 2}
    assert twice == {"large[0-1]>deep[2-2]>large[3-4]", "deep[0-1]>large[2-2]>deep[3-4]"}
    x, y = prepared(made.settings.val or "")
    for name, logits in onnx_logits(made.bundle, x).items():
        assert made.bundle.route(name).accuracy == pytest.approx(float((logits.argmax(1) == y).mean()), abs=1e-9)


def test_under_a_limit_less_is_fitted_and_scored(make: Callable[..., Made]) -> None:
    made = make("large", "deep", rule="all", select="kl", max_routes=3, finetune="none")
    assert "rule all: 2 stitched routes through 2 stitching layers" in made.said
    assert "scored 4 routes on 60 images" in made.said
    assert "kept 3 of 4 routes" in made.said
    assert len(made.bundle.routes) == 3


def quarters(folder: Path, names: Sequence[str]) -> str:
    """Ten images of class i in the directory names[i]."""
    x, y = images(40, 3)
    for index, (image, label) in enumerate(zip(x, y, strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / names[label] / f"{index}.png")
    return f"imagefolder:{folder}"


def test_folders_are_read_in_the_order_of_the_given_classes(workshop: Workshop, tmp_path: Path) -> None:
    """The folders in alphabetical order are classes 3, 1, 0 and 2 of the networks."""
    names = ("hen", "dog", "owl", "cat")
    folder = quarters(tmp_path / "photos", names)
    bundle = export_bundle(workshop.settings(tmp_path / "out", val=folder, classes=names, **SN_NET), lambda _: None)  # type: ignore[arg-type]
    assert bundle.manifest.classes == names
    x, y = images(40, 3)
    np.savez(tmp_path / "same.npz", x=x, y=y)
    x, y = prepared(f"npz:{tmp_path / 'same.npz'}")
    assert bundle.route("large").accuracy == pytest.approx(float((onnx_logits(bundle, x)["large"].argmax(1) == y).mean()))
    assert (bundle.route("large").accuracy or 0) > 0.6


class TestRefusals:
    @pytest.mark.parametrize("older", [False, True], ids=["nothing there", "an older bundle there"])
    @pytest.mark.parametrize(
        ("factories", "changes", "kind", "told"),
        [
            (("large", "small"), {}, ExportError, "small to large, by MACs that is: small large"),
            (("small", "colour"), {}, SpecError, "colour"),
            (("small", "five"), {}, SpecError, "different numbers of classes apart: {'small': 4, 'five': 5}"),
            (("five", "five"), {}, SpecError, "with different names"),
            (("small",), {}, SpecError, "at least two"),
            (("small", "Pair"), {}, SpecError, "must answer 2 images with float32 scores"),
            (("small", "missing"), {}, SpecError, "no function 'missing'"),
            (("small", "shallow"), {}, RuleError, "both need 2"),
            (("small", "large"), {"classes": ("a", "b")}, SpecError, "tell 4 classes apart, but --classes names 2 (a, b)"),
            (("small", "large"), {"preprocessing": GivenPreprocessing()}, SpecError, "give --input, --mean and --std"),
            (("small", "large"), {"input_shape": None}, SpecError, "give --input, --mean and --std"),
            (("small", "large"), {"samples": 3}, SpecError, "--samples 3 must be at least 4"),
            (("small", "large"), {"data": "npz:nowhere.npz"}, SpecError, "nowhere.npz does not exist"),
            (("small", "large"), {"rule": "sn-net", "kernel": 0}, RuleError, "kernel 0"),
            (("small", "large"), {"finetune": "stitch", "teacher": "nobody"}, SpecError, "'nobody' is none of the anchors small, large"),
        ],
    )
    def test_a_clear_error_and_no_new_bundle(
        self,
        make: Callable[..., Made],
        workshop: Workshop,
        tmp_path: Path,
        older: bool,
        factories: tuple[str, ...],
        changes: dict[str, object],
        kind: type[RestnetError],
        told: str,
    ) -> None:
        out = tmp_path / "out"
        if older:
            shutil.copytree(make("small", "large", **RESTNET).settings.out, out)
        with pytest.raises(kind) as refused:
            export_bundle(workshop.settings(out, *factories, **changes), lambda _: None)
        assert told in str(refused.value)
        assert [entry.name for entry in tmp_path.iterdir()] == (["out"] if older else [])
        if older:
            assert open_bundle(out).digest == make("small", "large", **RESTNET).bundle.digest

    @pytest.mark.parametrize("where", ["data", "val"])
    def test_a_label_without_a_class(self, workshop: Workshop, tmp_path: Path, where: str) -> None:
        x, y = images(20, 0)
        y[7] = 4
        np.savez(tmp_path / "data.npz", x=x, y=y)
        with pytest.raises(SpecError, match=r"the data has the label 4, the anchors tell 4 classes apart \(0..3\)"):
            export_bundle(workshop.settings(tmp_path / "out", **{where: f"npz:{tmp_path / 'data.npz'}"}), lambda _: None)
        assert not (tmp_path / "out").exists()

    def test_labels_that_mean_other_classes_in_the_other_data(self, workshop: Workshop, tmp_path: Path) -> None:
        for name in ("data/a", "data/b", "data/c", "data/d", "val/b", "val/c"):
            (tmp_path / name).mkdir(parents=True)
            for index in range(2):
                Image.new("L", (8, 8)).save(tmp_path / name / f"{index}.png")
        folders = {part: f"imagefolder:{tmp_path / part}" for part in ("data", "val")}
        with pytest.raises(
            SpecError, match=r"labels mean different classes in 'imagefolder:data' \(a, b, c, d\) and 'imagefolder:val' \(b, c\)"
        ):
            export_bundle(workshop.settings(tmp_path / "out", **folders), lambda _: None)

    def test_one_file_to_tune_and_to_score_on(self, workshop: Workshop, tmp_path: Path) -> None:
        settings = workshop.settings(tmp_path / "out")
        with pytest.raises(SpecError, match="are the same images"):
            export_bundle(replace(settings, val=settings.data), lambda _: None)

    def test_too_few_images(self, workshop: Workshop, tmp_path: Path) -> None:
        x, y = images(3, 0)
        np.savez(tmp_path / "few.npz", x=x, y=y)
        with pytest.raises(SpecError, match=r"data 'npz:few.npz' has 3 images to fit on; similarity needs at least 4"):
            export_bundle(workshop.settings(tmp_path / "out", data=f"npz:{tmp_path / 'few.npz'}"), lambda _: None)

    def test_class_names_that_are_not_the_folders(self, workshop: Workshop, tmp_path: Path) -> None:
        folder = quarters(tmp_path / "data", ("a", "b", "c", "d"))
        with pytest.raises(SpecError, match=r"classes of 'imagefolder:data' are not those given: d, e are on one side only"):
            export_bundle(workshop.settings(tmp_path / "out", data=folder, classes=("a", "b", "c", "e")), lambda _: None)

    @pytest.mark.parametrize("name", ["with space", ".hidden", "a" * 101])
    def test_a_name_that_no_bundle_has_before_any_work(self, workshop: Workshop, tmp_path: Path, name: str) -> None:
        with pytest.raises(ExportError, match=f"a bundle cannot be called '{name}'"):
            export_bundle(workshop.settings(tmp_path / name, data="npz:nowhere"), lambda _: None)

    def test_what_is_no_bundle_is_not_replaced(self, workshop: Workshop, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(ExportError, match="is in the way"):
            export_bundle(workshop.settings(tmp_path), lambda _: None)
        assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]

    def test_stages_that_cannot_be_paired(self, workshop: Workshop, tmp_path: Path) -> None:
        with pytest.raises(RuleError, match=r"stages \(3,\) must be different and from 0..0"):
            export_bundle(workshop.settings(tmp_path / "out", rule="sn-net", stages=(3,)), lambda _: None)


@pytest.fixture(scope="module")
def cut(workshop: Workshop) -> dict[str, CutAnchor]:
    return {name: cut_anchor(load_anchor(AnchorSpec.parse(workshop.spec(name)), (1, 8, 8))) for name in ("small", "large")}


@pytest.fixture(scope="module")
def samples(workshop: Workshop) -> Samples:
    return Samples(load_images(f"npz:{workshop.root / 'train.npz'}"), GREY, (1, 8, 8))


def _constant(classes: int) -> torch.nn.Module:
    """A head that answers class 0 whatever it sees."""
    head = torch.nn.Sequential(torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, classes))
    torch.nn.init.zeros_(head[2].weight)
    torch.nn.init.zeros_(head[2].bias)
    return head


class TestSteps:
    """Functions of the pipeline by themselves, on anchors in memory."""

    def test_similarity_is_of_cuts_of_the_larger_by_cuts_of_the_smaller(self, cut: dict[str, CutAnchor], samples: Samples) -> None:
        found = measure_similarity([cut["small"], cut["large"]], samples)
        assert {pair: values.shape for pair, values in found.items()} == {("large", "small"): (4, 3)}
        own = measure_similarity([cut["small"], replace(cut["small"], name="twin")], samples)["twin", "small"]
        np.testing.assert_allclose(np.diag(own), 1, atol=1e-6)

    def test_the_teacher_is_right_most_often(self, cut: dict[str, CutAnchor], samples: Samples) -> None:
        """Not the largest, if that is worse; of equals the larger."""
        untrained = replace(cut["large"], name="large", blocks=(*cut["large"].blocks[:-1], _constant(4)))
        assert strongest(cut, samples) == "large"
        assert strongest({"small": cut["small"], "large": untrained}, samples) == "small"
        assert strongest({"small": cut["small"], "twin": replace(cut["small"], name="twin")}, samples) == "twin"

    def test_one_image_more_does_not_make_a_teacher(
        self, cut: dict[str, CutAnchor], samples: Samples, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A fifth of the images does."""
        scores = {"small": 1.0, "large": 1 - 1 / len(samples)}
        monkeypatch.setattr("restnet_export.teachers.score_routes", lambda *_: list(scores.values()))
        assert strongest(cut, samples) == "large"
        scores["large"] = 0.8
        assert strongest(cut, samples) == "small"

    def test_a_layer_between_twins_is_the_identity(self, cut: dict[str, CutAnchor], samples: Samples) -> None:
        twins = {"small": cut["small"], "twin": replace(cut["small"], name="twin")}
        layers = fit_layers([LayerPlan("x", "small", "twin", ((0, 1), (1, 2)))], twins, samples)
        layer = layers["x"]
        np.testing.assert_allclose(layer.weight.detach().numpy(), np.eye(4), atol=0.01)
        np.testing.assert_allclose(layer.bias.detach().numpy(), 0, atol=0.01)

    def test_a_route_that_is_another_network_is_found(self, make: Callable[..., Made], cut: dict[str, CutAnchor], samples: Samples) -> None:
        bundle = make("small", "large", **RESTNET).bundle
        route = StitchedRoute("small", (Part("small", 0, 3),))
        images = next(samples.batches(3))[0]
        check_routes(bundle, [route], cut, {}, images)
        swapped = {**cut, "small": replace(cut["large"], name="small")}
        longer = StitchedRoute("small", (Part("small", 0, 4),))
        with pytest.raises(ParityError, match="route 'small' differs from torch"):
            check_routes(bundle, [longer], swapped, {}, images)


def test_a_network_without_cuts_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text("from torch import nn\ndef flat():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n")
    settings = workshop.settings(tmp_path / "out")
    with pytest.raises(CutError, match="flat"):
        export_bundle(replace(settings, anchors=(f"python:{tmp_path / 'flat.py'}:flat", settings.anchors[1])), lambda _: None)


class TestBadData:
    """Data that is wrong in part or altogether: told, and never half a bundle."""

    def test_images_without_labels_tune_and_fit(self, workshop: Workshop, tmp_path: Path) -> None:
        x, _ = images(96, 0)
        np.savez(tmp_path / "bare.npz", x=x)
        said: list[str] = []
        settings = workshop.settings(tmp_path / "out", data=f"npz:{tmp_path / 'bare.npz'}", finetune="stitch")
        bundle = export_bundle(settings, said.append)
        assert any(line.startswith("fine-tuning on 96 images, taught by large") for line in said)
        assert (bundle.route("large").accuracy or 0) > 0.6

    def test_labels_that_are_not_used_choose_no_teacher(self, workshop: Workshop, tmp_path: Path) -> None:
        """By these the small anchor would: it agrees with all of them."""
        x, _ = images(96, 0)
        plain = export_bundle(workshop.settings(tmp_path / "plain"), lambda _: None)
        classes = {name: logits.argmax(1) for name, logits in onnx_logits(plain, prepared(f"npz:{workshop.root / 'train.npz'}")[0]).items()}
        # Where both are of one mind the next class is told, elsewhere what the small one says.
        told = np.where(classes["small"] == classes["large"], (classes["small"] + np.arange(96) % 2) % 4, classes["small"])
        assert (told == classes["small"]).mean() > (told == classes["large"]).mean()
        np.savez(tmp_path / "wrong.npz", x=x, y=told)
        wrong = f"npz:{tmp_path / 'wrong.npz'}"
        for labelled, teacher in ((True, "small"), (False, "large")):
            said: list[str] = []
            settings = workshop.settings(tmp_path / "out", data=wrong, finetune="stitch", tuning=TuneSettings(labelled=labelled, steps=2))
            export_bundle(settings, said.append)
            assert any(line.startswith(f"fine-tuning on 96 images, taught by {teacher}") for line in said)

    def test_a_loss_of_labels_that_are_not_there(self, workshop: Workshop, tmp_path: Path) -> None:
        """Refused before an anchor is loaded."""
        np.savez(tmp_path / "bare.npz", x=images(96, 0)[0])
        tuning = TuneSettings(objective=Objective(labels=1.0))
        settings = workshop.settings(tmp_path / "out", "missing", data=f"npz:{tmp_path / 'bare.npz'}", finetune="stitch", tuning=tuning)
        with pytest.raises(SpecError, match=r"--loss labels=1 needs labels, and data 'npz:bare.npz' has none: leave that loss out"):
            export_bundle(settings, lambda _: None)

    def test_bad_images_are_told_and_left_out(self, workshop: Workshop, tmp_path: Path) -> None:
        folder = quarters(tmp_path / "photos", "abcd")
        (tmp_path / "photos" / "a" / "0.png").write_bytes(b"")
        said: list[str] = []
        bundle = export_bundle(workshop.settings(tmp_path / "out", val=folder, max_bad=0.1), said.append)
        assert bundle.manifest.provenance.scored_on == 39
        assert "1 of 40 images of 'imagefolder:photos' cannot be read and are left out:" in said
        with pytest.raises(SpecError, match="more than 0 of 40 images"):
            export_bundle(workshop.settings(tmp_path / "other", val=folder, max_bad=0), said.append)
        assert not (tmp_path / "other").exists()

    @pytest.mark.parametrize("where", ["data", "val"])
    def test_one_class_is_left_once_bad_images_are_out(self, workshop: Workshop, tmp_path: Path, where: str) -> None:
        folder = quarters(tmp_path / "photos", "abcd")
        for name in "abc":
            for file in (tmp_path / "photos" / name).iterdir():
                file.write_bytes(b"")
        with pytest.raises(SpecError, match="has one class only"):
            export_bundle(workshop.settings(tmp_path / "out", finetune="stitch", max_bad=0.9, samples=8, **{where: folder}), lambda _: None)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("where", ["data", "val"])
    def test_one_class_alone(self, workshop: Workshop, tmp_path: Path, where: str) -> None:
        x, y = images(20, 0)
        np.savez(tmp_path / "one.npz", x=x, y=np.full_like(y, 2))
        with pytest.raises(SpecError, match=r"data 'npz:one.npz' has one class only, '2'"):
            export_bundle(workshop.settings(tmp_path / "out", **{where: f"npz:{tmp_path / 'one.npz'}"}), lambda _: None)
        assert not (tmp_path / "out").exists()

    def test_an_anchor_that_answers_nan(self, workshop: Workshop, tmp_path: Path) -> None:
        """Fine on what it is tried on, not on bright images."""
        source = NETS + (
            "\n\nclass Odd(Cnn):\n    def forward(self, x):\n"
            "        return super().forward(x * torch.sqrt(1.5 - x.mean((1, 2, 3), keepdim=True)))\n"
            "\n\ndef odd():\n    return made(2, Odd, 8, 3)\n"
        )
        (tmp_path / "odd.py").write_text(source)
        np.savez(tmp_path / "bright.npz", x=np.full((40, 8, 8, 1), 255, np.uint8), y=np.arange(40) % 4)
        settings = workshop.settings(tmp_path / "out", data=f"npz:{tmp_path / 'bright.npz'}")
        with pytest.raises(ExportError, match="odd: what it computes up to stem is not finite for some of the images"):
            export_bundle(replace(settings, anchors=(settings.anchors[0], f"python:{tmp_path / 'odd.py'}:odd")), lambda _: None)
        assert not (tmp_path / "out").exists()
