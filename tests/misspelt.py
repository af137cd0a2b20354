"""Every key of a document misspelt once, for tests that no field could have another name unnoticed."""

from collections.abc import Iterator
from typing import Any

import yaml


def misspelt(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each key by its path, and the value with that key misspelt."""
    if isinstance(value, list):
        for i, part in enumerate(value):
            for path, changed in misspelt(part):
                yield f"[{i}]{path}", [*value[:i], changed, *value[i + 1 :]]
    elif isinstance(value, dict):
        for key, part in value.items():
            yield f".{key}", {name if name != key else f"{key}z": one for name, one in value.items()}
            inside = yaml.safe_load(part) if key in ("serveConfigV2", "runtimeEnvYAML") else part
            for path, changed in misspelt(inside):
                whole = changed if inside is part else yaml.safe_dump(changed)
                yield f".{key}{path}", value | {key: whole}
