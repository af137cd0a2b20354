"""What went wrong, in one line: of faults that are known, wherever in a chain of processes they happened.

Known are the errors of our own modules, what our own code raises with a message, and the faults of `KNOWN` that a
machine or a library has. Anything else is a fault of this program, and its traceback is worth reading.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import ray

OWN_PACKAGES = ("vsr1", "actors", "pipelines", "bench")  # whose errors name the thing, the place and the fix
KNOWN = (  # pattern in the type and the message of an error, and what it means
    (
        r"No space left on device|os error 28|Errno 28|Disk quota exceeded|PytorchStreamWriter|OutOfDiskError",
        "the disk is full: free some space where run_dir, data.root or the temporary folder lies",
    ),
    (
        r"CUDA out of memory|CUDA error: out of memory",
        "the memory of a GPU is full: lower learner.micro_tokens of the stage, rollout.engine.max_num_seqs or "
        "rollout.engine.gpu_memory_utilization",
    ),
    (
        r"running low on memory|std::bad_alloc|Cannot allocate memory|MemoryError|can't allocate memory",
        "the memory of a machine is full: lower the number of ranks, workers or learner.micro_tokens of the stage",
    ),
    (
        r"Engine core initialization failed",
        "an engine of vLLM did not start; its log in run_dir/logs has the root cause",
    ),
    (
        r"ObjectStoreFullError|object store is full|Bus error",
        "Ray's object store is full: raise cluster.object_store_gib, or give the container a larger /dev/shm",
    ),
)
ADVICE = "For further information visit"  # last line of a pydantic error, as of vLLM's configuration
_FRAME = re.compile(r'File "(.+?)", line \d+, in .+\n\s+(.*)')
_OWN_ERROR = re.compile(rf"^(?:ray\S+: )?(?:{'|'.join(OWN_PACKAGES)})\.[\w.]+: (.+)$", re.MULTILINE)


def reason(error: BaseException) -> str | None:
    """Return what an error means in one line, or in those that our own code wrote; None if it is not known."""
    cause = getattr(error, "cause", error)  # what failed inside a Ray actor
    if type(cause).__module__.split(".")[0] in OWN_PACKAGES:
        ours, start, rest = str(cause).partition("The actor ")  # Ray's many lines on a death, told by our own error
        return ours + dead_actor(start + rest) if "Worker exit detail" in rest else str(cause)
    text = f"{type(cause).__name__}: {cause}"
    for pattern, meaning in KNOWN:
        if re.search(pattern, text):
            return f"{meaning} ({last_line(text)})"
    if isinstance(cause, ray.exceptions.RayActorError):
        return dead_actor(str(cause))
    if isinstance(cause, OSError) and (cause.filename or type(cause) is FileNotFoundError):
        return str(cause) if cause.strerror is None else f"{cause.filename}: {cause.strerror}"
    if isinstance(cause, (ValueError, RuntimeError)) and _raised_by_us(error):
        return str(cause)
    return None


def dead_actor(text: str) -> str:
    """Return which actor died and how, of what Ray says about it."""
    parts = {
        name: match[1] for name in ("class_name", "pid", "name") if (match := re.search(rf"\b{name}: (\S+)", text))
    }
    if start := re.search(r"ray::(\w+)\.__init__\(\)\S* \(pid=(\d+)", text):  # it failed there
        parts |= {"class_name": start[1], "pid": start[2]}
    role = parts.get("name") or parts.get("class_name", "an actor").removesuffix("Actor")
    detail = re.search(r"Worker exit detail: (.+?)(?:\. |\n|$)", text)
    how = detail[1] if detail else last_line(text)
    return f"{role} died (process {parts.get('pid', 'unknown')}: {how}); its log is in run_dir/logs"


def last_line(text: str) -> str:
    """Return the last line of a traceback or message that says something: an error of ours before that of a library."""
    if own := _OWN_ERROR.findall(text):
        return str(own[-1]).strip()
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith(ADVICE)]
    return (lines or [text])[-1]


def _raised_by_us(error: BaseException) -> bool:
    """Tell whether the last frame is a `raise` in our own code, here or in the actor where it happened."""
    text = getattr(error, "traceback_str", None) or "".join(traceback.format_tb(error.__traceback__))
    frames = _FRAME.findall(text)
    if not frames:
        return False
    file, line = frames[-1]
    return line.startswith("raise ") and any(package in Path(file).parts for package in OWN_PACKAGES)
