"""Say in one line each why this machine cannot hold the environment, before anything is installed.

Guarantees: standard library only, no syntax newer than Python 3.6, nothing written. Exit code 0 when every check
passes, 2 when any fails; then each failed check is exactly one line on stderr with what there is, what is needed and
what to do.
"""

import importlib.util
import os
import platform
import shutil
import sys
from typing import Dict, List, Optional, Sequence

GIB = 1024**3
NEEDED_DISK_GIB = 8
NEEDED_MEMORY_GIB = 10
# The kernel keeps a part of the memory to itself: a machine sold with 8 GiB reports about 7.7.
MEMORY_TOLERANCE = 0.93
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_python(version: Sequence[int]) -> Optional[str]:
    if tuple(version[:2]) in ((3, 11), (3, 12)):
        return None
    text = ".".join(str(part) for part in version[:3])
    return f"this is Python {text}, but 3.11 or 3.12 is needed: install one, then `make PYTHON=/path/to/python3.11`"


def check_venv(has_ensurepip: bool) -> Optional[str]:
    """See that `python -m venv` works, which some distributions ship apart from Python."""
    if has_ensurepip:
        return None
    return "this Python has no ensurepip module, so `python -m venv` fails: install its venv package (python3.11-venv)"


def check_platform(system: str, machine: str) -> Optional[str]:
    if system == "Linux" and machine in ("x86_64", "aarch64"):
        return None
    here = f"{system or 'an unknown system'} on {machine or 'an unknown processor'}"
    return f"this is {here}, but Linux on x86_64 or aarch64 is needed: use a container or a virtual machine"


def check_disk(free_bytes: int, folder: str) -> Optional[str]:
    if free_bytes >= NEEDED_DISK_GIB * GIB:
        return None
    here = f"{free_bytes / GIB:.1f} GiB free in {folder}, but .venv needs {NEEDED_DISK_GIB} GiB"
    return f"there are {here}: free some space or clone onto another disk"


def memory_bytes(meminfo: str, limits: Sequence[str]) -> int:
    """Return the memory of the machine, or the lowest limit of a control group where that is lower, in bytes.

    Args:
        meminfo: text of /proc/meminfo.
        limits: texts of the control-group limit files that exist; each is a number of bytes or `max`.
    """
    total = 0
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
    return min([total] + [int(text) for text in limits if text.strip().isdigit()])


def check_memory(total_bytes: int) -> Optional[str]:
    if total_bytes >= NEEDED_MEMORY_GIB * GIB * MEMORY_TOLERANCE:
        return None
    here = f"{total_bytes / GIB:.1f} GiB of memory, but {NEEDED_MEMORY_GIB} GiB are needed"
    return f"there are {here}: use a larger machine or raise the container's limit"


def failures(
    version: Sequence[int], has_ensurepip: bool, uname: Dict[str, str], free_bytes: int, folder: str, total_bytes: int
) -> List[str]:
    checks = [
        check_python(version),
        check_venv(has_ensurepip),
        check_platform(uname["system"], uname["machine"]),
        check_disk(free_bytes, folder),
        check_memory(total_bytes),
    ]
    return [line for line in checks if line is not None]


def _text(path: str) -> str:
    if not os.path.exists(path):
        return ""
    with open(path) as file:
        return file.read()


def main() -> int:
    folder = os.getcwd()
    uname = {"system": platform.system(), "machine": platform.machine()}
    lines = failures(
        sys.version_info,
        importlib.util.find_spec("ensurepip") is not None,
        uname,
        shutil.disk_usage(folder).free,
        folder,
        # Without /proc the platform check already fails; do not report the memory as well.
        memory_bytes(_text("/proc/meminfo"), [_text(path) for path in CGROUP_LIMITS])
        if uname["system"] == "Linux"
        else NEEDED_MEMORY_GIB * GIB,
    )
    for line in lines:
        print("preflight: " + line, file=sys.stderr)
    return 2 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
