"""`restnet-update`: install a bundle where restnet-serve reads it, go back to the one before, or list what is there."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from restnet_runtime.arguments import add_signature_option, add_version, read_keys
from restnet_runtime.commands import run_command
from restnet_runtime.errors import UpdateError
from restnet_runtime.install import KEPT, Installed, install, list_versions, roll_back

DESCRIPTION = """\
Put a bundle in place of another, so that a crash or a loss of power at any point leaves one of the two.

  restnet-update /var/lib/restnet/mine new-bundle    copy, check, sync, then let /var/lib/restnet/mine lead to it
  restnet-update /var/lib/restnet/mine --rollback    back to the one before
  restnet-serve /var/lib/restnet/mine --watch        serves it, and changes over by itself
"""


def parser() -> argparse.ArgumentParser:
    """The command line of `restnet-update`."""
    result = argparse.ArgumentParser("restnet-update", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_version(result)
    result.add_argument("dest", type=Path, metavar="DEST", help="what restnet-serve is given: a link to a bundle in DEST.versions")
    result.add_argument("new", nargs="?", type=Path, metavar="NEW", help="the bundle to install")
    result.add_argument("--rollback", action="store_true", help="instead: go back to the version before")
    result.add_argument(
        "--list", action="store_true", help="instead: list the versions that are there, unread but for the manifest and graphs"
    )
    result.add_argument(
        "--keep", type=int, default=KEPT, metavar="N", help="versions that stay beside the new one, the one before among them (%(default)s)"
    )
    result.add_argument(
        "--other-interface", action="store_true", help="take a bundle of another input shape or number of classes than what is there"
    )
    add_signature_option(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, or 2 with one line on standard error."""
    args = parser().parse_args(argv)
    return run_command("restnet-update", lambda: _update(args))


def _update(args: argparse.Namespace) -> int:
    if (args.new is not None) + args.rollback + args.list != 1:
        raise UpdateError("give one of these: a bundle to install, --rollback, or --list")
    if args.keep < 1:
        raise UpdateError(f"--keep {args.keep}: the version before is always kept: give 1 or more")
    if args.list:
        for version in list_versions(args.dest):
            marks = [mark for mark, is_so in (("served", version.current), ("previous", version.previous)) if is_so]
            print("  ".join([version.path.name, version.name, *marks]))
        return 0
    keys = read_keys(args)
    if args.rollback:
        return _tell(args.dest, roll_back(args.dest, keys=keys))
    return _tell(args.dest, install(args.dest, args.new, keys=keys, other_interface=args.other_interface, keep=args.keep))


def _tell(dest: Path, done: Installed) -> int:
    before = "" if done.before is None or not done.changed else f", before {done.before.name}"
    print(f"{dest} {'leads to' if done.changed else 'led already to'} {done.bundle.path} ({done.bundle.manifest.name}){before}")
    return 0
