"""Events are appended whole by any thread and read back in order."""

import threading
from pathlib import Path

import pytest

from vsr1.runs.events import EventLog, read_events


def test_events_come_back_in_order_without_the_torn_last_line(tmp_path: Path) -> None:
    path, times = tmp_path / "run" / "events.jsonl", iter([1.0, 2.5])
    assert read_events(path) == []
    log = EventLog(path, clock=lambda: next(times))
    log.write("member died", member="rollout-1", seconds={"detect": 0.5})
    log.write("member serves", member="rollout-1")
    with path.open("a") as file:
        file.write('{"time": 3, "ki')
    expected = [
        {"time": 1.0, "kind": "member died", "member": "rollout-1", "seconds": {"detect": 0.5}},
        {"time": 2.5, "kind": "member serves", "member": "rollout-1"},
    ]
    assert read_events(path) == expected
    EventLog(path, clock=lambda: 4.0).write("resumed")  # the run that goes on cuts the torn line off
    assert read_events(path) == [*expected, {"time": 4.0, "kind": "resumed"}]


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    threads = [threading.Thread(target=lambda: [log.write("x", n=n) for n in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_events(tmp_path / "events.jsonl")) == 400


@pytest.mark.parametrize("line", ["not json", '{"time": 1}', "[1]"])
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(f'{{"time": 1, "kind": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"events\.jsonl:2: "):
        read_events(path)
