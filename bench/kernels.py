"""What the GPU does in a call: seconds by kind of kernel, launches, and how long it is idle in between."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

KINDS = {  # the first that matches a kernel's name
    "copies": "memcpy|memset",
    "attention": "flash|fmha|attention",
    "products": "gemm|nvjet|xmma|cutlass|cublas|splitk|convolve|implicit",
    "communication": "nccl",
    "fused": "triton",
    "optimiser": "multi_tensor",
}
LARGEST = 12  # kernels that are named


def kernels(call: Callable[[], Any]) -> dict[str, Any]:
    """Return seconds of a call, of the GPU's work in it by kind, its idle time, and the kernels that take most.

    Raises:
        RuntimeError: the profiler has recorded nothing.
    """
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    seconds, names, spans = defaultdict[str, float](float), defaultdict[str, list[float]](list), []
    for event in profile.profiler.kineto_results.events():
        if event.device_type() != torch.profiler.DeviceType.CUDA:
            continue
        name, taken = event.name(), event.duration_ns() / 1e9
        kind = next((kind for kind, words in KINDS.items() if re.search(words, name.lower())), "others")
        seconds[kind] += taken
        names[name[:90]].append(taken)
        spans.append((event.start_ns(), event.start_ns() + event.duration_ns()))
    if not spans:
        raise RuntimeError("the profiler recorded no kernel on this machine; measure without --profile")
    idle, end = 0, min(spans)[0]
    for start, stop in sorted(spans):
        idle += max(0, start - end)
        end = max(end, stop)
    largest = sorted(names.items(), key=lambda item: -sum(item[1]))[:LARGEST]
    return {
        "wall_s": wall,
        "launches": len(spans),
        "idle_between_s": idle / 1e9,
        "seconds": dict(seconds),
        "largest": {name: [sum(taken), len(taken)] for name, taken in largest},
    }
