"""What this machine has: cores, memory, free disk and ports, with the limits of a container taken into account.

Light to import: neither Ray nor torch.
"""

from __future__ import annotations

import os
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

import psutil

GIB = 1024**3
READERS = 2  # processes that read the clips of one rank in Stage 1
READER_CPUS = 0.1  # of each
_CGROUP = Path("/sys/fs/cgroup")


class MachineError(RuntimeError):
    """Something that this machine must have and does not.

    Attributes:
        state: what there is instead.
        fix: how to have it.
    """

    def __init__(self, state: str, fix: str) -> None:
        super().__init__(state, fix)
        self.state, self.fix = state, fix

    def __str__(self) -> str:
        return f"{self.state}: {self.fix}"


def check_port(port: int = 0) -> None:
    """See that a port of the loopback address can be opened; 0 stands for any free one.

    Raises:
        MachineError: it cannot.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            name, fix = f"port {port}", f"end what listens there: `ss -ltnp 'sport = :{port}'`"
            if port == 0:
                name, fix = "a free port", "allow processes to listen there (sandbox or container policy)"
            raise MachineError(f"{name} of 127.0.0.1 cannot be opened ({error.strerror})", fix) from error


def check_packages(*names: str, fix: str = "run `make clean demo`, or see `vsr1 doctor`") -> None:
    """See that packages are installed, without importing them.

    Raises:
        MachineError: some are not.
    """
    if missing := [name for name in names if find_spec(name) is None]:
        raise MachineError(f"not installed: {', '.join(missing)}", fix)


def ray_address(address: str | None) -> str:
    """Return where Ray runs: `cluster.address`, else what Ray's own variable says, as inside a job, else `local`."""
    return address or os.environ.get("RAY_ADDRESS", "local")


def free_memory_gib(cgroup: Path = _CGROUP) -> float:
    """Return the memory that new processes can take, in GiB: what the kernel or, if less, the control group leaves."""
    available = psutil.virtual_memory().available
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available / GIB


def free_disk_gib(folder: Path) -> float:
    """Return the free space, in GiB, where a folder is or would be made."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free / GIB
