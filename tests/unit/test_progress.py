"""A table of the roles on a terminal, else one plain line a step and nothing more."""

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.stage.progress import LiveTable, Load, PlainLines, Progress, shown_progress
from pipelines.train.step_display import LAST_SCALAR, StepDisplay

ACTORS = {"rollout": 2, "retrieval": 1, "rewards": 1, "learner": 2}


def play(progress: Progress) -> None:
    """Two of three steps, and the beginning of the third."""
    progress.begin("grpo", 3, ACTORS)
    for step in (1, 2):
        progress.now("rollouts 3 of 8", rollout=Load(2, 5), retrieval=Load(1))
        progress.now("learning", learner=Load(2))
        progress.step(step, {"reward": 0.25 * step, "R@1 after": 0.5}, {"rollout": 3.21, "learn": 1.0})
    progress.now("rollouts 3 of 8", rollout=Load(1, 5), retrieval=Load(1))


def rendered(table: LiveTable) -> str:
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(table.view())
    return console.export_text()


def rows(text: str) -> dict[str, list[str]]:
    """Cells of the roles' rows."""
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in text.splitlines()]
    return {row[0]: row[1:] for row in cells if row[0] in ACTORS}


def test_without_a_terminal_there_is_one_line_a_step() -> None:
    file = io.StringIO()
    with shown_progress(Console(file=file, width=40)) as progress:
        assert isinstance(progress, PlainLines)
        play(progress)
    assert file.getvalue().splitlines() == [
        "grpo step 1/3: reward 0.250, R@1 after 0.500, rollout 3.2 s, learn 1.0 s",
        "grpo step 2/3: reward 0.500, R@1 after 0.500, rollout 3.2 s, learn 1.0 s",
    ]


def test_on_a_terminal_the_table_is_live() -> None:
    file = io.StringIO()
    with shown_progress(Console(file=file, width=100, force_terminal=True)) as progress:
        assert isinstance(progress, LiveTable)
        play(progress)
    assert "rollout" in file.getvalue() and "step 2/3" in file.getvalue()


def test_every_role_has_a_line_and_what_is_not_named_is_idle() -> None:
    table = LiveTable(clock=lambda: 0.0)
    play(table)
    text = rendered(table)
    assert rows(text) == {
        "rollout": ["1", "1", "5"],
        "retrieval": ["1", "0", "0"],
        "rewards": ["0", "1", "0"],
        "learner": ["0", "2", "0"],
    }
    assert "grpo: rollouts 3 of 8" in text
    assert "step 2/3, reward 0.500, R@1 after 0.500" in text


@pytest.mark.parametrize(("now", "eta"), [(20.0, "0:00:10"), (24.0, "0:00:06"), (90.0, "0:00:00")])
def test_the_time_left_is_that_of_the_remaining_steps(now: float, eta: str) -> None:
    """Two steps in 20 seconds, one to go."""
    times = iter([0.0, 0.0, 10.0, 20.0, now])
    table = LiveTable(clock=lambda: next(times))
    play(table)
    assert f"ETA {eta}" in rendered(table)


def test_before_the_first_step_no_time_is_guessed() -> None:
    table = LiveTable()
    assert "starting" in rendered(table)
    table.begin("sft", 12, {"learner": 2})
    assert "step 0/12, ETA unknown" in rendered(table)


def test_a_run_that_goes_on_counts_its_own_steps_for_the_time_left() -> None:
    """Steps 51 and 52 of 53 in 20 seconds: one is left."""
    times = iter([0.0, 0.0, 10.0, 20.0, 20.0])
    table = LiveTable(clock=lambda: next(times))
    table.begin("sft", 53, {"learner": 2})
    for step in (51, 52):
        table.step(step, {"loss": 1.0}, {})
    assert "ETA 0:00:10" in rendered(table)


def test_silence_is_broken_by_what_goes_on() -> None:
    file = io.StringIO()
    lines = PlainLines(Console(file=file, width=40), silence_s=0.05)
    watch = threading.Thread(target=lines.watch)
    watch.start()
    deadline = time.monotonic() + 60
    lines.begin("grpo", 3, ACTORS)
    lines.now("rollouts 3 of 16")
    while "0.1 s" not in file.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    lines.close()
    watch.join(60)
    assert file.getvalue().splitlines()[:2] == [
        "still grpo rollouts 3 of 16: 0.05 s", "still grpo rollouts 3 of 16: 0.1 s"
    ]  # fmt: skip


def test_stage_1_shows_each_step_that_it_takes_once_and_none_of_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "scalars.jsonl"
    shown: list[Any] = []

    class Shown(Progress):
        def step(self, step: int, values: dict[str, float], seconds: dict[str, float]) -> None:
            shown.append((step, values["loss"], seconds))

    def log(stage: str, step: int, at: float) -> None:
        with path.open("a", encoding="utf-8") as file:
            for name in ("loss", LAST_SCALAR):
                row = {"stage": stage, "step": step, "name": name, "value": float(step), "time": at}
                file.write(json.dumps(row) + "\n")

    for step in range(1, 31):  # of a run that was killed and left no state
        log("sft", step, 1000.0 + step)
    display = StepDisplay(path, Shown())
    display.update()
    assert shown == []
    log("sft", 1, 2000.0)
    log("sft_val", 1, 2001.0)
    display.update()
    display.update()
    log("sft", 2, 2003.0)
    display.update()
    assert shown == [(1, 1.0, {}), (2, 2.0, {"step": 3.0})]
