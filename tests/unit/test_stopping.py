"""Ctrl-C and SIGTERM end a stage at the first signal, with a line, the right exit code and no process left."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

STAGE = """
import subprocess, sys, threading, time
from pipelines.stage import stopping
stopping.END_S = 1.0
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(300)"
child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
with stopping.ended_by_signals(lambda line: print(line, flush=True), lambda: "kept: step-4", 1.0):
    print(child.pid, flush=True)
    try:
        {wait}
    finally:
        print("closed", flush=True)
"""
WAITS = {
    "a call": "time.sleep(300)",
    "a thread": "threading.Thread(target=time.sleep, args=[300]).start(); time.sleep(300)",
    "a stage that swallows it": (
        "while True:\n            try:\n                time.sleep(300)\n"
        "            except KeyboardInterrupt:\n                pass"
    ),
}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("wait", WAITS)
def test_the_first_signal_ends_the_stage_and_what_it_has_started(number: signal.Signals, code: int, wait: str) -> None:
    stage = subprocess.Popen([sys.executable, "-c", STAGE.format(wait=WAITS[wait])], stdout=subprocess.PIPE, text=True)
    assert stage.stdout
    child = psutil.Process(int(stage.stdout.readline()))
    time.sleep(0.2)
    stage.send_signal(number)
    assert stage.wait(60) == code
    lines = stage.stdout.read().splitlines()
    assert lines[0] == f"{number.name}: stopping; kept: step-4"
    assert lines[1:] == ([] if "swallows" in wait else ["closed"])
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_stage_that_ends_by_itself_leaves_the_signals_as_they_were() -> None:
    code = (
        "import signal; from pipelines.stage.stopping import ended_by_signals\n"
        "before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]\n"
        "with ended_by_signals(print, str): pass\n"
        "assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]\n"
        "with ended_by_signals(print, str): raise SystemExit(1)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "")
