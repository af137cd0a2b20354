"""What Ray exports of a running Stage 2, for Prometheus: `ray_vsr1_grpo_<name>`, by run; `cluster/grafana` draws it."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

NAMES = {  # name of the gauge, by that of the scalar
    "reward/total": "reward",
    "seconds/rollout": "seconds_rollout",
    "seconds/learn": "seconds_learn",
    "staleness": "staleness",
    "staleness/most": "staleness_most",
    "attempts_lost": "attempts_lost",
    "failed_samples": "failed_samples",
    "queue/prompts": "queue_prompts",
    "queue/episodes": "queue_episodes",
    "queue/waiting": "queue_waiting",
}
PREFIX = "vsr1_grpo_"


class StepGauges:
    """The gauges of one run; a process makes them once."""

    def __init__(self, run: str) -> None:
        self._run = {"run": run}
        self._step = Gauge(f"{PREFIX}step", "steps taken", ("run",))
        self._gauges = {name: Gauge(f"{PREFIX}{short}", name, ("run",)) for name, short in NAMES.items()}
        self._dropped = Gauge(f"{PREFIX}dropped", "samples dropped so far", ("run", "reason"))

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Export the scalars of a step."""
        self._step.set(step, self._run)
        for name, gauge in self._gauges.items():
            if name in values:
                gauge.set(values[name], self._run)
        for name, value in values.items():
            if name.startswith("dropped/"):
                self._dropped.set(value, self._run | {"reason": name.removeprefix("dropped/")})
