"""Each actor's own log: `<run_dir>/logs/<role>-<n>.log`.

An actor turns the two output streams of its process into this file before it does anything else. So the file holds its
Python logging, what it and its libraries print, the output of processes that it starts (vLLM's engine) and the last
words of native code, and needs no collecting after a crash; an actor that is started again writes on. Ray's own files
of the process hold only what came before. All nodes must see `run_dir`, as for checkpoints; a node that does not keeps
the file on its own disk.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from pathlib import Path


def log_to(path: Path | None) -> None:
    """Append all output of this process to a file from now on; None leaves it where it goes."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout = open(1, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115  # until the end
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger(__name__).info("process %d on %s begins", os.getpid(), socket.gethostname())
