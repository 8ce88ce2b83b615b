"""Result files of the int8 benchmarks -> docs/int8.md.

python benchmarks/int8_page.py build/benchmarks/int8/*.json

The files are those that `--json` of int8_latency.py, int8_kinds.py, int8_accuracy.py, int8_cause.py, saturation.py and int8_elsewhere.py
writes; `make bench-precision` makes all but the last, which needs another machine, and the picture.
"""

import argparse
import json
from pathlib import Path

from common import REPOSITORY
from exporter_page import sections

INTRO = """# Int8: what it costs, what it loses, and what the joint front is worth

Written by `make bench-precision` (`benchmarks/int8_page.py`); edit the benchmarks, not this page. How routes are quantised, and why so:
[decision 18](decisions/0018-int8.md). Latencies of published architectures are of random weights, because speed does not depend on
them; accuracies are of public CIFAR-10 checkpoints on held-out images: `cifar/tuned-int8` is what `benchmarks/cifar_tuning.py --modes
full --steps 1400 --shift 2 --teacher 44 --bf16` writes, quantised by `benchmarks/requantise.py`; `cifar/jpeg-int8` is the pair for JPEG
images, which `benchmarks/int8_accuracy.py` makes by itself: stitched by least squares alone and not tuned, its routes lie below its
anchors in any precision. `benchmarks/saturation.py` plays other processors, which needs qemu; the answers of another machine are
those of `scripts/score_check.py` there, beside the same here (`benchmarks/int8_elsewhere.py`). A star is an anchor: what somebody
would deploy who deploys one model, in fp32 or in int8.

![accuracy over latency of all routes in both precisions](int8.png)"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "int8.md")
    args = parser.parse_args()
    results = [json.loads(path.read_text()) for path in args.results]
    args.out.write_text("\n".join([INTRO, *sections(results)]) + "\n")
    print(f"wrote {args.out} from {len(results)} results")


if __name__ == "__main__":
    main()
