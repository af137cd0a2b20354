"""Folders that a stopped stage goes on from: `<root>/step-<n>`, whole or not there, with the settings that made it.

A state gets its name when all ranks have written their part of it. The last ones stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vsr1.formats.atomic import part_folder, replacing_folder, write_json
from vsr1.runs.checkpoints import remove_older
from vsr1.runs.folder import differences

SETTINGS = "settings.json"


class StateError(ValueError):
    """A saved state that must not be continued; the message names what differs and what to do."""


class StateFolder:
    """The states of one stage of one run, of which the newest `keep` stay.

    Args:
        free: dotted keys of settings that may be others in the run that goes on.
    """

    def __init__(self, root: Path, keep: int = 2, free: Iterable[str] = ()) -> None:
        self.root, self._keep, self._free = root, keep, tuple(f"{key} was " for key in free)

    def newest(self) -> tuple[int, Path] | None:
        """Return steps taken and folder of the newest state, None when there is none."""
        return max(self._complete(), default=None)

    def check(
        self,
        folder: Path,
        settings: dict[str, Any],
        renamed: Mapping[str, str],
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Compare the settings of a run, a JSON value, with those that made a state.

        Args:
            renamed, defaults: see `differences`.

        Raises:
            StateError: they differ; every difference is in the message.
        """
        saved = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        differing = [
            line for line in differences(saved, settings, renamed, defaults) if not line.startswith(self._free)
        ]
        if differing:
            raise StateError(
                f"{folder} was made with other settings: {'; '.join(differing)}. Restore them to go on, or start anew "
                f"with another run_dir or without {self.root}"
            )

    def begin(self, settings: dict[str, Any]) -> None:
        """Note the settings of a run that has taken its first step and has no state yet."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(self.root / SETTINGS, settings)

    def claim(
        self, settings: dict[str, Any], renamed: Mapping[str, str], defaults: Mapping[str, Any] | None = None
    ) -> tuple[int, Path] | None:
        """Return what `newest` does, once the settings are known to be those of the run that made it, or that began.

        Raises:
            StateError: they differ.
        """
        newest = self.newest()
        folder = newest[1] if newest else self.root
        if (folder / SETTINGS).is_file():
            self.check(folder, settings, renamed, defaults)
        return newest

    def part(self, step: int) -> Path:
        """Return where all ranks write the state after `step` steps, while one of them has `saving` open."""
        return part_folder(self._place(step))

    @contextmanager
    def saving(self, step: int, settings: dict[str, Any]) -> Iterator[Path]:
        """Yield that folder, empty; it is a state when the block ends without an error, and older ones are removed.

        Args:
            settings: a JSON value, for `check`.
        """
        with replacing_folder(self._place(step)) as part:
            yield part
            write_json(part / SETTINGS, settings)
        remove_older(self.root, self._keep)

    def _place(self, step: int) -> Path:
        return self.root / f"step-{step}"

    def _complete(self) -> list[tuple[int, Path]]:
        return [(int(folder.name.removeprefix("step-")), folder) for folder in self.root.glob("step-*")]
