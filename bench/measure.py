"""The frame of every measurement: seconds taken in turn, medians, ratios within a round, the machine, a line of JSON.

Ways that are compared run one after the other in every round, so that all of them meet the same machine; a ratio is
taken within a round before the median over rounds. A measurement returns plain values at full precision: `line` puts
its name and the machine before them and rounds.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from pipelines.machine.resources import GIB
from vsr1.settings.parts import cores

DIGITS = 4  # significant ones of a number in a line


class Rounds:
    """Seconds of several ways to do something, a value a round for each."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def time(self, way: str) -> Iterator[None]:
        """Add the seconds of the block, with the work that it gave to a GPU; a block that fails adds nothing."""
        began = time.perf_counter()
        yield
        if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds[way].append(time.perf_counter() - began)

    def median(self, way: str) -> float:
        """Return the median of a way's seconds."""
        return median(self.seconds[way])

    def ratio(self, way: str, base: str) -> float:
        """Return the median over the rounds of a way's seconds divided by those of `base`."""
        return median(a / b for a, b in zip(self.seconds[way], self.seconds[base], strict=True))

    def added(self, way: str, base: str) -> float:
        """Return the median over the rounds of the seconds by which a way takes longer than `base`."""
        return median(a - b for a, b in zip(self.seconds[way], self.seconds[base], strict=True))


def in_turn(ways: Mapping[str, Callable[[], Any]], rounds: int) -> Rounds:
    """Call every way once a round and return the seconds; a round that warms up comes first and does not count."""
    taken = Rounds()
    for call in ways.values():
        call()
    for _ in range(rounds):
        for way, call in ways.items():
            with taken.time(way):
                call()
    return taken


def machine() -> dict[str, Any]:
    """Return what names this machine: processor, cores that this process may use, memory, GPUs, torch and vLLM."""
    import torch

    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    engines = metadata.packages_distributions().get("vllm", [])
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": cores(),
        "memory_gib": psutil.virtual_memory().total / GIB,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "torch": torch.__version__,
        "vllm": metadata.version(engines[0]) if engines else None,
    }


def line(name: str, figures: Mapping[str, Any]) -> str:
    """Return one line of JSON: the measurement's name, the machine and the figures, numbers to `DIGITS` digits.

    Raises:
        ValueError: a figure is infinite or not a number.
    """
    return json.dumps(_rounded({"bench": name, **machine(), **figures}), allow_nan=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, (list, tuple)) else value


def device() -> str:
    """Return where models of a measurement run: on a GPU where there is one."""
    import torch  # here, because most measurements do without

    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_name() -> str:
    """Return the dtype of these models."""
    return "bfloat16" if device() == "cuda" else "float32"
