"""What this machine has: cores, memory, free disk and ports, with the limits of a container taken into account.

Reads /proc and /sys only; every function takes the text or the folder it reads as an argument's default, so a test can
give its own.
"""

from __future__ import annotations

import os
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

GIB = 1024**3
_PROC = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


class MachineError(RuntimeError):
    """The machine cannot give what every job needs; the message says what and how to have it."""


def check_port(port: int = 0) -> None:
    """See that a port of the loopback address can be opened: this one, or with 0 any.

    Raises:
        MachineError: it cannot.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            what, fix = (
                (f"port {port}", f"end what listens there: `ss -ltnp 'sport = :{port}'`")
                if port
                else ("a free port", "allow processes to listen there (sandbox or container policy)")
            )
            raise MachineError(f"{what} of 127.0.0.1 cannot be opened ({error.strerror}): {fix}") from error


def keep_ray_local(address: str | None) -> None:
    """Let a Ray that this process starts listen on the loopback address only. To be called before Ray is imported.

    Args:
        address: `cluster.address`; a Ray that is joined listens where it was told to.
    """
    if (address or os.environ.get("RAY_ADDRESS", "local")) == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's own: may other machines' nodes join?


def check_packages(*names: str, fix: str = "run `make clean demo`, or see `vsr1 doctor`") -> None:
    """See that packages are installed, without importing them.

    Raises:
        MachineError: some are not.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise MachineError(f"not installed: {', '.join(missing)}; {fix}")


def cores() -> int:
    """Cores this process may use; fewer than the machine's when it is pinned."""
    return len(os.sched_getaffinity(0))


def available_memory_gib(meminfo: Path = _PROC, cgroup: Path = _CGROUP) -> float:
    """Memory that new processes can take, in GiB: MemAvailable, or what the control group leaves when that is less.

    Raises:
        OSError: there is no /proc/meminfo; only Linux is supported.
    """
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available / GIB


def free_disk_gib(folder: Path) -> float:
    """Free space, in GiB, where `folder` is or would be made."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free / GIB
