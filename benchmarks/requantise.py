"""The fp32 routes of a bundle of CIFAR-10 ResNets, quantised (again) without training or exporting anything again.

python benchmarks/requantise.py build/benchmarks/cifar/20-56-lossless-restnet/full build/benchmarks/cifar/tuned-int8 --set lossless
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
from cifar_family import cifar_settings
from common import take_weights_in

from restnet_export.data import load_images
from restnet_export.precisions import HELD_MOST, Family, quantise_family
from restnet_export.samples import Samples
from restnet_export.writer import BundleSource, RouteSource, SegmentSource, write_bundle
from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.graphs import load_segment


def with_weights(bundle: Bundle, name: str) -> onnx.ModelProto:
    """A segment in fp32 with its weights inside."""
    model = load_segment(bundle, bundle.segments[name], "fp32")
    take_weights_in(model, bundle)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", choices=("lossless", "jpeg"), default="lossless")
    parser.add_argument("--samples", type=int, default=400)
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    manifest = bundle.manifest
    settings = cifar_settings(args.out, images=args.set)
    fit = load_images(settings.data).shuffled(0).first(args.samples)
    score = load_images(settings.val or settings.data)
    images, scored = (Samples(part, manifest.preprocessing, manifest.input.shape) for part in (fit, score))
    x = np.concatenate([part.numpy() for part, _ in images.batches()])
    plain = [route for route in bundle.routes if route.precision == "fp32"]
    models = {name: with_weights(bundle, name) for route in plain for name in route.segments}
    family = Family(
        anchors={anchor.name: anchor.segments for anchor in manifest.anchors},
        routes={route.name: route.segments for route in plain},
        accuracies={route.name: route.accuracy or 0.0 for route in plain},
        models=models,
        macs={name: bundle.segments[name].macs for name in models},
        input_shape=manifest.input.shape,
    )
    made = quantise_family(
        family,
        lambda: [x[:-HELD_MOST]],
        x[-HELD_MOST:],
        lambda: ((part.numpy(), labels.numpy()) for part, labels in scored.batches()),
        print,
    )
    segments = [bundle.segments[name] for name in models]
    source = BundleSource(
        name=args.out.name,
        classes=manifest.classes,
        input_shape=manifest.input.shape,
        preprocessing=manifest.preprocessing,
        anchors=manifest.anchors,
        segments=tuple(
            SegmentSource(
                segment.name,
                segment.kind,
                segment.anchor,
                segment.module,
                segment.input_shape,
                segment.output_shape,
                segment.macs,
                segment.params,
                models[segment.name],
                segment.activation_bytes,
                {"int8": made.models[segment.name]} if segment.name in made.models else {},
            )
            for segment in segments
        ),
        routes=(
            *(RouteSource(route.name, route.segments, route.accuracy) for route in plain),
            *(RouteSource(route.name, route.segments, route.accuracy, route.precisions) for route in made.routes),
        ),
        provenance=manifest.provenance,
    )
    write_bundle(source, args.out)


if __name__ == "__main__":
    main()
