"""Which settings of which runs a reader needs: those that are not the defaults, and those that tell runs apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from vsr1.config import Config

ABSENT = "\u2013"


@dataclass(frozen=True)
class SettingRow:
    """One key, its default (`ABSENT` if this version has no such key) and its value in each run (or `ABSENT`)."""

    key: str
    default: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Tell whether the runs have different values."""
        return len(set(self.values)) > 1


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a configuration of nested mappings as `section.key` to the value as text."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + str(key)] = _text(value)
    return flat


def setting_rows(runs: Sequence[Mapping[str, Any] | None]) -> list[SettingRow]:
    """Return the keys that are not the default in some run, in the order of the schema; None: a run without settings.

    Where the runs came from the same files they differ in little: `SettingRow.differs` tells which rows to look at.
    """
    defaults = _defaults()
    flat = [{} if run is None else flattened(run) for run in runs]
    order = list(dict.fromkeys([*defaults, *(key for run in flat for key in run)]))
    rows = [SettingRow(key, defaults.get(key, ABSENT), tuple(run.get(key, ABSENT) for run in flat)) for key in order]
    return [row for row in rows if set(row.values) - {row.default, ABSENT}]


@cache
def _defaults() -> dict[str, str]:
    return flattened(Config().model_dump(mode="json"))


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value) or "none"
    return "none" if value == {} else str(value).lower() if isinstance(value, bool) else str(value)
