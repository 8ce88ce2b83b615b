"""The options of `restnet-serve` that other commands do not have, and the settings that they give."""

import argparse
from pathlib import Path

from restnet_runtime.access_options import add_access_options, read_access
from restnet_runtime.arguments import accuracy, add_signature_option, deadline, port, positive, wait
from restnet_runtime.batch_plan import MODES, BatchSettings
from restnet_runtime.logs import FORMATS
from restnet_runtime.settings import ServeSettings
from restnet_runtime.threads import usable_cores
from restnet_runtime.trial import TrialSettings


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s; others need --allow-remote)")
    parser.add_argument("--port", type=port, default=8080, help="port (default: %(default)s; 0 takes a free one)")
    parser.add_argument("--interval", type=positive(float), default=1.0, metavar="S", help="seconds between looks at the device (1)")
    parser.add_argument("--strict", action="store_true", help="refuse requests (503) when no route fits, instead of serving the cheapest")
    parser.add_argument(
        "--keep-all",
        action="store_true",
        help="keep routes loaded that another one outdoes on this device: at least as accurate, as quick and as small",
    )
    parser.add_argument(
        "--min-accuracy",
        type=accuracy,
        metavar="A",
        help="refuse requests (503) rather than answer below this accuracy, as 0.9 or 90%% (also part of --budget: 30ms,90%%)",
    )
    parser.add_argument("--pin", metavar="ROUTE", help="run every request on this route, whatever it costs; a route of the first bundle")
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="write what the device leaves, and requests to the first bundle, once a second, as a trace for restnet-bench --trace",
    )
    parser.add_argument("--max-body", type=positive(int), default=16_000_000, metavar="BYTES", help="longest request body (16 MB)")
    parser.add_argument(
        "--workers",
        type=positive(int),
        metavar="N",
        help="requests decoded and run at once (default: the usable cores; with batching at least as many as a batch takes)",
    )
    batches = BatchSettings()
    parser.add_argument(
        "--batching",
        choices=MODES,
        default=batches.mode,
        help="run requests that meet on a route together: never, always, or where it was measured to pay (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-wait",
        type=wait,
        default=batches.max_wait_ms,
        metavar="TIME",
        help=f"the longest that a request waits for others while the processor is free (default: {batches.max_wait_ms:g}ms)",
    )
    parser.add_argument("--batch-max", type=positive(int), default=batches.max_batch, metavar="N", help="requests in a batch (%(default)s)")
    parser.add_argument("--max-in-flight", type=positive(int), default=256, metavar="N", help="requests running or waiting (%(default)s)")
    parser.add_argument("--max-pixels", type=positive(int), default=ServeSettings.max_pixels, metavar="N", help="of an image (%(default)s)")
    parser.add_argument(
        "--max-inputs", type=positive(int), default=ServeSettings.max_batch, metavar="N", help="in one request (%(default)s)"
    )
    parser.add_argument(
        "--deadline",
        type=deadline,
        metavar="TIME",
        help="requests that have waited so long are not run (504), as 500ms (default: no such limit)",
    )
    parser.add_argument(
        "--watch",
        type=positive(float),
        nargs="?",
        const=2.0,
        metavar="S",
        help="look at the bundles' paths every S seconds (2), and change over to another bundle there",
    )
    trial = TrialSettings()
    parser.add_argument(
        "--trial-requests",
        type=positive(int),
        default=trial.requests,
        metavar="N",
        help="answers of a new bundle after which the old one is closed (%(default)s)",
    )
    parser.add_argument(
        "--trial-time",
        type=deadline,
        default=trial.seconds * 1e3,
        metavar="TIME",
        help=f"after which it is closed even if fewer came, as 5s (default: {trial.seconds:g}s)",
    )
    add_access_options(parser)
    add_signature_option(parser)
    parser.add_argument(
        "--otel", action="store_true", help="send a span for each request as OTLP (OTEL_EXPORTER_OTLP_ENDPOINT; extra otel)"
    )
    parser.add_argument(
        "--log-format", choices=FORMATS, default=FORMATS[0], help="lines of the log on standard error, json: an object each (%(default)s)"
    )


def read_settings(args: argparse.Namespace, batching: BatchSettings) -> ServeSettings:
    """From the options of `add_serve_options`, and the token from a file or the environment. Raises `AccessError`."""
    return ServeSettings(
        max_body_bytes=args.max_body,
        max_receiving_bytes=max(4 * args.max_body, ServeSettings.max_receiving_bytes),
        strict=args.strict,
        workers=args.workers or max(usable_cores(), 1 if batching.mode == "off" else batching.max_batch),
        max_in_flight=args.max_in_flight,
        max_pixels=args.max_pixels,
        max_batch=args.max_inputs,
        read_only=args.read_only,
        deadline_ms=args.deadline,
        access=read_access(args),
    )
