"""Access as the command line and the environment have it."""

import argparse
import os
from pathlib import Path

from restnet_runtime.access import REQUIRE, TOKEN_VARIABLE, Access, Token, read_token
from restnet_runtime.errors import AccessError


def add_access_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-remote", action="store_true", help="let --host be an address that other machines reach")
    parser.add_argument("--read-only", action="store_true", help="take no changes of budget, pin and models over HTTP")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="changes need the token in it, as Authorization: Bearer TOKEN (also from the environment, as RESTNET_TOKEN)",
    )
    parser.add_argument(
        "--require-token",
        choices=REQUIRE,
        default=REQUIRE[0],
        help="what a token is needed for, if there is one; all: everything but health checks and files of pages (%(default)s)",
    )
    parser.add_argument(
        "--trusted-host",
        action="append",
        metavar="NAME",
        help="a name that clients may call this server by, *.NAME for all below it; may be repeated (default: addresses and localhost, and "
        "with --allow-remote any)",
    )
    parser.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="pages of that origin may use this server from a browser, as https://example.org, or * for all; may be repeated",
    )


def read_access(args: argparse.Namespace) -> Access:
    """From the options of `add_access_options`, and the token from a file or RESTNET_TOKEN. Raises `AccessError`."""
    named = os.environ.pop(TOKEN_VARIABLE, "")  # what compiles routes, in a process of its own, has no use for it
    if named and args.token_file is not None:
        raise AccessError(f"both --token-file and {TOKEN_VARIABLE} are given: give one of them")
    token = read_token(args.token_file) if args.token_file is not None else Token(named.strip()) if named else None
    by_default = None if args.allow_remote else ()
    return Access(
        token=token,
        require=args.require_token,
        trusted_hosts=by_default if args.trusted_host is None else tuple(args.trusted_host),
        cors_origins=tuple(args.cors_origin),
    )
