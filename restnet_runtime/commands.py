"""Commands: what all of them do with signals and errors, and the exit statuses that come of them."""

import signal
import sys
from collections.abc import Callable

from restnet_runtime.errors import RestnetError
from restnet_runtime.signals import TerminatedError, terminable


def run_command(command: str, action: Callable[[], int]) -> int:
    """The exit status of `action`, or 2 with one line on standard error, or 130 and 143 for Ctrl-C and SIGTERM."""
    try:
        with terminable():
            return action()
    except (RestnetError, OSError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # as shells have it
    except TerminatedError:
        return 128 + signal.SIGTERM
