"""What a learner's step took: seconds by part, memory, and the share of the device that the model's work is."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

GIB = 2**30
# Dense bfloat16, by a part of the device's name; from the vendor's data sheets.
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "GH200": 989.0, "B200": 2250.0, "A100": 312.0, "L40S": 362.0, "A10G": 70.0}


@dataclass
class Work:
    """Seconds by part and operations of one rank in one step."""

    seconds: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0  # of the model, done
    unshared_flops: float = 0.0  # had every reply run its prompt and its clips anew
    tokens: int = 0  # of all prompts and replies, each prompt as often as it has replies
    clips: int = 0  # encoded
    peak_gib: float = 0.0  # of memory


class Meter:
    """Takes the time of the parts of a step: on a GPU that of the work which they gave to it, without a wait."""

    def __init__(self) -> None:
        self.work = Work()
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []  # of each part its begin and its end

    def begin(self) -> None:
        """Begin a step."""
        self.work = Work()
        self._marks.clear()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a part."""
        if torch.cuda.is_available():
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._marks.append((name, first, last))
            return
        began = time.perf_counter()
        yield
        self._add(name, time.perf_counter() - began)

    def end(self) -> Work:
        """Return what the step took, once the GPU is done with it."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            for name, first, last in self._marks:
                self._add(name, first.elapsed_time(last) / 1000)
            self.work.peak_gib = torch.cuda.max_memory_allocated() / GIB
        else:  # of the process so far, in KiB
            self.work.peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
        return self.work

    def _add(self, name: str, seconds: float) -> None:
        self.work.seconds[name] = self.work.seconds.get(name, 0.0) + seconds


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the operations a second that a device has for matrix products, None where its data sheet is not known."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((tera * 1e12 for part, tera in PEAK_TFLOPS.items() if part in name), None)


def work_numbers(ranks: list[Work], peak: float | None) -> dict[str, float]:
    """Return what to log of a step: the slowest rank's seconds, the work of all.

    Args:
        peak: of one device, operations a second; None: `mfu` and `mfu_effective` are left out.
    """
    parts = sorted({name for work in ranks for name in work.seconds})
    seconds = max(sum(work.seconds.values()) for work in ranks)
    done, unshared = sum(work.flops for work in ranks), sum(work.unshared_flops for work in ranks)
    numbers = {f"seconds/learn/{name}": max(work.seconds.get(name, 0.0) for work in ranks) for name in parts}
    numbers |= {
        "learner/tflops": done / seconds / 1e12,
        "learner/tokens_per_second": sum(work.tokens for work in ranks) / seconds,
        "learner/clips_encoded": float(sum(work.clips for work in ranks)),
        "learner/peak_gib": max(work.peak_gib for work in ranks),
    }
    if peak:
        whole = seconds * peak * len(ranks)
        numbers |= {"mfu": done / whole, "mfu_effective": unshared / whole}
    return numbers
