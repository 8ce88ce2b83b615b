"""The models of `restnet-serve`: their engines, in one pool, and what replaces their bundles while they serve."""

import argparse
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from restnet_runtime.arguments import read_keys
from restnet_runtime.budget import Budget
from restnet_runtime.bundle import SHIPPED_BUNDLE
from restnet_runtime.bundle_watch import Stamp, stamp_of
from restnet_runtime.distrust import Distrust
from restnet_runtime.engine import Engine
from restnet_runtime.engines import Engines
from restnet_runtime.errors import BundleError
from restnet_runtime.places import default_cache_root
from restnet_runtime.pool import Pool
from restnet_runtime.trial import TrialSettings
from restnet_runtime.updates import Updates, UpdateSettings
from restnet_runtime.versions import previous_of

log = logging.getLogger(__name__)


class ServedModels(NamedTuple):
    """engines: by name, not started; updates: of them; stamps: of what lay at each path before it was opened."""

    engines: Engines
    updates: Updates
    stamps: dict[str, Stamp | None]


def open_models(args: argparse.Namespace, open_engine: Callable[..., Engine]) -> ServedModels:
    """Open the bundles of a command line. open_engine: opens one, as `cli` does; path, budget, pin, pool and name by keyword.

    Raises what `Engines.open` does, `KeyFileError`, and `BundleError` where the first bundle lacks the route of `--pin`.
    """
    given, pool = args.bundles or [(None, SHIPPED_BUNDLE)], Pool()
    distrust = Distrust(args.cache or default_cache_root())
    first = True

    def open_next(name: str | None, path: Path) -> Engine:
        nonlocal first
        # Memory is of the process, and one budget holds it; a pin names a route of one bundle.
        budget = args.budget if first else replace(args.budget, memory_bytes=None)
        open_it = partial(open_engine, budget=budget, pool=pool, name=name)
        engine = _or_previous(path, open_it, distrust, alone=len(given) == 1)
        if first and args.pin is not None:
            _pin(engine, args.pin)
        first = False
        return engine

    def open_new(name: str, path: Path, budget: Budget, pin: str | None) -> Engine:
        return open_engine(path=path, budget=budget, pin=pin, pool=pool, name=name)

    keys = read_keys(args)
    stamps = [stamp_of(path) for _, path in given]
    engines = Engines.open(given, open_next)
    paths = {name: path for name, (_, path) in zip(engines, given, strict=True)}
    trial = TrialSettings(int(args.trial_requests), args.trial_time / 1e3)
    updates = Updates(engines, paths, open_new, UpdateSettings(trial, keys), distrust)
    return ServedModels(engines, updates, dict(zip(engines, stamps, strict=True)))


def _pin(engine: Engine, route: str) -> None:
    """Apart from opening: a bundle without that route is no reason to serve the one before it. Raises `BundleError`."""
    try:
        engine.executor.bundle.route(route)
    except BundleError:
        engine.stop()
        raise
    engine.controller.pin = route


def _or_previous(path: Path, open_engine: Callable[..., Engine], distrust: Distrust, *, alone: bool) -> Engine:
    """The bundle at `path`; where it must not be used, and restnet-update left one before it, that one, and a line in the log.

    alone: it is the only model, so that with damaged weights nothing would serve; beside others it is left without a route
    """
    previous = previous_of(path)
    try:
        engine = open_engine(path=path)
        return _checked(engine, distrust if previous is not None else None) if alone or previous is not None else engine
    except BundleError as error:
        if previous is None:
            raise
        try:
            engine = _checked(open_engine(path=previous), None)
        except BundleError as other:
            raise BundleError(str(path), f"{error}; nor can the version before it be served, {previous.resolve()}: {other}") from error
        log.error("%s is not served: %s; the version before it is: %s", path, error, engine.executor.bundle.path)
        return engine


def _checked(engine: Engine, distrust: Distrust | None) -> Engine:
    """Raise `BundleError` for a bundle whose weights are damaged, or that has failed on trial here, where another could serve.

    Weights are read where nothing of the bundle has been compiled yet, which reads them too; else routes have been made of them before.
    """
    try:
        bundle = engine.executor.bundle
        reason = None if distrust is None else distrust.reason(bundle.digest)
        if reason is not None:
            raise BundleError(str(bundle.path), f"failed when it served on trial: {reason} (a request to load it tries again)")
        if not engine.compiler.cache.names():
            engine.compiler.check_weights()
    except BaseException:
        engine.stop()
        raise
    return engine
