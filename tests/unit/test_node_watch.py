"""What the watch of a node tells of processes."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from actors.watch import LOOK_EVERY_S, NodeWatchActor, Notice
from pipelines.stage.watch import ASK_EVERY_S
from vsr1.settings.parts import FleetConfig


def _notice(watch: NodeWatchActor) -> Notice:
    deadline = time.monotonic() + 60
    while not (notices := watch.notices()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    [notice] = notices
    return notice


def test_the_end_of_a_process_is_told_whether_it_came_before_the_watch_or_after() -> None:
    watch, process = NodeWatchActor(2.0), subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    watch.guard("store", process.pid)
    process.kill()
    notice = _notice(watch)
    assert (notice.name, notice.pid, notice.is_gone) == ("store", process.pid, True)
    process.wait()
    watch.guard("store", process.pid)
    assert _notice(watch) == Notice("store", process.pid, True, f"process {process.pid} ended", 0.0)
    assert watch.notices() == []


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    """A process that has started one, which has started another."""
    script = "sh -c 'echo $$; sleep 300 & wait' & wait"
    parent = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout is not None and parent.stdout.readline()
    yield parent
    with suppress(ProcessLookupError):  # the last of them was the victim
        os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()


@pytest.mark.parametrize("generation", [0, 1, 2])
def test_what_stands_still_for_too_long_is_ended_and_told_of_whoever_started_it(
    parent: subprocess.Popen[str], generation: int
) -> None:
    while len(children := psutil.Process(parent.pid).children(recursive=True)) < 2:
        time.sleep(0.01)
    family = [psutil.Process(parent.pid), *children]
    watch, victim = NodeWatchActor(1000.0), family[generation]
    watch.guard("worker", parent.pid)
    victim.send_signal(signal.SIGSTOP)
    while victim.status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    began = time.monotonic()
    watch.look(began)
    watch.look(began + 999)
    assert watch.notices() == []
    watch.look(began + 1001)  # a sum of exactly 1,000 s more may be rounded down
    [notice] = watch.notices()
    reason = f"process {victim.pid} stood still for 1000 s (fleet.stopped_s)"
    assert (notice.name, notice.pid, notice.is_gone, notice.reason) == ("worker", parent.pid, False, reason)
    assert victim.wait(60) in (-signal.SIGKILL, None)


def test_a_process_that_stands_still_is_told_of_within_five_seconds_of_a_driver_that_asks() -> None:
    """It is seen by the first look, told of by one after `stopped_s`, and the driver asks twice at worst."""
    assert FleetConfig().stopped_s + 2 * LOOK_EVERY_S + 2 * ASK_EVERY_S <= 5.0


def test_all_that_is_guarded_is_looked_at_in_one_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    walks, walk = [], psutil.process_iter

    def counted(fields: list[str]) -> Iterator[psutil.Process]:
        walks.append(threading.current_thread())
        return walk(fields)

    processes = [subprocess.Popen(["cat"], stdin=subprocess.PIPE) for _ in range(5)]
    watch = NodeWatchActor(1000.0)
    for process in processes:
        watch.guard(f"store {process.pid}", process.pid)
    for process in processes:
        process.kill()
        process.wait()
    monkeypatch.setattr(psutil, "process_iter", counted)
    watch.look(time.monotonic())
    assert walks.count(threading.current_thread()) == 1  # the watch's own thread looks, too
    assert {notice.pid for notice in watch.notices()} == {process.pid for process in processes}
