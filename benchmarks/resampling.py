"""Is the resampling that held-out images choose the one that routes gain by?

    python benchmarks/resampling.py [--json FILE]

A convolutional network and a transformer, trained on the digits of scikit-learn (`examples/digits`); every pair of cuts whose grids
differ, fitted by least squares once with each way that may carry one grid to the other, and every route scored on 797 images.
"""

import importlib.util
import time
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from common import REPOSITORY, ROOT, Result, arguments, publish

EXAMPLE = REPOSITORY / "examples" / "digits"
NAMES = ("cnn_t", "vit")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkpoints() -> Path:
    """Both networks trained, now if they are not there."""
    import torch

    folder = ROOT / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    train, anchors = example("train"), example("anchors")
    for name in NAMES:
        if not (folder / f"{name}.pt").exists():
            torch.manual_seed(0)
            net = getattr(anchors, name)()
            train.train(net, *train.load("train"), train.EPOCHS[name], train.RATES.get(name, 1e-2))
            torch.save(net.state_dict(), folder / f"{name}.pt")
    return folder


def main() -> None:
    args = arguments(__doc__).parse_args()
    began = time.monotonic()
    from restnet_export import fitting
    from restnet_export.anchors import AnchorSpec, load_anchor
    from restnet_export.cuts import cut_anchor
    from restnet_export.data import Samples, load_images
    from restnet_export.planning import plan_routes
    from restnet_export.resampling import resamplings
    from restnet_export.routes import routes_of
    from restnet_export.rules import make_rule
    from restnet_export.scoring import score_routes
    from restnet_runtime.manifest import Preprocessing

    folder, shape = checkpoints(), (1, 8, 8)
    specs = [AnchorSpec.parse(f"python:{EXAMPLE / 'anchors.py'}:{name}@{folder / name}.pt") for name in NAMES]
    anchors = {spec.name: cut_anchor(load_anchor(spec, shape)) for spec in specs}
    grey = Preprocessing(mode="L", mean=(0.0,), std=(1.0,))
    fit, score = (Samples(load_images(f"digits:{part}"), grey, shape) for part in ("train", "val"))
    plan = plan_routes(make_rule("all"), anchors, {})
    layouts = {name: anchor.layouts for name, anchor in anchors.items()}
    plan = plan.only([(c,) for (c,) in plan.routes if len(resamplings(layouts[c.front][c.j], layouts[c.end][c.k - 1])) > 1])
    routes = routes_of(anchors, plan)
    chosen = fitting.fit_layers(plan.layers, anchors, fit)
    result = Result(
        "Ways of resampling, chosen by the error at the cut on held-out images", ("route", "way", "error at the cut", "right", "chosen")
    )
    for index in (0, 1):  # the most usual way, and the other
        with patch.object(fitting, "resamplings", lambda source, target: resamplings(source, target)[index : index + 1]):  # noqa: B023
            layers = fitting.fit_layers(plan.layers, anchors, fit)
        for route, right in zip(routes, score_routes(routes, anchors, layers, score.batches()), strict=True):
            if route.layers:
                layer, best = layers[route.layers[0]], chosen[route.layers[0]]
                row = {"route": route.name, "way": layer.resampling, "error": layer.fit.error, "accuracy": right}
                result.rows.append({**row, "chosen": best.resampling == layer.resampling})
    for row in sorted(result.rows, key=lambda row: row["route"]):
        result.cells.append((row["route"], row["way"], f"{row['error']:.3f}", f"{row['accuracy']:.1%}", "yes" if row["chosen"] else ""))
    publish(result, args, began)


if __name__ == "__main__":
    main()
