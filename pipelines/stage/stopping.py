"""How a stage ends at Ctrl-C or SIGTERM: at the first one, within a limit, with a line on what is kept.

The signal raises in the main thread, so what the stage holds open is closed. Whatever is still there after the limit,
and every process of a Ray that this process has started, is ended then.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LIMIT_S = 15.0
END_S = 5.0  # for processes to end by themselves


@contextmanager
def ended_by_signals(say: Callable[[str], None], kept: Callable[[], str], limit_s: float = LIMIT_S) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the process, with the exit code that a shell gives to it.

    Args:
        say: prints a line.
        kept: says what a stopped stage leaves.
        limit_s: for the stage to save and close what it holds.
    """
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped:
            return  # it is ending
        stopped.append(number)
        timer = threading.Timer(limit_s, _end, [number])
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
    """End this process and all that it has started; threads that wait for Ray would keep it.

    Ray ends a driver whose raylet is gone, with an exit code of its own: the raylet stands still, then goes last.
    """
    children = psutil.Process().children(recursive=True)
    core = [child for child in children if _is(child, "raylet", "gcs_server")]
    _send([child for child in core if _is(child, "raylet")], signal.SIGSTOP)
    others = [child for child in children if child not in core]
    for end in (signal.SIGTERM, signal.SIGKILL):
        _send(others, end)
        deadline = time.monotonic() + END_S
        while (others := [child for child in others if _lives(child)]) and time.monotonic() < deadline:
            time.sleep(0.05)
    sys.stdout.flush()
    sys.stderr.flush()
    _send(core, signal.SIGKILL)
    os._exit(128 + number)


def _send(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _is(process: psutil.Process, *names: str) -> bool:
    try:
        return process.name() in names
    except psutil.NoSuchProcess:
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # whose parent stands still
    except psutil.NoSuchProcess:
        return False
