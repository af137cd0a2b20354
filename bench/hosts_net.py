"""Hosts of one machine: a network namespace each, on a bridge that lies in a namespace of its own.

Whoever is in a host sees its own loopback and an interface with an address of `NETWORK`; nothing of it can be seen from
the machine's own network, so any number of such networks can be there at one time. All hosts share the file system, as
machines share a mounted one. A link is cut and restored at the bridge, so that packets are lost and nobody is told.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self
from uuid import uuid4

from pipelines.machine.resources import MachineError

NETWORK = "10.77.0"
BRIDGE, OUTSIDE = "bridge", f"{NETWORK}.254"  # where packets to other networks go, to be refused there
END_S = 15.0


@dataclass(frozen=True)
class Host:
    """One host.

    Attributes:
        link: of it, at the bridge.
    """

    name: str
    space: str
    switch: str
    link: str
    address: str

    def start(
        self, command: Sequence[str], output: IO[bytes], env: Mapping[str, str], cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program there, in a session of its own."""
        line = ["ip", "netns", "exec", self.space, *command]
        return subprocess.Popen(line, stdout=output, stderr=output, env=dict(env), cwd=cwd, start_new_session=True)

    def cut(self) -> None:
        """Lose all packets from and to the host."""
        _ip("-n", self.switch, "link", "set", self.link, "down")

    def restore(self) -> None:
        """Let packets through again."""
        _ip("-n", self.switch, "link", "set", self.link, "up")

    def processes(self) -> list[int]:
        """Return the ids of all processes there."""
        return [int(line) for line in _ip("netns", "pids", self.space).split()]

    def kill(self) -> None:
        """End all processes there at once and lose what they still send, as when its power goes."""
        self.cut()
        deadline = time.monotonic() + END_S
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.1)


class Network:
    """Makes hosts, and takes them away with all that runs there when the block ends.

    Raises:
        MachineError: this machine allows no network namespaces.
    """

    def __init__(self) -> None:
        self._id = uuid4().hex[:6]
        self._switch = f"vsr1-{self._id}"
        self.hosts: list[Host] = []

    def __enter__(self) -> Self:
        check_namespaces()
        _ip("netns", "add", self._switch)
        inside = ("-n", self._switch)
        _ip(*inside, "link", "add", BRIDGE, "type", "bridge")
        _ip(*inside, "address", "add", f"{OUTSIDE}/24", "dev", BRIDGE)
        _ip(*inside, "link", "set", BRIDGE, "up")
        # A packet to elsewhere is refused at once, where it would be lost: names and addresses are looked up in vain.
        _ip("netns", "exec", self._switch, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        return self

    def __exit__(self, *error: object) -> None:
        for host in self.hosts:
            host.kill()
            _ip("netns", "delete", host.space)
        _ip("netns", "delete", self._switch)

    def add(self, name: str) -> Host:
        """Return a new host."""
        number = len(self.hosts) + 1
        host = Host(name, f"{self._switch}-{number}", self._switch, f"link{number}", f"{NETWORK}.{number}")
        _ip("netns", "add", host.space)
        self.hosts.append(host)
        ends = ("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.space)
        _ip("-n", self._switch, *ends)
        _ip("-n", self._switch, "link", "set", host.link, "master", BRIDGE, "up")
        inside = ("-n", host.space)
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")
        _ip(*inside, "route", "add", "default", "via", OUTSIDE)
        return host


def check_namespaces() -> None:
    """See that this process may make network namespaces with links between them.

    Raises:
        MachineError: it may not, or `ip` is missing.
    """
    if shutil.which("ip") is None:
        raise MachineError("there is no command `ip`", "install iproute2")
    space = f"vsr1-probe-{os.getpid()}"
    links = (f"ip -n {space} link add {link}" for link in ("probe0 type veth peer name probe1", "probe2 type bridge"))
    probe = " && ".join((f"ip netns add {space}", *links, f"ip netns exec {space} true"))
    result = subprocess.run(["sh", "-c", probe], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", space], capture_output=True)
    if result.returncode:
        state = f"no network namespaces can be made here ({result.stderr.strip()})"
        raise MachineError(state, "run as root with CAP_NET_ADMIN and CAP_SYS_ADMIN")


def _ip(*arguments: str) -> str:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"`ip {' '.join(arguments)}` failed: {result.stderr.strip()}")
    return result.stdout
