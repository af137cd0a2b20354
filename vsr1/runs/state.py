"""Folders that a stopped stage goes on from: `<root>/step-<n>`, whole or not there, with the settings that made it.

A state is written under another name and renamed when all ranks have ended, so a killed run leaves no half state under
a name that is read. The last `KEEP` are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from vsr1.formats.atomic import write_json

KEEP = 2
SETTINGS = "settings.json"


class StateError(ValueError):
    """A saved state that must not be continued; the message names what differs and what to do."""


class StateFolder:
    """The states of one stage of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def newest(self) -> tuple[int, Path] | None:
        """Steps taken and folder of the newest complete state, or None when there is none."""
        return max(self._complete(), default=None)

    def check(self, folder: Path, settings: dict[str, Any]) -> None:
        """Compare the settings of a run, a JSON value, with those that made a state.

        Raises:
            StateError: they differ; every difference is in the message.
        """
        saved = _flat(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
        wanted = _flat(settings)
        differing = [
            f"{key} was {saved.get(key, 'not set')!r}, is {wanted.get(key, 'not set')!r}"
            for key in sorted(saved.keys() | wanted.keys())
            if saved.get(key, "not set") != wanted.get(key, "not set")
        ]
        if differing:
            raise StateError(
                f"{folder} was made with other settings: {'; '.join(differing)}. Restore them to go on, or start anew "
                f"with another run_dir or without {self.root}"
            )

    def part(self, step: int) -> Path:
        """Where the state after `step` steps is written, between `begin` and `publish`."""
        return self.root / f".part-step-{step}"

    def begin(self, step: int) -> None:
        """Make that folder, empty."""
        part = self.part(step)
        if part.exists():  # of a run that was killed
            shutil.rmtree(part)
        part.mkdir(parents=True)

    def publish(self, step: int, settings: dict[str, Any]) -> None:
        """Name that folder a complete state, and remove all but the last `KEEP`."""
        part = self.part(step)
        write_json(part / SETTINGS, settings)
        target = self.root / f"step-{step}"
        if target.exists():
            shutil.rmtree(target)
        os.rename(part, target)
        for _, folder in sorted(self._complete())[:-KEEP]:
            shutil.rmtree(folder)

    def _complete(self) -> list[tuple[int, Path]]:
        return [(int(folder.name.removeprefix("step-")), folder) for folder in self.root.glob("step-*")]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Leaves of a JSON value by dotted key."""
    if not isinstance(value, dict):
        return {key: value}
    return {k: leaf for name, part in value.items() for k, leaf in _flat(part, f"{key}.{name}".lstrip(".")).items()}
