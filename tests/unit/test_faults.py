"""What the command line says of a fault: its reason in one line, last; a traceback only where the reason is unknown."""

import errno
import json
import os
from pathlib import Path

import pytest
import ray.exceptions

from pipelines.command import guarded
from pipelines.stage.faults import dead_actor, last_line, reason
from vsr1.rl.batch import LearnerError, split_over_ranks
from vsr1.rl.flops import ModelFlops

DEAD = """The actor died unexpectedly before finishing this task.
\tclass_name: RewardWorkerActor
\tactor_id: 5ae61
\tpid: 4242
\tnamespace: x
\tip: 10.0.0.1
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) out of memory"""
LOADED = """Traceback (most recent call last):
  File "x.py", line 3, in read
vsr1.video.clips.ClipError: the clip of video 'gone_0002' is not in /d/train
The above exception was the direct cause of the following exception:
To change retry attempts, backoff, or which errors are retried, configure `ray.data.DataContext`"""


def test_an_actor_that_died_is_named_with_its_process() -> None:
    assert dead_actor(DEAD) == (
        "RewardWorker died (process 4242: Worker unexpectedly exits with a connection error code 2); its log is in "
        "run_dir/logs"
    )
    assert dead_actor(DEAD.replace("\tip", "\tname: retrieval-train\n\tip")).startswith("retrieval-train died (")


def test_an_actor_that_could_not_start_is_named_with_its_own_error() -> None:
    text = (
        "The actor died because of an error raised in its creation task, "
        "\x1b[36mray::RetrievalServiceActor.__init__()\x1b[39m (pid=71, ip=127.0.0.1, "
        "actor_id=5f, repr=<RetrievalServiceActor object at 0x7f>)\n"
        '  File "actors/retrieval.py", line 70, in __init__\nvsr1.retrieval.request.RetrievalError: no vectors there'
    )
    assert dead_actor(text) == ("RetrievalService died (process 71: no vectors there); its log is in run_dir/logs")


def test_a_death_that_our_own_error_tells_is_one_line_too() -> None:
    assert reason(LearnerError(f"learner rank 0 died, and the step with it: {DEAD}")) == (
        f"learner rank 0 died, and the step with it: {dead_actor(DEAD)}"
    )


def test_the_reason_in_a_traceback_is_our_own_error_and_not_the_advice_after_it() -> None:
    assert last_line(LOADED) == "the clip of video 'gone_0002' is not in /d/train"
    assert last_line("Traceback:\n  File 3\nKeyError: 'meta'\n") == "KeyError: 'meta'"
    assert last_line("one line") == "one line"
    text = "1 validation error for ModelConfig\n  Value error, too long\n    For further information visit https://x"
    assert last_line(text) == "Value error, too long"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/d/x"), "the disk is full: free some space"),
        (RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"), "the disk is full"),
        (OSError("I/O error: No space left on device (os error 28)"), "the disk is full"),  # of safetensors
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "the memory of a GPU is full: lower"),
        (MemoryError("std::bad_alloc"), "the memory of a machine is full"),
        (ray.exceptions.ObjectStoreFullError("full"), "Ray's object store is full: raise cluster.object_store_gib"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/root/x"), "/root/x: Permission denied"),
        (NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "/etc/x"), "/etc/x: Not a directory"),
        (FileNotFoundError("data is missing; build it"), "data is missing; build it"),
    ],
)
def test_a_fault_of_the_machine_has_a_known_reason(error: Exception, line: str) -> None:
    assert str(reason(error)).startswith(line)


def test_what_our_own_code_raises_is_a_reason_and_what_it_only_met_is_not() -> None:
    with pytest.raises(ValueError, match="cannot feed") as own:
        split_over_ranks([], 2, ModelFlops(0, 0, 0, 0, 0, 0, 1))
    assert reason(own.value) == str(own.value)
    for fault in (lambda: json.loads("{"), lambda: {}["meta"], lambda: 1 / 0, lambda: int("x")):
        with pytest.raises((ValueError, KeyError, ZeroDivisionError)) as met:
            fault()
        assert reason(met.value) is None


def test_an_unknown_fault_keeps_its_traceback_and_ends_in_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        guarded(lambda: {}["meta"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1] == "error: KeyError: 'meta'"
    with pytest.raises(SystemExit, match="1"):
        guarded((tmp_path / "no" / "file").read_text)
    assert capsys.readouterr().err == f"error: {tmp_path}/no/file: No such file or directory\n"


def test_what_a_failed_call_holds_open_is_closed_before_the_command_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """A generator that is still open at the interpreter's end would have its last word after the reason."""
    order: list[str] = []

    def rows():
        try:
            yield from range(9)
        finally:
            order.append("closed")

    def stage() -> None:
        open_rows = rows()
        next(open_rows)
        raise FileNotFoundError("the reason")

    try:
        guarded(stage)
    except SystemExit:
        order.append("ended")
    assert order == ["closed", "ended"]
