"""What an export costs: seconds by phase, the peak memory of the process, and the bundle's size beside its distinct weights.

    python benchmarks/export_cost.py [--samples 100 2000] [--max-routes 12] [--finetune none] [--threads 2] [--json FILE]

DeiT-Ti and S with random weights, all routes of the rule sn-net (34 stitches), images of noise as JPEG files in folders. Each export is
a process of its own; `Phases` of the exporter counts the time, the kernel the largest resident size. Each has the same 100 images to score
on, so that only the images behind similarity and least squares grow in number. Distinct weights are the parameters and buffers of both
anchors and the stitching layers, each once.
"""

import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Floor, Result, arguments, in_child, publish
from families import complete_torchvision

ANCHORS = ("deit_tiny_patch16_224", "deit_small_patch16_224")
CLASSES = 1000
SCORED = 100
MOST_SECONDS, MOST_BYTES, MOST_GROWTH, MOST_SIZE = 240, 3e9, 1.10, 1.01


def images(root: Path, count: int, seed: int) -> Path:
    """`count` JPEG files under `root`, in directories of as many classes as the anchors have."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    folders = [root / f"{index:04d}" for index in range(CLASSES)]
    for folder in folders:
        folder.mkdir(parents=True)
    for index in range(count):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(folders[index % CLASSES] / f"{index}.jpg")
    return root


def export(root: Path, samples: int, finetune: str, threads: int, max_routes: int | None) -> dict[str, Any]:
    import torch

    from restnet_export.anchors import AnchorSpec, load_anchor
    from restnet_export.phases import Phases
    from restnet_export.pipeline import export_bundle
    from restnet_export.settings import ExportSettings

    torch.set_num_threads(threads)
    complete_torchvision()
    specs = tuple(f"timm:{anchor}@random" for anchor in ANCHORS)
    settings = ExportSettings(
        anchors=specs,
        data=f"imagefolder:{images(root / 'fit', samples, 0)}",
        val=f"imagefolder:{images(root / 'score', SCORED, 1)}",
        out=root / "bundle",
        rule="sn-net",
        finetune=finetune,  # type: ignore[arg-type]
        samples=samples,
        max_routes=max_routes,
        progress=False,
    )
    phases = Phases()
    bundle = export_bundle(settings, print, phases=phases)
    # Of this process alone: the exporter starts no other, and what is forked for a moment (matplotlib looks for fonts the first time)
    # counts as large as this one before it becomes another program.
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    stitches = sum(4 * segment.params for segment in bundle.manifest.segments if segment.kind == "stitch")
    distinct = stitches + sum(
        tensor.nbytes for spec in specs for tensor in load_anchor(AnchorSpec.parse(spec)).module.state_dict().values()
    )
    return {
        "samples": samples,
        "max_routes": max_routes,
        "finetune": finetune,
        "threads": threads,
        "routes": len(bundle.routes),
        "seconds": sum(phases.seconds.values()),
        "processor_s": sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)),
        "phases_s": phases.seconds,
        "peak_bytes": peak_bytes,
        "bundle_bytes": sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file()),
        "distinct_bytes": distinct,
    }


def judge(result: Result, rows: list[dict[str, Any]]) -> None:
    limited, rows = [row for row in rows if row["max_routes"]], [row for row in rows if not row["max_routes"]]
    first, last = rows[0], rows[-1]
    what = f"DeiT-Ti/S, {first['routes']} routes, {first['samples']} images, {first['threads']} threads"
    took, peak = f"{first['seconds']:.0f} s", f"{first['peak_bytes'] / 1e9:.2f} GB"
    share = first["bundle_bytes"] / first["distinct_bytes"]
    result.floors = [
        Floor(f"export, {what}", "4 minutes", f"<= {MOST_SECONDS} s", took, first["seconds"] <= MOST_SECONDS),
        Floor(f"peak memory of the export, {what}", "3 GB", f"<= {MOST_BYTES / 1e9:.0f} GB", peak, first["peak_bytes"] <= MOST_BYTES),
        Floor(f"size of the bundle, {what}", "distinct weights", f"<= {MOST_SIZE}", f"{share:.4f}", share <= MOST_SIZE),
    ]
    if last is not first:
        growth = last["peak_bytes"] / first["peak_bytes"]
        asked = f"peak memory of the export with {last['samples']} images"
        result.floors.append(Floor(asked, f"{first['samples']} images", f"<= {MOST_GROWTH}", f"{growth:.3f}", growth <= MOST_GROWTH))
    for row in limited:
        saved = 1 - row["processor_s"] / first["processor_s"]
        result.notes.append(f"--max-routes {row['max_routes']} saves {saved:.0%} of the processor time of {first['routes']} routes")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 2000], help="images to fit on, an export for each")
    parser.add_argument("--max-routes", type=int, help="one more export on the first number of images, of so many routes")
    parser.add_argument("--finetune", default="none")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    started = time.monotonic()
    rows = []
    asked = [(samples, None) for samples in args.samples] + [(args.samples[0], args.max_routes)] * (args.max_routes is not None)
    for samples, max_routes in asked:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            rows.append(in_child(export, root, samples, args.finetune, args.threads, max_routes))
            shutil.rmtree(root / "bundle")
        print(f"{samples} images, {rows[-1]['routes']} routes: {rows[-1]['peak_bytes'] / 1e9:.3f} GB at most", flush=True)
    phases = tuple(dict.fromkeys(phase for row in rows for phase in row["phases_s"]))
    result = Result(
        "Export of DeiT-Ti/S: seconds by phase, and memory",
        ("images", "routes", "seconds", *phases, "processor", "peak memory", "bundle / weights"),
        rows=rows,
    )
    for row in rows:
        times = [f"{row['phases_s'].get(phase, 0.0):.1f}" for phase in phases]
        sizes = f"{row['peak_bytes'] / 1e9:.2f} GB", f"{row['bundle_bytes'] / row['distinct_bytes']:.4f}"
        result.cells.append(
            (str(row["samples"]), str(row["routes"]), f"{row['seconds']:.0f}", *times, f"{row['processor_s']:.0f} s", *sizes)
        )
    judge(result, rows)
    publish(result, args, started)


if __name__ == "__main__":
    main()
