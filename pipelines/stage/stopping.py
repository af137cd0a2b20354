"""How a stage ends at Ctrl-C or SIGTERM: at the first one, within `LIMIT_S`, with a line on what is kept.

The signal raises in the main thread, so what the stage holds open is closed. Whatever is still there after the limit,
and every process of a Ray that this process has started, is ended then.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LIMIT_S = 15.0  # for the stage to close what it holds
END_S = 5.0  # for processes to end by themselves


@contextmanager
def ended_by_signals(say: Callable[[str], None], kept: Callable[[], str]) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the process, with the exit code that a shell gives to it.

    Args:
        say: prints a line.
        kept: says what a stopped stage leaves.
    """
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped:
            return  # it is ending
        stopped.append(number)
        timer = threading.Timer(LIMIT_S, _end, [number])
        timer.daemon = True
        timer.start()
        say(f"{signal.Signals(number).name}: stopping; {kept()}")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != signal.SIGTERM:  # which Ray raises while it starts
            raise
        if not stopped:
            say(f"stopping; {kept()}")
        _end(stopped[0] if stopped else signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int) -> None:
    """End this process and all that it has started; threads that wait for Ray would keep it."""
    children = psutil.Process().children(recursive=True)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for child in children:
            try:
                end(child)
            except psutil.NoSuchProcess:
                continue
        _, children = psutil.wait_procs(children, timeout=END_S)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + number)
