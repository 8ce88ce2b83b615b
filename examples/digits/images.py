"""Write held-out digits as PNG files, one of each class: `python images.py --out DIR` makes DIR/0.png .. DIR/9.png."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from restnet_export.data import load_images


def main() -> None:
    parser = argparse.ArgumentParser(description="Write held-out digits as PNG files.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=96, help="height and width; the server brings any size to 8x8 (default: %(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    images = load_images("digits:val")
    for label in range(10):
        pixels = images.source(int(np.flatnonzero(images.labels == label)[0]))
        Image.fromarray(pixels[:, :, 0]).resize((args.size, args.size), Image.Resampling.NEAREST).save(args.out / f"{label}.png")


if __name__ == "__main__":
    main()
