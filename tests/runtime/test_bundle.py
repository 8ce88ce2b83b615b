"""The bundle: what the writer writes is what the reader reads, and the published schema is the reader's own."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restnet_export.writer import RouteSource, write_bundle
from restnet_runtime.bundle import open_bundle
from restnet_runtime.errors import BundleError
from restnet_runtime.graphs import check_graphs
from restnet_runtime.manifest import Anchor, Preprocessing, Provenance, json_schema

DOCS = Path(__file__).parents[2] / "docs"

SMALL = ["small.0", "small.1", "small.2"]
LARGE = ["large.0", "large.1", "large.2", "large.3", "large.4"]


def segment(name, cin, cout, macs, params, weight_bytes):
    shapes = {"input_shape": [cin, 8, 8], "output_shape": [3] if cout is None else [cout, 8, 8]}
    anchor = None if "~" in name else name.split(".")[0]
    return {
        "name": name,
        "kind": "block" if anchor else "stitch",
        "anchor": anchor,
        "module": "head" if cout is None else "",
        **shapes,
        "macs": macs,
        "params": params,
        "activation_bytes": None,
        "graphs": {"fp32": {"file": f"segments/{name}.fp32.onnx", "weight_bytes": weight_bytes}},
    }


def route(name, segments, macs, params, weight_bytes, accuracy):
    return {
        "name": name,
        "segments": segments,
        "precisions": ["fp32"] * len(segments),
        "macs": macs,
        "params": params,
        "weight_bytes": weight_bytes,
        "activation_bytes": None,
        "accuracy": accuracy,
        "on_front": True,
    }


GOLDEN = {
    "format": "restnet-bundle",
    "version": 1,
    "name": "shapes",
    "task": "classification",
    "classes": ["circle", "cross", "square"],
    "input": {"shape": [1, 8, 8]},
    "preprocessing": {
        "mode": "L",
        "resize": "squash",
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "mean": [0.0],
        "std": [1.0],
    },
    "anchors": [{"name": "small", "source": "", "segments": SMALL}, {"name": "large", "source": "", "segments": LARGE}],
    "segments": [
        segment("small.0", 1, 4, 2304, 40, 0),
        segment("small.1", 4, 4, 9216, 148, 0),
        segment("small.2", 4, None, 12, 15, 0),
        segment("large.0", 1, 24, 13824, 240, 0),
        segment("large.1", 24, 24, 331776, 5208, 20736),
        segment("large.2", 24, 24, 331776, 5208, 20736),
        segment("large.3", 24, 24, 331776, 5208, 20736),
        segment("large.4", 24, None, 72, 75, 0),
        segment("small.1~large.2", 4, 24, 6144, 120, 0),
        segment("small.1~large.3", 4, 24, 6144, 120, 0),
    ],
    "routes": [
        route("small", SMALL, 11532, 203, 0, 0.80),
        route("small[0-1]>large[3-4]", ["small.0", "small.1", "small.1~large.3", "large.3", "large.4"], 349512, 5591, 20736, 0.85),
        route(
            "small[0-1]>large[2-4]", ["small.0", "small.1", "small.1~large.2", "large.2", "large.3", "large.4"], 681288, 10799, 41472, 0.9
        ),
        route("large", LARGE, 1009224, 15939, 62208, 0.95),
    ],
    "provenance": {"tool": "tests", "rule": "", "finetune": "", "seed": 0, "fitted_on": 0, "scored_on": 0, "versions": {}},
}
GOLDEN_FILES = ["report/report.html", *sorted(f"segments/{entry['name']}.fp32.onnx" for entry in GOLDEN["segments"]), "weights.bin"]


def test_manifest_is_the_golden_one(family_path: Path) -> None:
    manifest = json.loads((family_path / "manifest.json").read_bytes())
    files = manifest.pop("files")
    assert manifest == GOLDEN
    assert list(manifest) == list(GOLDEN)
    assert sorted(files) == GOLDEN_FILES
    assert files["report/report.html"] == {"sha256": "36df5a26169547f61178e9244736f985b7ad469731ca58cef8d6e95424ff3fe2", "bytes": 11}
    assert files["weights.bin"]["bytes"] == (-(-20736 // 4096) * 4096) * 2 + 20736


def test_nothing_else_is_written(family_path: Path) -> None:
    assert sorted(path.relative_to(family_path).as_posix() for path in family_path.rglob("*") if path.is_file()) == sorted(
        ["manifest.json", *GOLDEN_FILES]
    )


def test_routes_of_an_opened_bundle(family_path: Path) -> None:
    bundle = open_bundle(str(family_path))
    assert [(route.name, route.macs, route.accuracy, route.on_front) for route in bundle.routes] == [
        ("small", 11532, 0.80, True),
        ("small[0-1]>large[3-4]", 349512, 0.85, True),
        ("small[0-1]>large[2-4]", 681288, 0.90, True),
        ("large", 1009224, 0.95, True),
    ]
    assert bundle.route("large").segments == tuple(LARGE)
    assert bundle.weights == family_path.resolve() / "weights.bin"
    with pytest.raises(BundleError, match=r"has no route 'huge'; it has 4: small, "):
        bundle.route("huge")


def test_a_long_list_of_routes_is_cut_short(own_family) -> None:
    routes = tuple(RouteSource(f"small-{index}", tuple(SMALL), 0.5) for index in range(7))
    with pytest.raises(BundleError, match=r"it has 7: small-0, small-1, small-2, small-3, small-4, \.\.\.$"):
        open_bundle(own_family(routes=routes)).route("large")


def test_a_link_to_a_whole_bundle_may_be_opened(family_path: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(family_path)
    bundle = open_bundle(tmp_path / "current")
    check_graphs(bundle)
    assert bundle.path == family_path.resolve()


def test_classes_may_repeat(own_family) -> None:
    """ImageNet has two cranes; what tells them apart is the index."""
    assert open_bundle(own_family(classes=("crane", "cross", "crane"))).manifest.classes == ("crane", "cross", "crane")


def test_digest_tells_bundles_apart(own_family, family_path: Path) -> None:
    twin = open_bundle(own_family())
    assert twin.digest == open_bundle(family_path).digest
    assert open_bundle(own_family(name="other")).digest != twin.digest


def test_published_schema_is_current() -> None:
    made = subprocess.run([sys.executable, "-m", "restnet_runtime.manifest"], capture_output=True, text=True, check=True).stdout
    assert made == json_schema()
    assert (DOCS / "bundle.schema.json").read_text() == made, "run: python -m restnet_runtime.manifest > docs/bundle.schema.json"


def test_specification_names_every_field() -> None:
    """Every field of the manifest appears in docs/bundle.md as `field`."""
    text = (DOCS / "bundle.md").read_text()
    schema = json.loads((DOCS / "bundle.schema.json").read_text())
    fields = {name for part in (schema, *schema["$defs"].values()) for name in part.get("properties", {})}
    assert len(fields) > 40
    assert {name for name in fields if f"`{name}`" not in text} == set()


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._~+-]{0,40}", fullmatch=True)
SHARES = st.floats(0, 1)
SOURCES = st.fixed_dictionaries(
    {
        "name": NAMES,
        "classes": st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20), min_size=3, max_size=3).map(tuple),
        "preprocessing": st.builds(
            Preprocessing,
            mode=st.just("L"),
            resize=st.sampled_from(["squash", "shortest"]),
            interpolation=st.sampled_from(["nearest", "box", "bilinear", "bicubic"]),
            crop_pct=st.floats(0.01, 1),
            mean=st.tuples(st.floats(-1e6, 1e6)),
            std=st.tuples(st.floats(1e-6, 1e6)),
        ),
        "accuracies": st.lists(st.none() | SHARES, min_size=4, max_size=4),
        "provenance": st.builds(
            Provenance, tool=st.text(max_size=20), seed=st.integers(0, 2**31), versions=st.dictionaries(NAMES, NAMES, max_size=3)
        ),
    }
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=SOURCES)
def test_round_trip(family_source, changes) -> None:
    """What goes in comes out: names, classes, preprocessing, accuracies and provenance, bit for bit."""
    accuracies = changes.pop("accuracies")
    routes = tuple(dataclasses.replace(route, accuracy=share) for route, share in zip(family_source.routes, accuracies, strict=True))
    with tempfile.TemporaryDirectory() as root:
        bundle = write_bundle(dataclasses.replace(family_source, routes=routes, **changes), Path(root) / "bundle")
    manifest = bundle.manifest
    assert {name: getattr(manifest, name) for name in changes} == changes
    assert [(route.name, route.segments, route.accuracy) for route in bundle.routes] == [
        (route.name, route.segments, route.accuracy) for route in routes
    ]
    assert manifest.anchors == (Anchor(name="small", segments=tuple(SMALL)), Anchor(name="large", segments=tuple(LARGE)))
