"""What Prometheus gets from a running Ray: our gauges with their labels, all that the dashboard asks for among them."""

import re
import time
from collections import defaultdict
from pathlib import Path

import httpx2
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from pipelines.train.gauges import NAMES, StepGauges

pytestmark = pytest.mark.usefixtures("ray_cluster")
DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "stage2.json"


RUN = "gauges of a running Ray"
Rows = list[tuple[dict[str, str], float]]


def exported() -> dict[str, Rows]:
    """Labels and values of the run's gauges at the metrics port of this node, by name."""
    [node] = ray.nodes()
    page = httpx2.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=60).text
    rows: dict[str, Rows] = defaultdict(list)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.labels.get("run") == RUN:
                rows[sample.name].append((sample.labels, sample.value))
    return rows


def test_prometheus_gets_every_gauge_that_the_dashboard_draws() -> None:
    text = DASHBOARD.read_text()
    drawn = set(re.findall(r"ray_vsr1_\w+", text))
    gauges, deadline = StepGauges(RUN), time.monotonic() + 100
    gauges.show(3, dict.fromkeys(NAMES, 0.5) | {"dropped/stale": 4.0, "dropped/poison": 2.0})
    while not drawn <= (rows := exported()).keys() or len(rows["ray_vsr1_grpo_dropped"]) < 2:
        assert time.monotonic() < deadline, drawn - rows.keys()
        time.sleep(0.5)
    assert drawn == rows.keys()
    dropped = {labels["reason"]: value for labels, value in rows.pop("ray_vsr1_grpo_dropped")}
    assert dropped == {"stale": 4.0, "poison": 2.0}
    values = {name: [value for _, value in of_run] for name, of_run in rows.items()}
    assert values.pop("ray_vsr1_grpo_step") == [3.0]
    assert list(values.values()) == [[0.5]] * len(NAMES)
    assert set(re.findall(r"{{(\w+)}}", text)) == {"run", "reason"}  # the labels that legends show
