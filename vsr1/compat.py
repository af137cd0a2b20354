"""Let torchvision, vLLM, transformers and DeepSpeed load beside a CPU build of torch.

The registry's torchvision, torchaudio and torchcodec wheels are CUDA builds whose native libraries cannot load next to
`torch==*+cpu`. `hide_broken_packages` makes the two audio/codec packages look absent before transformers asks for them;
`prepare` declares the two torchvision operators that its Python code registers kernels for. Neither does anything on a
CUDA build, or when torchvision's native library loads. `skip_operator_builds` keeps gcc out of a learner's start.

`prepare_environment` lets every Python of its environment do so, when torchvision is imported there first: stock
transformers then reads a saved checkpoint. `make` calls it.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[Any] = []  # keeps the torch library object alive


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing: it runs `prepare` when torchvision is looked for."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        if name == "torchvision":
            prepare()


def hide_broken_packages() -> None:
    """Make torchaudio and torchcodec look absent, and let the first import of torchvision run `prepare`.

    It imports no torch, and runs when `vsr1` is imported.
    """
    if version("torch").endswith("+cpu"):
        for name in ("torchaudio", "torchcodec"):
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]
        sys.meta_path.insert(0, _BeforeTorchvision())


def prepare_environment(folder: Path | None = None) -> None:
    """Write a file that lets every Python import `vsr1` first, into a folder of installed packages (None: our own)."""
    folder = folder or Path(sysconfig.get_path("purelib"))
    line = "import importlib.util; importlib.util.find_spec('vsr1') and __import__('vsr1')\n"
    (folder / "vsr1_compat.pth").write_text(line, encoding="utf-8")


def prepare() -> None:
    """Declare the operators of torchvision, before torchvision, transformers' video processors or vLLM are imported.

    A second call does nothing.
    """
    import torch

    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _BeforeTorchvision)]
    if torch.version.cuda is not None or _declared or "torchvision" in sys.modules or _torchvision_loads():
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in _OPERATORS:
        library.define(schema)
    _declared.append(library)


@contextmanager
def prepared_children() -> Iterator[None]:
    """Let the processes that are spawned inside run `prepare` first.

    A spawned process imports its parent's main module before anything else, and vLLM spawns its engine from inside Ray
    actors; naming this module as the main one gets there before vLLM imports torchvision.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = sys.modules[__name__]
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def skip_operator_builds() -> None:
    """Keep DeepSpeed, before it starts, from compiling an all-reduce which only its inference calls."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def _torchvision_loads() -> bool:
    import torch

    spec = find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in Path(folder).glob("_C*.so"):
            try:
                torch.ops.load_library(library)
            except OSError:
                return False
    return True


if __name__ == "__mp_main__":
    from vsr1 import compat  # this copy of the module has not seen what that one did

    compat.prepare()
