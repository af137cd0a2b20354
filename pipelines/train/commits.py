"""What a run of Stage 2 leaves to go on from: states of whole steps, and a journal of all that was played since.

    state/grpo/step-N/     learner, `driver.json` (step, stream, versions), `ledger.journal` (open samples): one rename
    ledger/K.journal       every move of a sample since some state, K one further with each state and each run
    ledger/settings.json   of the run that wrote them, until a step is taken: the states have their own then

A state is read with the journals from its own on, so that one which was not finished costs the learner's steps since
the one before it, and no rollout. Journals that no state needs are removed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from vsr1.config import RENAMED
from vsr1.formats.atomic import write_json
from vsr1.ledger import Frame, Past
from vsr1.runs.events import EventLog
from vsr1.runs.folder import TRAINING_LOG
from vsr1.runs.journal import Journal, read_journal, write_journal
from vsr1.runs.mirror import push
from vsr1.runs.state import SETTINGS, StateFolder
from vsr1.runs.trajectories import LATENTS

DRIVER, LEDGER = "driver.json", "ledger.journal"
LOGS = (TRAINING_LOG, str(Path(TRAINING_LOG).with_suffix(LATENTS)))  # that are cut back to a state


@dataclass
class Saved:
    """Where a run goes on from; a new one from the beginning."""

    step: int = 0
    weights: int = 0  # version
    position: int = 0  # of the prompt stream
    elapsed_s: float = 0.0  # that training took so far
    journal: int = 0  # the first one written after it
    logs: dict[str, int] = field(default_factory=dict)  # bytes, by name
    index_versions: list[str] = field(default_factory=list)  # of the corpus, that the last step saw
    success: dict[str, list[float]] = field(default_factory=dict)  # of the prompt stream
    folder: Path | None = None  # of the state
    past: Past = field(default_factory=Past)


class Commits(AbstractContextManager["Commits"]):
    """Writes the journal and the states of one run.

    Args:
        settings: all that decides what a step does, a JSON value.
    """

    def __init__(self, run_dir: Path, states: StateFolder, settings: dict[str, Any], events: EventLog) -> None:
        self._run, self._states, self._settings, self._events = run_dir, states, settings, events
        self._folder = run_dir / "ledger"
        self.step = 0  # of the newest state
        self._journal: Journal | None = None

    def __exit__(self, *error: object) -> None:
        if self._journal is not None:
            self._journal.close()

    def restore(self, defaults: Mapping[str, Any] | None = None) -> Saved:
        """Return where the run goes on from, cut its logs back to there and begin a journal.

        Args:
            defaults: of settings that a state may not know.

        Raises:
            StateError: the folder holds a run of other settings.
        """
        newest = self._states.claim(self._settings, RENAMED, defaults)
        self._forget_another_run(newest is not None)
        saved = Saved()
        if newest:
            self.step, folder = newest
            saved = Saved(**json.loads((folder / DRIVER).read_text(encoding="utf-8")), folder=folder)
        journals = [path for number, path in self._journals() if number >= saved.journal]
        snapshot = read_journal(saved.folder / LEDGER) if saved.folder else iter(())
        saved.past = Past.read(chain(snapshot, *map(read_journal, journals)))
        if newest or journals:
            turns = sum(len(memory.turns) for memory in saved.past.samples.values())
            self._events.write("resumed", step=saved.step, open_prompts=len(saved.past.open), finished_turns=turns)
        for name in LOGS:
            path, size = self._run / name, saved.logs.get(name, 0)
            if path.is_file() and path.stat().st_size > size:
                os.truncate(path, size)
        write_json(self._folder / SETTINGS, self._settings)
        self._begin_journal()
        return saved

    def write(self, frame: Frame) -> None:
        """Write a move of a sample; errors as of `Journal.append`."""
        assert self._journal is not None, "restore() begins the journal"
        self._journal.append(frame)

    def begin(self) -> None:
        """Note that the run has taken a step: its settings are those of the folder from now on."""
        if not self._states.root.exists():
            self._states.begin(self._settings)

    def prepare(self, saved: Saved, frames: list[Frame]) -> Callable[[Callable[[Path], None]], None]:
        """Begin the journal that follows a state; return what writes that state, for any thread.

        Args:
            saved: of the step that is whole now.
            frames: the ledger's snapshot.

        Returns:
            a function that takes the learner's `save_state` and returns when the state is on the disk, and at its URL.
        """
        assert self._journal is not None
        self._journal.sync()
        self._journal.close()
        values = vars(saved) | {"journal": self._begin_journal(), "logs": self._sizes()}
        del values["folder"], values["past"]

        def save(save_learner: Callable[[Path], None]) -> None:
            began = time.monotonic()
            part = self._states.part(saved.step)
            with self._states.saving(saved.step, self._settings):
                save_learner(part)
                write_journal(part / LEDGER, frames)
                write_json(part / DRIVER, values)
            self.step = saved.step
            self._remove_journals()
            push(self._run)
            self._events.write("state saved", step=saved.step, seconds={"save": round(time.monotonic() - began, 3)})

        return save

    def _journals(self) -> list[tuple[int, Path]]:
        return sorted((int(path.stem), path) for path in self._folder.glob("*.journal"))

    def _begin_journal(self) -> int:
        number = max((number for number, _ in self._journals()), default=-1) + 1
        self._journal = Journal(self._folder / f"{number}.journal")
        return number

    def _forget_another_run(self, has_state: bool) -> None:
        """Remove the journals of a run of other settings that has not taken a step."""
        path = self._folder / SETTINGS
        if has_state or (self._states.root / SETTINGS).is_file() or not path.is_file():
            return
        if json.loads(path.read_text(encoding="utf-8")) != self._settings:
            shutil.rmtree(self._folder)

    def _remove_journals(self) -> None:
        """Remove what comes before the oldest state."""
        drivers = self._states.root.glob(f"step-*/{DRIVER}")
        needed = min(json.loads(path.read_text(encoding="utf-8"))["journal"] for path in drivers)
        for number, path in self._journals():
            if number < needed:
                path.unlink()

    def _sizes(self) -> dict[str, int]:
        return {name: (self._run / name).stat().st_size for name in LOGS if (self._run / name).is_file()}
