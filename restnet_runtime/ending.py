"""Ending: a program may end while threads of ours are at work. `atexit` tells them to stop; until then they go on, as far as they can."""

import threading


def started(thread: threading.Thread) -> bool:
    """Start a thread. Returns False where the program is ending: from Python 3.12 on no thread can be started any more then.

    Raises `RuntimeError` where the system has no room for one.
    """
    try:
        thread.start()
    except RuntimeError as error:
        if "interpreter shutdown" in str(error):
            return False
        raise
    return True
