"""Access as the command line and the environment have it."""

import argparse
import os

from restnet_runtime.access import TOKEN_VARIABLE, Access, Token, read_token
from restnet_runtime.errors import AccessError


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
