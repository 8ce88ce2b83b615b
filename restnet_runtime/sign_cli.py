"""`restnet-sign`: keys, signatures on bundles, and a check of them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from restnet_runtime.arguments import add_version
from restnet_runtime.bundle import open_bundle
from restnet_runtime.commands import run_command
from restnet_runtime.errors import KeyFileError
from restnet_runtime.signatures import Keyring
from restnet_runtime.signing import make_keys, signer

DESCRIPTION = """\
Sign a bundle, so that restnet-serve --require-signature takes it and nothing else.

  restnet-sign --new-key release.key                 once: release.key stays with you, release.key.pub goes to the devices
  restnet-sign mine --key release.key                after restnet-export, or at once: restnet-export --sign release.key
  restnet-sign mine --verify release.key.pub         what a device does
"""


def parser() -> argparse.ArgumentParser:
    """The command line of `restnet-sign`."""
    result = argparse.ArgumentParser("restnet-sign", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_version(result)
    result.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="the bundle to sign, or to check")
    do = result.add_mutually_exclusive_group(required=True)
    do.add_argument("--new-key", type=Path, metavar="KEY", help="make a private key, KEY, and its public one, KEY.pub (Ed25519, PEM)")
    do.add_argument("--key", type=Path, metavar="KEY", help="check the bundle, and sign it with this private key")
    do.add_argument("--verify", type=Path, nargs="+", metavar="PUBKEY", help="check the bundle, and that one of these keys has signed it")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, or 2 with one line on standard error."""
    args = parser().parse_args(argv)
    return run_command("restnet-sign", lambda: _sign(args))


def _sign(args: argparse.Namespace) -> int:
    if args.new_key is not None:
        if args.bundle is not None:
            raise KeyFileError(f"--new-key makes keys and signs nothing: leave {args.bundle} out, and sign it with --key then")
        name = make_keys(args.new_key)
        print(f"wrote {args.new_key} (private, keep it) and {args.new_key}.pub (for devices), {name}")
        return 0
    if args.bundle is None:
        raise KeyFileError("which bundle? restnet-sign BUNDLE --key KEY")
    if args.key is not None:
        sign = signer(args.key)
        bundle = open_bundle(args.bundle)
        print(f"signed {bundle.path}, SHA-256 of the manifest {bundle.digest}, by {sign(bundle)}")
        return 0
    keys = Keyring.load(args.verify)
    bundle = open_bundle(args.bundle, keys=keys)
    print(f"{bundle.path} is signed by {bundle.signed_by}: {len(bundle.manifest.files)} files as signed, and no others")
    return 0
