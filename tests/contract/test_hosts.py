"""Hosts of their own, as network namespaces: a link is cut and restored, a host loses its power, another one joins."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.hosts import CUT_S, GCS_PORT, cluster
from bench.hosts_net import check_namespaces
from pipelines.machine.resources import MachineError
from vsr1.runs.events import EVENTS, read_events

pytestmark = [pytest.mark.soak, pytest.mark.timeout(290)]
REPOSITORY = Path(__file__).parents[2]
SOON = {  # a host without power is found after 3 to 9 s, by default after 15 to 65
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


def until(condition: Callable[[list[dict[str, Any]]], bool], folder: Path, limit_s: float = 90.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition(events := read_events(folder / EVENTS)):
        assert time.monotonic() < deadline, (events, (folder / "driver.log").read_text())
        time.sleep(0.2)


def counted(events: list[dict[str, Any]], kind: str) -> int:
    return sum(event["kind"] == kind for event in events)


def test_a_fleet_outlives_a_cut_link_and_the_loss_of_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        check_namespaces()
    except MachineError as error:
        pytest.skip(str(error))
    for name, value in SOON.items():
        monkeypatch.setenv(name, value)
    with cluster("rollouts") as hosts:
        head = hosts.hosts["head"]
        assert f"RAY_API_SERVER_ADDRESS={hosts.address}\n" in hosts.head_env.read_text()
        command = [sys.executable, "-m", "tests.contract.hosts_driver", f"{head.address}:{GCS_PORT}", str(tmp_path)]
        with (tmp_path / "driver.log").open("wb") as output:
            driver = head.start(command, output, hosts.env, REPOSITORY)
        until(lambda events: counted(events, "playing") == 1, tmp_path)
        lost = hosts.hosts["rollouts"]
        lost.cut()
        time.sleep(CUT_S)
        lost.restore()
        until(lambda events: counted(events, "healed") >= 2, tmp_path)
        lost.kill()
        joined = hosts.join("rollouts")
        until(lambda events: counted(events, "healed") >= 4 and counted(events, "node gone") == 2, tmp_path)
        (tmp_path / "end").touch()
        assert driver.wait(60) == 0, (tmp_path / "driver.log").read_text()
    events = read_events(tmp_path / EVENTS)
    events = events[[event["kind"] for event in events].index("playing") :]
    [over] = [event for event in events if event["kind"] == "over"]
    assert (over["serving"], over["missing"], over["repeated"], over["failed"]) == (2, 0, 0, 0)
    addresses = {
        kind: [event["address"] for event in events if event["kind"] == kind] for kind in ("node joined", "node gone")
    }
    assert addresses == {"node joined": [lost.address, joined.address], "node gone": [lost.address] * 2}
