"""A folder of images to try the tutorial with: scikit-learn's digits as PNG files, `python photos.py --out DIR`.

Writes DIR/train/CLASS/*.png, 1,000 of them, and DIR/val/CLASS/*.png, 797 others: the layout that `imagefolder:` reads.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from restnet_export.data import load_images


def main() -> None:
    parser = argparse.ArgumentParser(description="Write digits as a folder of images.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--size", type=int, default=64, help="height and width (default: %(default)s)")
    args = parser.parse_args()
    for part in ("train", "val"):
        images = load_images(f"digits:{part}")
        labels = np.asarray(images.labels)
        for number, label in enumerate(labels):
            folder = args.out / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray(images.source(number)[:, :, 0])
            grey.resize((args.size, args.size), Image.Resampling.BICUBIC).save(folder / f"{number:04}.png")
        print(f"{args.out / part}: {len(labels)} images of {len(set(labels.tolist()))} classes")


if __name__ == "__main__":
    main()
