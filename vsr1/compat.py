"""Lets torchvision, vLLM and transformers load beside a CPU build of torch.

The registry's torchvision, torchaudio and torchcodec wheels are CUDA builds whose native libraries cannot load next to
`torch==*+cpu`. `prepare` hides the two audio/codec packages and declares the two torchvision operators that its Python
code registers kernels for. It does nothing on a CUDA build, or when torchvision's native library loads.
"""

from __future__ import annotations

import importlib.util
import sys

import torch

_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None


def prepare() -> None:
    """Call before anything imports torchvision, transformers' video processors or vLLM. Safe to call twice."""
    global _library
    if torch.version.cuda is not None or _library is not None or "torchvision" in sys.modules:
        return
    for name in ("torchaudio", "torchcodec"):
        if name not in sys.modules and importlib.util.find_spec(name) is not None:
            sys.modules[name] = None  # type: ignore[assignment]
    if _torchvision_loads():
        return
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _OPERATORS.values():
        _library.define(schema)


def _torchvision_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.submodule_search_locations is None:
        return True
    from pathlib import Path

    for library in Path(spec.submodule_search_locations[0]).glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:
            return False
    return True
