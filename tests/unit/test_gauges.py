"""The dashboard asks for what is exported, all of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.train import gauges

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "stage2.json"


class Recorded:
    """A gauge that keeps what it is set to."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert re.fullmatch(r"[a-z_0-9]+", name) and description
        self.name, self.keys, self.values = name, set(tag_keys), list[Any]()
        EXPORTED[name] = self

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == self.keys
        self.values.append((value, tags))


EXPORTED: dict[str, Recorded] = {}


def test_the_dashboard_draws_every_gauge(monkeypatch: pytest.MonkeyPatch) -> None:
    EXPORTED.clear()
    monkeypatch.setattr(gauges, "Gauge", Recorded)
    step = gauges.StepGauges("run-1")
    step.show(3, {"staleness": 0.5, "dropped/stale": 4, "dropped/poison": 2, "loss": 9.0})
    assert EXPORTED["vsr1_grpo_step"].values == [(3, {"run": "run-1"})]
    assert EXPORTED["vsr1_grpo_staleness"].values == [(0.5, {"run": "run-1"})]
    assert {tags["reason"]: value for value, tags in EXPORTED["vsr1_grpo_dropped"].values} == {"stale": 4, "poison": 2}
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    drawn = {re.match(r"ray_(\w+)\{", expression)[1] for expression in expressions}
    assert drawn == set(EXPORTED)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
