"""Fine-tune models of timm on a folder of images: `python finetune.py --data DIR --size 32 --models resnet10t --out DIR`.

DIR of images has a directory for each class. Writes OUT/MODEL.pt, a bare state dict, as `restnet-export --anchors timm:MODEL@OUT/MODEL.pt`
takes it. Weights are random at first (`--pretrained` takes those that timm publishes, which needs a network). A stand-in for the training
that you have already done: where you have checkpoints of your own, you do not need it.
"""

import argparse
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from restnet_export.data import Samples, load_images
from restnet_runtime.manifest import Preprocessing

RATE = 3e-3
BATCH = 50


def load(folder: Path, size: int) -> tuple[Tensor, Tensor, int]:
    """x float32 (N, 3, size, size), y int64 (N,), and how many classes there are."""
    half = (0.5, 0.5, 0.5)
    images = load_images(f"imagefolder:{folder}")
    samples = Samples(images, Preprocessing(mode="RGB", mean=half, std=half), (3, size, size))
    x, y = next(samples.batches(len(samples)))
    return x, y, int(y.max()) + 1


def tune(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> float:
    """AdamW with one cycle of the learning rate; returns the share of x that is right in the end."""
    steps = epochs * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for chosen in order[: len(x) - len(x) % BATCH].split(BATCH):
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune models of timm on a folder of images.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a directory for each class")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME", help="names of timm")
    parser.add_argument("--size", type=int, default=224, help="height and width (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--pretrained", action="store_true", help="begin with the weights that timm publishes")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    x, y, classes = load(args.data, args.size)
    for name in args.models:
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=args.pretrained, num_classes=classes)
        right = tune(model, x, y, args.epochs)
        torch.save(model.state_dict(), args.out / f"{name}.pt")
        print(f"{name}: {right:.1%} of the images it was trained on are right, written to {args.out / name}.pt")


if __name__ == "__main__":
    main()
