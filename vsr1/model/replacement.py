"""Whether the weights of one checkpoint can take the place of another's in an engine that runs.

The engine keeps its shapes, tokenizer and processor; only values of tensors change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vsr1.model.checkpoint import CheckpointError, policy_sizes, weight_files, weight_shapes

_FREE = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}  # keys of config.json


def replacing_files(folder: Path, running: Path) -> list[Path]:
    """Weight files of `folder`, which can replace those of the policy checkpoint `running`.

    Raises:
        CheckpointError: `folder` is no policy with safetensors, or differs from `running` in more than its weights;
            the message lists every difference.
    """
    policy_sizes(folder)
    new, old = weight_shapes(folder), weight_shapes(running, allow_bin=True)
    faults = [
        f"{name}: {_shape(new.get(name))} instead of {_shape(old.get(name))}"
        for name in sorted(new.keys() | old.keys())
        if new.get(name) != old.get(name)
    ]
    names = {"config.json", "tokenizer.json"}
    names |= {path.name for one in (folder, running) for path in one.glob("*processor*.json")}
    faults += [f"{name} differs" for name in sorted(names) if _settings(folder / name) != _settings(running / name)]
    if faults:
        raise CheckpointError(
            f"the weights of {folder} cannot replace those of {running}, serve it as a model of its own: "
            + "; ".join(faults)
        )
    return weight_files(folder)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(list(shape))


def _settings(path: Path) -> Any:
    return _without_free(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _without_free(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_free(item) for key, item in value.items() if key not in _FREE}
    return value
