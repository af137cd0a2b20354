"""Whether this machine can run a configuration: one line for each thing that must work, and the fix where it does not.

A probe looks at one part of the machine and returns what there is, or raises a `MachineError` for what it expects to go
wrong (a missing package, a full disk, a process that fails); anything else propagates. Heavy parts run as
`pipelines.machine.selftest` in their own process with a time limit. Nothing is written outside temporary files, except
what Ray (its token) and DeepSpeed (a compiled operator) keep in the home folder after their first start.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import av
import faiss
import numpy as np
import torch
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipelines.machine.nodes import capacity
from pipelines.machine.placement import placement_plan
from pipelines.machine.resources import MachineError, check_port, free_disk_gib
from vsr1.config import Config
from vsr1.toy.render import encode_mp4
from vsr1.toy.world import Event, Film
from vsr1.versions import SUPPORTED, installed_version
from vsr1.video.decode import sample_video

NEEDED_DISK_GIB = 2.0
SERVE_PORT = 8000
SELFTEST_LIMIT_S = 180.0
REINSTALL = "install what pyproject.toml names: `make clean test`, or `pip install -e '.[cpu]'` ([gpu] with a GPU)"
SELFTEST_FIXES = {"deepspeed": REINSTALL, "ray": "see docs/cluster.md on tokens and ports", "vllm": REINSTALL}

Probe = Callable[[Config], str]


def need(ok: bool, state: str, fix: str) -> str:
    """Return the state, or raise the error that says how to mend it."""
    if not ok:
        raise MachineError(state, fix)
    return state


def python_version(config: Config) -> str:
    return need(sys.version_info[:2] in ((3, 11), (3, 12)), platform.python_version(), "run under Python 3.11 or 3.12")


def package(part: str, config: Config, version_of: Callable[[str], str | None] = installed_version) -> str:
    version, versions = version_of(part), SUPPORTED[part][1]
    is_supported = version is not None and SpecifierSet(versions).contains(version, prereleases=True)
    return need(is_supported, version or "not installed", f"{part} {versions} is supported; {REINSTALL}")


def cpu_and_memory(config: Config) -> str:
    """Compare what the largest stage needs with the machine, or with the cluster that the configuration names."""
    there = capacity(config)
    shortages = placement_plan(config, "demo", there).shortages()
    state = f"{there.name}: {there.total('cpus'):g} CPUs, {there.total('memory_gib'):.1f} GiB for actors"
    return need(not shortages, state, "; ".join(shortages))


def shared_memory(config: Config) -> str:
    """Ray keeps its objects in /dev/shm and, without room there, silently in slow files under /tmp."""
    free_gib, wanted = free_disk_gib(Path("/dev/shm")), config.cluster.object_store_gib
    fix = f"lower cluster.object_store_gib={wanted:g} or give the container a larger --shm-size"
    return need(free_gib >= wanted, f"{free_gib:.1f} GiB free in /dev/shm", fix)


def gpu(config: Config) -> str:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    state = ", ".join(names) or f"none that torch {torch.__version__} sees"
    fix = "set model.device=cpu, or install the [gpu] extra and an NVIDIA driver (`nvidia-smi` must work)"
    return need(bool(names) or config.model.device == "cpu", state, fix)


def disk(config: Config) -> str:
    free_gib = free_disk_gib(config.data.root)
    fix = f"free {NEEDED_DISK_GIB:g} GiB there or set data.root to a folder on another disk"
    return need(free_gib >= NEEDED_DISK_GIB, f"{free_gib:.1f} GiB free for {config.data.root}", fix)


def port(number: int, config: Config) -> str:
    """See that a port of the loopback address can be opened."""
    check_port(number)
    return "free"


def faiss_search(config: Config) -> str:
    vectors, index = np.eye(4, dtype=np.float32), faiss.IndexFlatIP(4)
    index.add(vectors)
    _, ids = index.search(vectors[2:3], 1)
    return need(ids[0, 0] == 2, f"vector {ids[0, 0]} of 4 is nearest to vector 2", REINSTALL)


def video_codec(config: Config) -> str:
    """Encode a film as H.264 in an MP4 file, as the toy corpus is, and decode it as every corpus is."""
    film = Film("film", 4, (Event(0, 4, "red", "circle", "left"),), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        try:
            encode_mp4(film, Path(folder) / "film.mp4")
            frames = len(sample_video(Path(folder) / "film.mp4", fps=1.0, max_frames=4, max_pixels=4096).frames)
        except (av.FFmpegError, ValueError) as error:
            raise MachineError(_last_line(str(error)), f"PyAV has no H.264: {REINSTALL}") from error
    return need(frames == 4, f"{frames} of 4 frames came back", REINSTALL)


def selftest(name: str, config: Config) -> str:
    """Run a part of `pipelines.machine.selftest` in a process of its own."""
    command = f"python -m pipelines.machine.selftest {name}"
    return run_command([sys.executable, *command.split()[1:]], f"run `{command}`; {SELFTEST_FIXES[name]}")


def run_command(command: Sequence[str], fix: str, limit_s: float = SELFTEST_LIMIT_S) -> str:
    """Run a command with a time limit and return its last line.

    The command gets a process group of its own, which is killed when it runs past the limit.

    Raises:
        MachineError: it ended with another code than 0, or not in time.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise MachineError(f"no answer within {limit_s:g} s", fix) from error
    if process.returncode != 0:
        raise MachineError(_last_line(errors) or f"ended with code {process.returncode}", fix)
    return _last_line(output)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


# By the name that the report gives them, the quick ones first: the last three take up to a minute together.
PROBES: dict[str, Probe] = {
    "Python": python_version,
    **{part: partial(package, part) for part in SUPPORTED},
    "CPU and memory": cpu_and_memory,
    "shared memory": shared_memory,
    "GPU": gpu,
    "disk": disk,
    "a free port": partial(port, 0),
    f"port {SERVE_PORT}": partial(port, SERVE_PORT),
    "FAISS search": faiss_search,
    "H.264": video_codec,
    "DeepSpeed step": partial(selftest, "deepspeed"),
    "Ray start": partial(selftest, "ray"),
    "vLLM import": partial(selftest, "vllm"),
}


def doctor(config: Config, console: Console, probes: Mapping[str, Probe] = PROBES) -> int:
    """Run the probes in order, print one line for each and return the exit code: 1 when a probe fails, else 0."""
    table = Table(*(Column(name, overflow="fold") for name in ("check", "", "state", "fix")), title="vsr1 doctor")
    code = 0
    for name, probe in probes.items():
        try:
            table.add_row(name, Text("ok", "green"), probe(config), "")
        except MachineError as error:
            table.add_row(name, Text("fails", "bold red"), error.state, error.fix)
            code = 1
    console.print(table)
    return code
