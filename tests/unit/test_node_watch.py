"""What the watch of a node tells of processes."""

import subprocess
import time

from actors.watch import NodeWatchActor, Notice


def _told(watch: NodeWatchActor) -> Notice:
    deadline = time.monotonic() + 10
    while not (notices := watch.notices()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    [notice] = notices
    return notice


def test_the_end_of_a_process_is_told_whether_it_came_before_the_watch_or_after() -> None:
    watch, process = NodeWatchActor(2.0), subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    watch.guard("store", process.pid)
    process.kill()
    notice = _told(watch)
    assert (notice.name, notice.pid, notice.is_gone) == ("store", process.pid, True)
    process.wait()
    watch.guard("store", process.pid)
    assert _told(watch) == Notice("store", process.pid, True, f"process {process.pid} ended", 0.0)
    assert watch.notices() == []
