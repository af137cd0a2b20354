"""Logs of a run: `<run_dir>/logs/<role>-<n>.log` of each actor, and `<run_dir>/logs/driver.log` of the driver.

An actor turns the two output streams of its process into this file before it does anything else. So the file holds its
Python logging, what it and its libraries print, the output of processes that it starts (vLLM's engine) and the last
words of native code, and needs no collecting after a crash; an actor that is started again writes on. Ray's own files
of the process hold only what came before. All nodes must see `run_dir`, as for checkpoints; a node that does not keeps
the file on its own disk.

The driver keeps its two streams, for its own lines and errors. To its log go the Python logging and warnings of its
libraries, and what native code writes to the error stream by itself.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
DRIVER_LOG = "driver.log"


def log_to(path: Path | None) -> None:
    """Append all output of this process, an actor's, to a file from now on; None leaves it where it goes."""
    if path is None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    file = _opened(path)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout = open(1, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115  # until the end
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    logging.basicConfig(level=logging.INFO, format=FORMAT, stream=sys.stderr, force=True)
    logging.getLogger(__name__).info("process %d on %s begins", os.getpid(), socket.gethostname())


def log_libraries_to(path: Path) -> None:
    """Append what the libraries of this process, a driver, have to say to a file from now on.

    `sys.stdout` and `sys.stderr` stay as they are. Descriptor 2, to which native code writes, becomes the file; what
    ends the process from there is still shown with its traceback.
    """
    sys.stderr.flush()
    sys.stderr = open(os.dup(2), "w", buffering=1, errors="backslashreplace")  # noqa: SIM115  # until the end
    faulthandler.enable(sys.stderr)
    file = _opened(path)
    os.dup2(file, 2)
    os.close(file)
    native = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    logging.basicConfig(level=logging.INFO, format=FORMAT, stream=native, force=True)
    logging.captureWarnings(True)
    logging.getLogger(__name__).info("process %d on %s begins", os.getpid(), socket.gethostname())


def _opened(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
