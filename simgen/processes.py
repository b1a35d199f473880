"""How worker processes of a run start.

This module imports nothing heavy, so that a command can have them prepared before it does.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

_PRELOADED = ["simgen.generation.maker"]


def worker_context() -> BaseContext:
    """Return how to start processes.

    On Linux they are copies of a server process that has imported all they need, once for all of
    them; elsewhere each begins anew, since copies of processes are not safe there.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    multiprocessing.set_forkserver_preload(_PRELOADED)
    return multiprocessing.get_context("forkserver")


def prepare_workers() -> None:
    """Let the server process import what workers need while this one goes on; where there is one.

    It ends with this process.
    """
    if worker_context().get_start_method() != "forkserver":
        return
    if threading.current_thread() is not threading.main_thread():
        forkserver.ensure_running()
        return
    # It inherits what is ignored: Ctrl-C is for this process to deal with.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)
