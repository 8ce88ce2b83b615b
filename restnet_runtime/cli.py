"""The commands of a device: `restnet-serve`, `restnet-bench`, `restnet-inspect`."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from restnet_runtime import __version__
from restnet_runtime.arguments import add_engine_options, add_signature_option, common_parser, positive, read_keys, share
from restnet_runtime.batch_plan import BatchSettings, Mode
from restnet_runtime.budget import Budget
from restnet_runtime.bundle import open_bundle
from restnet_runtime.commands import run_command
from restnet_runtime.errors import CompileError, TraceError
from restnet_runtime.logs import configure_logs, quiet_parsers
from restnet_runtime.places import default_cache_root
from restnet_runtime.signals import unwind_if_told
from restnet_runtime.tables import routes_table
from restnet_runtime.units import format_bytes

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from restnet_runtime.engine import Engine
    from restnet_runtime.pool import Pool

_FIRST_ROUTE_S = 120.0


def serve(argv: Sequence[str] | None = None) -> int:
    """`restnet-serve`: serve bundles over HTTP until SIGTERM. Returns the exit status: 0, or 2 with one line on standard error."""
    from restnet_runtime.serve_options import add_serve_options  # the other commands need no HTTP

    parser = common_parser("restnet-serve", "Serve one bundle or several over HTTP and keep to a budget.", several=True)
    add_engine_options(parser, several=True)
    add_serve_options(parser)
    args = parser.parse_intermixed_args(argv)  # bundles may stand before and after options
    return run_command("restnet-serve", lambda: _serve(args))


def _serve(args: argparse.Namespace) -> int:
    # Here and not above: the other commands need no HTTP.
    from restnet_runtime.notifier import Notifier
    from restnet_runtime.serve_options import read_settings
    from restnet_runtime.server import listen, run_server, url_of
    from restnet_runtime.threads import affinity_cores

    configure_logs(args.log_format)
    notifier = Notifier.from_environment()  # before a process is started, which would speak for this one
    batching = BatchSettings(args.batching, args.batch_wait, args.batch_max)
    settings = read_settings(args, batching)
    if args.min_accuracy is not None:
        args.budget = args.budget.narrowed(Budget(min_accuracy=args.min_accuracy))
    tracer_provider = None
    if args.otel:
        from restnet_runtime.tracing import open_provider

        tracer_provider = open_provider(__version__)
    # Listening comes first, so that a taken port costs no loading.
    with ExitStack() as stack, listen(args.host, args.port, remote=args.allow_remote) as listener:
        if tracer_provider is not None:
            stack.callback(tracer_provider.shutdown)
        from restnet_runtime.served_models import open_models  # not above, as in `_open`

        engines, updates, stamps = open_models(args, partial(_open, args, batching=batching))
        engine = next(iter(engines.values()))
        for name, one in engines.items():
            bundle = one.executor.bundle
            print(f"serving {name} ({len(bundle.routes)} routes) from {bundle.path}, budget {one.controller.budget}")
        print(f"listening on {url_of(listener)}", flush=True)
        if args.allow_remote and settings.access.token is None and not args.read_only:
            print("whoever reaches this may change budget and pin: --token-file or --read-only keeps others from it", file=sys.stderr)
        with engines, ExitStack() as serving:
            if engine.short_of_memory():
                # What HTTP takes would be missing where the first route is compiled; connections wait at the listener.
                with suppress(CompileError):
                    engine.wait_ready(_FIRST_ROUTE_S)
            from restnet_runtime.api import create_app  # not above: for this reason, and the other commands need no HTTP
            from restnet_runtime.models import Backend

            if args.record is not None:
                from restnet_runtime.recorder import Recorder

                stack.enter_context(Recorder(args.record, engine.controller, affinity_cores(), args.interval))
            quiet_parsers()
            serving.callback(updates.close)
            app = create_app({name: Backend.of(one) for name, one in engines.items()}, settings, tracer_provider, updates)
            if args.watch is not None:
                from restnet_runtime.bundle_watch import BundleWatch

                serving.enter_context(BundleWatch(updates, stamps, args.watch))

            def stopping() -> None:
                app.state.events.close()
                updates.halt()  # whoever waits for one is answered
                if notifier is not None:
                    notifier.stopping()

            served: ASGIApp = app
            if notifier is not None:
                from restnet_runtime.heartbeat import keep_telling

                served = keep_telling(app, notifier, lambda: [entry.backend for entry in app.state.models], app.state.intake.aside)
            run_server(served, listener, own_logs=args.log_format == "text", ready=unwind_if_told, stopping=stopping)
    return 0


def bench(argv: Sequence[str] | None = None) -> int:
    """`restnet-bench`: which route fits a budget here, and what it costs. Returns 0, 1 when no route fits, or 2 for an error."""
    parser = common_parser(
        "restnet-bench", "Show which route fits a budget on this device, its cost here, and what its neighbours would give."
    )
    add_engine_options(parser)
    parser.add_argument("--runs", type=positive(int), default=100, metavar="N", help="timed runs of each route (default: %(default)s)")
    parser.add_argument(
        "--compare",
        choices=("plain",),
        help="instead: every route on the Pareto front beside one plain ONNX Runtime session of the same network (its defaults, level "
        "ALL, as many threads): latency in turns, load time, outputs compared first; and the memory of all routes beside that of one "
        "plain session for each, in processes of their own. Takes a few seconds for each route",
    )
    parser.add_argument("--explain", action="store_true", help="list every route too, with the limit of the budget that rules it out")
    parser.add_argument(
        "--trace",
        action="append",
        metavar="NAME|FILE",
        help="instead: replay what a device leaves over time on a virtual clock, by our policy and by others, with this device's profiles: "
        "steady, steps, sawtooth, bursts, thermal, leak, diurnal, all, or a CSV that restnet-serve --record wrote; several may be given. "
        "Without a latency in --budget it is that of the most accurate route and a third",
    )
    parser.add_argument("--arrivals", choices=("even", "random"), help="with --trace: how requests come (default: even)")
    parser.add_argument("--spread", type=share, metavar="S", help="with --trace: of run times, as 0.03 (default: as the profiles have it)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --trace: a picture (PNG, SVG); needs matplotlib")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too, with the machine's description")
    parser.add_argument(
        "--report",
        nargs="?",
        type=Path,
        const=Path("restnet-report"),
        metavar="PREFIX",
        help="instead: measure every route and what comes of budgets, and write PREFIX.json and PREFIX.md (default: restnet-report), which "
        "say what this device is and which versions it has: to paste into an issue",
    )
    args = parser.parse_args(argv)
    return run_command("restnet-bench", lambda: _bench(args))


def _bench(args: argparse.Namespace) -> int:
    if args.explain and (args.compare or args.trace):
        raise TraceError("--explain tells of one budget, which --compare and --trace do not choose by: leave it out")
    given = [name for name in ("arrivals", "spread", "plot") if getattr(args, name) is not None]
    if args.trace is None and given:
        raise TraceError(f"--{given[0]} is of what --trace replays: give both, or neither")
    if args.compare is not None and args.trace is not None:
        raise TraceError("--compare and --trace are two things to do: give one of them")
    if args.report is not None and (args.compare or args.trace or args.explain or args.json):
        raise TraceError("--report writes files of its own, and does neither of --compare, --trace, --explain and --json: leave these out")
    if args.report is not None:
        return _report(args)
    if args.compare is not None:
        return _compare(args)
    if args.trace is not None:
        return _replay(args)
    from restnet_runtime.bench import render, run_benchmark

    engine = _open(args)
    try:
        result = run_benchmark(engine, args.budget, args.runs, explain=args.explain)
    finally:
        engine.stop()
    print(render(result))
    if args.json is not None:
        args.json.write_text(json.dumps(result.document(), indent=1) + "\n")
    return 0 if result.feasible else 1


def _report(args: argparse.Namespace) -> int:
    from restnet_runtime.device_report import make_report
    from restnet_runtime.report_text import files_of, render, write

    for file in files_of(args.report):
        _check_writable(file)
    engine = _open(args)
    try:
        report = make_report(engine, args.budget, args.runs, on_step=lambda step: _show_step(f"{step} ..."))
    finally:
        engine.stop()
        _show_step("")
    document, text = write(report, args.report)
    print(f"{render(report)}\nwrote {document} and {text}: paste the text into an issue, and attach the JSON")
    return 0


def _replay(args: argparse.Namespace) -> int:
    from restnet_runtime.replay_bench import run_replays
    from restnet_runtime.replays import render

    for file in (args.json, args.plot):
        if file is not None:
            _check_writable(file)
    engine = _open(args)
    try:
        result = run_replays(
            engine,
            args.budget,
            args.trace,
            spread=args.spread,
            at_random=args.arrivals == "random",
            on_trace=lambda name: _show_step(f"{name} ..."),
        )
    finally:
        engine.stop()
        _show_step("")
    print(render(result))
    if args.json is not None:
        args.json.write_text(json.dumps(result.document(), indent=1) + "\n")
    if args.plot is not None:
        from restnet_runtime.replay_plot import plot

        plot(result, args.plot)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from restnet_runtime.compare import compare_plain
    from restnet_runtime.comparison import render
    from restnet_runtime.threads import usable_cores

    if args.provider != ["cpu"]:
        raise CompileError("--compare measures the CPU: leave --provider out")
    if args.cache_size is not None:
        raise CompileError("--compare keeps whatever it compiles: leave --cache-size out")
    if args.json is not None:
        _check_writable(args.json)  # better known before minutes of measuring
    try:
        result = compare_plain(
            open_bundle(args.bundle),
            args.budget,
            cache_root=args.cache or default_cache_root(),
            threads=args.threads or usable_cores(),
            runs=args.runs,
            on_step=lambda step: _show_step(f"{step} ..."),
        )
    finally:
        _show_step("")
    print(render(result))
    if args.json is not None:
        args.json.write_text(json.dumps(result.document(), indent=1) + "\n")
    return 0 if result.feasible else 1


def _check_writable(file: Path) -> None:
    """Raise `OSError` if `file` cannot be written. It is left as it is, and not made."""
    target = file.resolve()
    there = target.exists()
    file.open("a").close()
    if not there:
        target.unlink()


def _show_step(text: str) -> None:
    """One line on a terminal that each step overwrites."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def inspect(argv: Sequence[str] | None = None) -> int:
    """`restnet-inspect`: print a bundle's routes after checking it whole. Returns 0, or 2 with one line that says what is wrong."""
    parser = common_parser("restnet-inspect", "Check a bundle (every digest, graph and tensor) and print its routes.")
    add_signature_option(parser)
    args = parser.parse_args(argv)
    return run_command("restnet-inspect", lambda: _inspect(args))


