"""Train the two anchors of this directory on scikit-learn's digits: `python train.py --out DIR` writes cnn_s.pt and cnn_l.pt.

The 1,000 training images of `restnet-export --data digits` are used; the other 797 are only looked at.
"""

import argparse
import importlib.util
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from restnet_export.data import Samples, load_images
from restnet_runtime.manifest import Preprocessing

PREPROCESSING = Preprocessing(mode="L", mean=(0.0,), std=(1.0,))
EPOCHS = {"cnn_s": 6, "cnn_l": 20}
"""The small one learns quickly and is stopped early."""


def load(part: str) -> tuple[Tensor, Tensor]:
    """x float32 (N, 1, 8, 8) and y int64 (N,) of `digits:train` or `digits:val`."""
    samples = Samples(load_images(f"digits:{part}"), PREPROCESSING, (1, 8, 8))
    return next(samples.batches(len(samples)))


def jittered(x: Tensor) -> Tensor:
    """Each image of (B, 1, 8, 8) moved by up to one pixel: what a hand does."""
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    moves = torch.randint(0, 3, (len(x), 2))
    return torch.stack([image[:, top : top + 8, left : left + 8] for image, (top, left) in zip(padded, moves.tolist(), strict=True)])


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    """AdamW with a one-cycle schedule and small shifts."""
    batch = 50
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * (len(x) // batch))
    model.train()
    for _ in range(epochs):
        for indices in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(jittered(x[indices])), y[indices], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the two digit anchors.")
    parser.add_argument("--out", type=Path, required=True, help="directory for cnn_s.pt and cnn_l.pt")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("anchors", Path(__file__).with_name("anchors.py"))
    anchors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anchors)
    args.out.mkdir(parents=True, exist_ok=True)
    x, y = load("train")
    x_val, y_val = load("val")
    for name, epochs in EPOCHS.items():
        started = time.perf_counter()
        torch.manual_seed(args.seed)
        model = getattr(anchors, name)()
        train(model, x, y, epochs)
        with torch.no_grad():
            accuracy = (model(x_val).argmax(1) == y_val).float().mean().item()
        torch.save(model.state_dict(), args.out / f"{name}.pt")
        params = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name}: {params} parameters, {accuracy:.1%} of {len(y_val)} held-out digits, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
