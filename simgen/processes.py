"""How worker processes of a run start.

This module imports nothing heavy, so that a command can have them prepared before it does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

_PRELOADED = ["simgen.generation.maker"]


def worker_context() -> BaseContext:
    """Return how to start processes.

    On Linux they are copies of a server process that imports all they need, once for all of them.
    It begins to do so now, and ends with this process. Elsewhere each worker begins anew, since
    copies of processes are not safe there.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    multiprocessing.set_forkserver_preload(_PRELOADED)
    with _inherited():
        forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def end_with_parent() -> None:
    """Let this worker process end when the one that it works for is gone, however that ended.

    Whoever waits for work never hears that there will be none if nobody was left to say so.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def _inherited() -> Iterator[None]:
    """Environment and signals as the server is to inherit them."""
    # A process with threads must not be copied, and numpy begins some as it is imported.
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    # Ctrl-C is for this process to deal with. Only its main thread can say so.
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