def _inspect(args: argparse.Namespace) -> int:
    from restnet_runtime.graphs import check_graphs

    bundle = open_bundle(args.bundle, keys=read_keys(args))
    check_graphs(bundle)
    manifest, shape = bundle.manifest, "x".join(map(str, bundle.manifest.input.shape))
    size = sum(entry.bytes for entry in manifest.files.values())
    print(f"{manifest.name}: {manifest.task}, {len(manifest.classes)} classes, input {shape}, {len(manifest.segments)} segments")
    print(f"made by {manifest.provenance.tool or 'unknown'}, scored on {manifest.provenance.scored_on} images")
    print(routes_table(bundle.routes))
    print(f"verified {len(manifest.files)} files, {format_bytes(size)}, SHA-256 of the manifest {bundle.digest}")
    if bundle.signed_by is not None:
        print(f"signed by {bundle.signed_by}")
    return 0


def _open(
    args: argparse.Namespace,
    path: Path | None = None,
    budget: Budget | None = None,
    batching: BatchSettings | Mode = "off",
    pin: str | None = None,
    pool: "Pool | None" = None,
    name: str | None = None,
) -> "Engine":
    from restnet_runtime.engine import Engine  # not above, because it imports ONNX Runtime: a signal meanwhile is to end this quietly

    return Engine.open(
        path or args.bundle,
        args.budget if budget is None else budget,
        cache_root=args.cache or default_cache_root(),
        threads=args.threads,
        providers=args.provider,
        interval_s=getattr(args, "interval", 1.0),
        cache_bytes=args.cache_size,
        batching=batching,
        keep_all=getattr(args, "keep_all", False),
        pin=pin,
        pool=pool,
        name=name,
        keys=read_keys(args),
    )
