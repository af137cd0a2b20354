"""How long the soak says that faults went unnoticed."""

import pytest

from bench.soak import Fault, seconds_until_told


def _event(kind: str, role: str, time: float) -> dict:
    return {"kind": kind, "role": role, "time": time}


def test_seconds_run_from_the_last_signal_to_a_role_to_the_event_of_its_fault() -> None:
    faults = [
        Fault("engine", "SIGKILL", 10.0),
        Fault("clips", "SIGSTOP", 11.0),
        Fault("rollout", "SIGKILL", 20.0),  # of one that is starting, which nobody hears of
        Fault("rollout", "SIGSTOP", 30.0),
    ]
    events = [
        _event("fault", "shard", 10.5),  # it ended with its service
        _event("fault", "rollout", 11.5),
        _event("healed", "rollout", 12.0),
        _event("fault", "clips", 13.5),
        _event("fault", "rollout", 33.0),
        _event("fault", "rollout", 40.0),
    ]
    seconds, untold = seconds_until_told(faults, events)
    assert seconds == {"engine": [pytest.approx(1.5)], "clips": [pytest.approx(2.5)], "rollout": [pytest.approx(3.0)]}
    assert untold == 1
